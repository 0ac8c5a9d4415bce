"""Every variant of TIFF is read as it was written, or refused by its kind (python-pillow/Pillow#4621)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiff_files import LAYOUTS, Variant, tiff, variants

from diffusion_inversion.data.decode import UnusableImageError, decode_rgb, naming_causes, open_image

SIDE = 33  # not a multiple of the rows of a strip


def samples(variant: Variant) -> NDArray[Any]:
    """A picture (SIDE, SIDE, channels) that uses the whole range of its type, floats 0..1."""
    y, x = np.mgrid[:SIDE, :SIDE]
    bands = [x * 7 + y, y * 7 + 3 * x, 255 - x * 5 - y * 2, (x * 3 + y * 4) % 256]
    chosen = [bands[0], bands[3]] if variant.layout == "grey+alpha" else bands[: LAYOUTS[variant.layout]]
    shares = (np.stack(chosen, -1) / 255).clip(0, 1)
    kind = np.dtype(variant.dtype)
    if kind.kind == "f":
        return shares.astype(kind)
    most = np.iinfo(kind).max
    return np.rint((shares if kind.kind == "u" else shares * 2 - 1) * most).astype(kind)


def as_rgb(values: NDArray[Any]) -> NDArray[np.uint8]:
    """What `decode_rgb` promises for these samples, exact but for alpha, which Pillow rounds to within a level."""
    kind, channels = values.dtype, values.shape[-1]
    if kind.kind == "f":
        levels = np.rint(values.astype(np.float64) * 255)
    elif kind == np.uint8:
        levels = values
    elif kind == np.uint16:
        levels = np.rint(values / 257) if channels == 1 else values >> 8
    else:  # by its own range
        wide = values.astype(np.float64)
        levels = np.rint((wide - wide.min()) / (wide.max() - wide.min()) * 255)
    levels = levels.astype(np.float64)
    if channels in (2, 4):
        alpha = levels[..., -1:] / 255
        levels = np.rint(levels[..., :-1] * alpha + 255 * (1 - alpha))
    return np.repeat(levels, 3, -1).astype(np.uint8) if levels.shape[-1] == 1 else levels.astype(np.uint8)


def test_672_variants_are_exact_or_refused_by_their_kind() -> None:
    found: Counter[str] = Counter()
    for variant in variants():
        values = samples(variant)
        try:
            with naming_causes(), open_image(tiff(values, variant)) as image:
                pixels, _ = decode_rgb(image)
        except UnusableImageError as error:
            apart = " in planes" if variant.planar else ""
            bits, word = 8 * int(variant.dtype[1]), {"u": "unsigned", "i": "signed", "f": "float"}[variant.dtype[0]]
            colour = "RGB" if "RGB" in variant.layout else "grey"
            kind = f"TIFF of {LAYOUTS[variant.layout]} x {bits}-bit {word} samples ({colour}{apart})"
            assert error.cause == f"{kind}: this kind is not read", str(variant)
            assert error.remedy.startswith("save it as PNG"), str(variant)
            found["refused"] += 1
            continue
        off = np.abs(pixels.astype(int) - as_rgb(values).astype(int)).max()
        assert off <= ("A" in variant.layout or "alpha" in variant.layout), f"{variant}: off by {off}"
        found["exact"] += 1
        found[f"{variant.dtype} {variant.layout}"] += 1
    assert found["exact"] + found["refused"] == 672
    # Nothing that was read rightly before may be refused to pass.
    least = {"u1 grey": 16, "u1 RGB": 32, "u1 RGBA": 32, "u2 grey": 16, "u2 RGB": 32, "u2 RGBA": 32}
    least |= {"i2 grey": 16, "i4 grey": 16, "f4 grey": 16, "u4 grey": 8, "u1 grey+alpha": 16}
    assert {key: found[key] for key in least} == least


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("codec", ["none", "deflate"])
def test_other_fourth_channels(dtype: str, order: str, extra: int, planar: bool, codec: str) -> None:
    """0: of unspecified meaning, not shown; 1: alpha that the colours were multiplied by."""
    variant = Variant(dtype, "RGBA", order, codec, 1, planar)
    values = samples(variant)
    if extra == 1:
        values[..., :3] = values[..., :3] * (values[..., 3:] / np.iinfo(values.dtype).max)
    try:
        with naming_causes(), open_image(tiff(values, variant, extra=extra)) as image:
            pixels, _ = decode_rgb(image)
    except UnusableImageError as error:
        assert "this kind is not read" in error.cause
        return
    levels = (values >> 8 if dtype == "u2" else values).astype(int)
    expected = levels[..., :3] if extra == 0 else levels[..., :3] + 255 - levels[..., 3:]
    assert np.abs(pixels - expected).max() <= (2 if extra == 1 else 0)
