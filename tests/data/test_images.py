"""Decoding keeps what a picture shows; the scan accounts for every file."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusion_inversion.data.decode import (
    MAX_PIXELS,
    UnusableImageError,
    decode_rgb,
    naming_causes,
    open_image,
    shorter_side,
)
from diffusion_inversion.data.images import LabelledImages, content_hash, square
from diffusion_inversion.data.problems import Problem, raise_fatal
from diffusion_inversion.data.scan import scan_beside, scan_folder
from diffusion_inversion.errors import DataError

RNG = np.random.default_rng(0)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> tuple[NDArray[np.uint8], str]:
    """Pixels, and the causes of all notes."""
    with naming_causes(), open_image(data) as image:
        pixels, notes = decode_rgb(image)
    return pixels, "; ".join(note.cause for note in notes)


def test_png_comes_back_exactly() -> None:
    pixels = noise(5, 7)
    got, note = decoded(encoded(Image.fromarray(pixels)))
    assert np.array_equal(got, pixels)
    assert note == ""


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_truncated_files_are_unusable(format: str, keep: float) -> None:
    data = encoded(Image.fromarray(noise(64, 64)), format)
    with pytest.raises(UnusableImageError, match="unreadable") as caught:
        decoded(data[: int(keep * len(data))])
    assert "replace the file" in caught.value.remedy


@pytest.mark.parametrize("data", [b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_unusable(data: bytes) -> None:
    with pytest.raises(UnusableImageError, match="no image in a format that is read"):
        decoded(data)


@pytest.mark.parametrize("side", [8_001, 10_000, 20_000])  # Pillow is silent, warns, refuses
def test_pixel_cap_holds_before_decoding(side: int) -> None:
    assert side * side > MAX_PIXELS
    data = encoded(Image.new("1", (side, side)))
    assert len(data) < 100_000
    with (
        pytest.raises(UnusableImageError, match="above the limit of 64 megapixels"),
        naming_causes(),
        open_image(data) as image,
    ):
        shorter_side(image)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257], [32_896, 65_535]], dtype=np.uint16)
    got, note = decoded(encoded(Image.fromarray(values)))
    assert got.reshape(-1, 3).tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]
    assert note == ""


def test_12_bits_in_16_are_named() -> None:
    _, note = decoded(encoded(Image.fromarray(np.array([[0, 4095]], dtype=np.uint16))))
    assert "0..4095" in note


@pytest.mark.parametrize(
    ("values", "expected", "noted"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255], False),
        (np.array([[-10, 0, 10]], np.float32), [0, 128, 255], True),
        (np.array([[7, 7, 7]], np.float32), [0, 0, 0], True),
        (np.array([[0, 100_000, 200_000]], np.int32), [0, 128, 255], True),
        (np.array([[0, 32_896, 65_535]], np.int32), [0, 128, 255], False),
    ],
)
def test_float_and_integer_grey(values: NDArray[np.generic], expected: list[int], noted: bool) -> None:
    got, note = decoded(encoded(Image.fromarray(values), "TIFF"))
    assert got[0, :, 0].tolist() == expected
    assert bool(note) == noted


def test_not_finite_is_unusable() -> None:
    with pytest.raises(UnusableImageError, match="NaN"):
        decoded(encoded(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF"))


def test_exif_orientation_is_applied() -> None:
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, :8] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: show it turned 90 degrees clockwise
    stored = np.rot90(upright)
    got, _ = decoded(encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif))
    assert np.array_equal(got, upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    got, _ = decoded(encoded(image.convert(mode)))
    assert got[0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_picture_that_is_transparent_everywhere_is_named(mode: str) -> None:
    """SixLabors/ImageSharp#581: it is white on white, whatever colours it holds."""
    image = Image.new("RGBA", (8, 8), (200, 100, 0, 0))
    pixels, notes = decoded(encoded(image.convert(mode)))
    assert (pixels == 255).all() and notes == "transparent everywhere: a white picture"
    image.putpixel((0, 0), (0, 0, 0, 255))
    assert decoded(encoded(image.convert(mode)))[1] == ""


def test_half_transparent_red_is_pink() -> None:
    got, _ = decoded(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128))))
    assert got[0, 0].tolist() == [255, 127, 127]


def test_cmyk_keeps_its_colour() -> None:
    got, _ = decoded(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert got[0, 0, 0] > 240 and got[0, 0, 1:].max() < 15  # no cyan, all magenta and yellow: red


def test_first_of_several_frames_is_used_and_named() -> None:
    frames = [Image.new("L", (2, 2), value) for value in (10, 200)]
    got, note = decoded(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    assert got[0, 0, 0] == 10
    assert "frames" in note


def test_square_is_the_centre() -> None:
    pixels = np.zeros((4, 10, 3), np.uint8)
    pixels[:, 3:7] = 200
    assert square(pixels, 4).eq(200).all()
    assert square(pixels, 2).eq(200).all()
    tall = np.ascontiguousarray(pixels.transpose(1, 0, 2))
    assert square(tall, 4).eq(200).all()
    image = noise(6, 6)
    assert torch.equal(square(image, 6), torch.from_numpy(image).permute(2, 0, 1))


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = square(stripes, 8).float()
    assert (small - 127.5).abs().max() < 30  # without antialiasing it would alias to black or white


def test_content_hash_sees_pixels_and_shape() -> None:
    pixels = noise(4, 6)
    changed = pixels.copy()
    changed[3, 5, 2] ^= 1
    assert len({content_hash(p) for p in (pixels, changed, pixels.reshape(6, 4, 3))}) == 3


def labelled(n: int = 4, size: int = 8) -> LabelledImages:
    return LabelledImages(
        name="toy",
        ids=tuple(f"train/{row:06d}" for row in range(n)),
        hashes=tuple(str(row) for row in range(n)),
        labels=torch.arange(n) % 2,
        class_names=("a", "b"),
        images=torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 3, size, size).clone(),
        native_size=size,
    )


def test_subset_keeps_rows_together() -> None:
    part = labelled().subset([3, 0])
    assert part.ids == ("train/000003", "train/000000")
    assert part.hashes == ("3", "0")
    assert part.labels.tolist() == [1, 0]
    assert part.images[:, 0, 0, 0].tolist() == [3, 0]


def test_resized_keeps_flat_colours_and_itself() -> None:
    images = labelled()
    assert images.resized(8) is images
    assert images.resized(5).size == 5
    assert images.resized(5).images[:, 0, 2, 2].tolist() == [0, 1, 2, 3]
    assert images.resized(5).native_size == 8


@pytest.mark.parametrize(
    "wrong",
    [
        {"ids": ("x", "x", "y", "z")},
        {"labels": torch.tensor([0, 1, 2, 0])},
        {"hashes": ("1",)},
        {"images": torch.zeros(4, 3, 8, 9, dtype=torch.uint8)},
        {"images": torch.zeros(4, 3, 8, 8)},
    ],
)
def test_inconsistent_parts_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match="toy"):
        LabelledImages(**{**vars(labelled()), **wrong})  # type: ignore[arg-type]


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(4, 4)).save(path)
    return path


def test_scan_accounts_for_every_entry(tmp_path: Path) -> None:
    put(tmp_path / "cat/b.png")
    put(tmp_path / "cat/a.PNG")
    put(tmp_path / "dog/a.png")
    put(tmp_path / "loose.png")
    put(tmp_path / "cat/deep/er/x.png")
    (tmp_path / "cat/vacant").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "__MACOSX/cat").mkdir(parents=True)
    put(tmp_path / ".git/cat/a.png")
    (tmp_path / "cat/._a.png").write_bytes(b"x")
    (tmp_path / "cat/Thumbs.db").write_bytes(b"x")
    (tmp_path / "cat/notes.txt").write_text("x")
    (tmp_path / "labels.csv").write_text("x")
    (tmp_path / "cat/link.png").symlink_to(tmp_path / "dog/a.png")
    (tmp_path / "wolf").symlink_to(tmp_path / "dog")
    os.mkfifo(tmp_path / "dog/pipe.png")

    scan = scan_folder(tmp_path)

    assert scan.ids == ("cat/a.PNG", "cat/b.png", "dog/a.png")
    assert scan.labels == (0, 0, 1)
    assert scan.class_names == ("cat", "dog")
    assert [file.relative_to(tmp_path).as_posix() for file in scan.files] == list(scan.ids)
    fatal = {problem.file for problem in scan.problems if problem.fatal}
    assert fatal == {"loose.png", "cat/deep/er/x.png", "wolf"}
    told = {problem.file: problem.cause for problem in scan.problems if not problem.fatal}
    assert {file: cause.split(",")[0] for file, cause in told.items()} == {
        ".git": "hidden or system file",
        "__MACOSX": "hidden or system file",
        "cat/._a.png": "hidden or system file",
        "cat/Thumbs.db": "hidden or system file",
        "cat/link.png": "symbolic link",
        "cat/notes.txt": "no image by its suffix",
        "cat/vacant": "folder without images inside a class folder",
        "dog/pipe.png": "not a regular file",
        "empty": "class folder without images",
        "labels.csv": "no image by its suffix",
    }
    assert all(problem.remedy for problem in scan.problems)


def test_scan_refuses_names_that_are_not_utf8(tmp_path: Path) -> None:
    put(tmp_path / "cat/a.png")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "cat") + b"/\xff.png")).touch()
    except OSError:
        pytest.skip("this file system keeps names in UTF-8")
    (problem,) = scan_folder(tmp_path).problems
    assert problem.fatal and "UTF-8" in problem.cause
    problem.file.encode()  # can be printed and stored


def test_beside_splits_nothing_is_silent(tmp_path: Path) -> None:
    for name in ("train/cat/a.png", "test/cat/a.png", "extra/cat/a.png", "loose.png"):
        put(tmp_path / name)
    problems = scan_beside(tmp_path, ("train", "test"))
    assert {(problem.file, problem.fatal) for problem in problems} == {("extra", False), ("loose.png", True)}


def test_files_that_are_alike_are_counted_not_listed() -> None:
    problems = [Problem(f"{row:03d}.jpg", "outside a class folder", "move it", fatal=True) for row in range(300)]
    problems += [Problem(f"cat/{row}.png", "damaged", "delete it", fatal=True) for row in range(3)]
    with pytest.raises(DataError) as caught:
        raise_fatal("pets", problems)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("pets: 303 files") and len(lines) == 2 + 3 + 3
    assert [line.split("  ")[1] for line in lines[2:5]] == ["000.jpg", "001.jpg", "and 298 more"]
    assert all("outside a class folder" in line for line in lines[2:5]) and "cat/2.png" in lines[-1]


def test_fatal_table_is_capped_and_counts() -> None:
    problems = [Problem(f"cat/{row:02d}.png", f"cause {row}", "remedy", fatal=True) for row in range(13)]
    problems.append(Problem("cat/fine.png", "hidden", "none", fatal=False))
    with pytest.raises(DataError) as caught:
        raise_fatal("pets", problems)
    text = str(caught.value)
    assert text.startswith("pets: 13 files")
    assert "cat/09.png  cause 9" in text and "cat/10.png" not in text and "... and 3 more" in text
    assert "fine" not in text
    raise_fatal("pets", problems[-1:])
