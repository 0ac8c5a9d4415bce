"""Sides in px that a generator can take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from .generator import Generator


def require_side(generator: Generator, side: int, name: str = "resolution", option: str = "") -> None:
    """Raise UsageError for a side that is no multiple of the VAE's factor; `option` is where the user gave it."""
    factor = generator.vae_factor
    if side < 1 or side % factor:
        nearest = f"{option} {max(1, round(side / factor)) * factor}".lstrip()
        raise UsageError(
            f"{name}={side}: not a multiple of {factor}, which the VAE of {generator.name} needs. Use {nearest}."
        )
