"""What every metric needs of its two sets of features, checked once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from ...errors import DataError


def checked(
    real_features: Tensor, generated_features: Tensor, *, least: int = 2
) -> tuple[Float64[Tensor, "real dim"], Float64[Tensor, "generated dim"]]:
    """Return both sets as float64, on the device of the real ones.

    real_features (N, D), generated_features (M, D): any floating dtype, finite, at least `least` rows each.
    Raises DataError, which names the side, what is wrong with it and what to do.
    """
    sides = {"real": real_features, "generated": generated_features}
    for side, features in sides.items():
        if features.ndim != 2 or not features.is_floating_point() or features.shape[1] == 0:
            raise DataError(
                f"{side} features: {tuple(features.shape)} {features.dtype}; give one row of floating-point numbers "
                "per image, (N, D)"
            )
    check_sizes(real_features.shape, generated_features.shape, least=least)
    for side, features in sides.items():
        if not bool(features.isfinite().all()):
            bad = int((~features.isfinite().all(dim=1)).sum())
            raise DataError(f"{side} features: NaN or infinity in {bad} of {len(features)} rows; extract them again")
    device = real_features.device
    return real_features.double(), generated_features.to(device=device, dtype=torch.float64)


def check_sizes(real: Sequence[int], generated: Sequence[int], *, least: int = 2) -> None:
    """Raise DataError, as `checked` does, for features of these shapes (N, D) and (M, D), before there are any."""
    for side, (count, _) in (("real", real), ("generated", generated)):
        if count < least:
            raise DataError(
                f"{side} features: {count} image(s), at least {least} are needed; give more images, "
                "or a smaller k where k sets the number"
            )
    if real[1] != generated[1]:
        raise DataError(
            f"real features have {real[1]} numbers an image, generated features {generated[1]}; extract both with the "
            "same extractor"
        )
