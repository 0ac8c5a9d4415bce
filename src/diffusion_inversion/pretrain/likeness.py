"""How near drawn images are to their sources, in image space, where generators with any autoencoder compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..data.images import resize, to_model_range, to_uint8
from ..engine.progress import track
from ..generator.features import load_lite0, profile
from ..generator.generator import Generator
from ..sample.autoencoding import mean_psnr

COMMON_SIZES = (32, 64)  # px at which generators of different resolutions are compared
BATCH = 100


def at_size(images: UInt8[Tensor, "images 3 side side"], size: int) -> UInt8[Tensor, "images 3 size size"]:
    """The images at `size` px, resized as everywhere in the package; as they are where they have that size."""
    return images if images.shape[-1] == size else resize(images, size)


def through_autoencoder(generator: Generator, images: UInt8[Tensor, "images 3 side side"]) -> Tensor:
    """decode(mean of encode(x)) at the generator's resolution R: uint8 (N, 3, R, R)."""
    decoded = []
    with track("autoencode", len(images)) as advance:
        for chunk in images.split(BATCH):
            latents = generator.encode(to_model_range(at_size(chunk, generator.resolution))).mean
            decoded.append(to_uint8(generator.decode(latents)).cpu())
            advance(len(chunk))
    return torch.cat(decoded)


def psnr(drawn: UInt8[Tensor, "images 3 side side"], sources: UInt8[Tensor, "images 3 side side"]) -> float:
    """Mean over images of 10 log10(255^2 / mean squared error) in dB; 100 dB for an image that is exact."""
    pairs = zip(drawn.split(BATCH), sources.split(BATCH), strict=True)
    return mean_psnr(torch.cat([(a.double() - b).square().mean(dim=(1, 2, 3)) for a, b in pairs]).tolist())


def sharpness(images: UInt8[Tensor, "images 3 side side"]) -> Float[Tensor, " images"]:
    """Mean absolute difference of horizontal neighbours over the standard deviation of all pixels; NaN where that is 0.

    It does not change with brightness or contrast, and falls with blur.
    """
    parts = (chunk.double() for chunk in images.split(BATCH))
    return torch.cat([x.diff(dim=-1).abs().mean(dim=(1, 2, 3)) / x.std(dim=(1, 2, 3)) for x in parts])


def sharpness_ratio(decoded: Tensor, originals: Tensor) -> float | None:
    """Mean sharpness of `decoded` over that of `originals` (both uint8, of one side), below 1 where they are smoother.

    Images of one colour are left out; None where nothing is left.
    """
    ours, theirs = sharpness(decoded), sharpness(originals)
    usable = ours.isfinite() & theirs.isfinite()
    return float(ours[usable].mean() / theirs[usable].mean()) if bool(usable.any()) else None


class FeatureDistance:
    """Distance of images in the profile of Lite0 (`features.profile`), in units of the sources' own variety.

    The adapter of `mini` reads the same profile: a vector's start is made for it, of every generator alike.
    """

    def __init__(self) -> None:
        self.lite0 = load_lite0()

    def profiles(self, images: UInt8[Tensor, "images 3 side side"]) -> Float[Tensor, "images features"]:
        return torch.cat([profile(self.lite0, to_model_range(chunk)) for chunk in images.split(BATCH)])

    def __call__(self, drawn: Float[Tensor, "images features"], sources: Float[Tensor, "images features"]) -> float:
        """Mean distance of profiles to their sources' over the mean distance between two different sources.

        0 = the same, 1 = as far as any other image of the set.
        """
        between = torch.pdist(sources.double()).mean() if len(sources) > 1 else torch.ones(())
        return float((drawn.double() - sources.double()).norm(dim=1).mean() / between.clamp(min=1e-12))


def autoencoder_figures(decoded: Tensor, originals: Tensor, sizes: Sequence[int]) -> dict[str, Any]:
    """PSNR and `sharpness_ratio` of `decoded` uint8 (N, 3, R, R) to `originals` uint8 (N, 3, S, S).

    At R ("own"), and where both are resized to each of `sizes` px.
    """
    found: dict[str, Any] = {"n": len(originals), "psnr": {}, "sharpness": {}}
    for name, size in (("own", decoded.shape[-1]), *((str(size), size) for size in sizes)):
        ours, theirs = at_size(decoded, size), at_size(originals, size)
        found["psnr"][name], found["sharpness"][name] = psnr(ours, theirs), sharpness_ratio(ours, theirs)
    return found
