"""The pictures of the report as cards: a real image, what was drawn from it, and the real image nearest to each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...engine.text import visible
from .pictures import ReportImages, picture_uri


@dataclass(frozen=True)
class Picture:
    """An image with what it is, and the real image nearest to it where that was measured."""

    uri: str
    caption: str
    nearest: NearestPicture | None = None


@dataclass(frozen=True)
class NearestPicture:
    """A real training image and how far it is from the image that it was found for."""

    uri: str
    image_id: str
    distance: float


@dataclass(frozen=True)
class Card:
    """One source with all that was made of it."""

    class_name: str
    label: int
    image_id: str | None
    likeness: float | None  # distance of the reconstruction to the source
    closest: float | None  # least distance of a variant to a real image
    photograph: Picture | None
    real: Picture
    reconstruction: Picture | None
    variants: list[Picture]


def cards(images: ReportImages, class_names: Sequence[str]) -> list[Card]:
    """The cards of all sources, in their order."""
    return [_card(images, row, class_names) for row in range(len(images.real))]


def _card(images: ReportImages, row: int, class_names: Sequence[str]) -> Card:
    label = int(images.labels[row])
    nearest = None if images.nearest is None else images.nearest[row]
    variants = []
    for place, variant in enumerate(images.variants[row]):
        found = None
        if nearest is not None:
            found = NearestPicture(
                picture_uri(nearest.images[place]), visible(nearest.ids[place]), nearest.distances[place]
            )
        caption = f"{images.called} {place + 1}" if images.captions is None else images.captions[place]
        variants.append(Picture(picture_uri(variant), caption, found))
    return Card(
        class_name=class_names[label],
        label=label,
        image_id=None if images.ids is None else visible(images.ids[row]),
        likeness=None if images.distances is None else images.distances[row],
        closest=None if nearest is None else min(nearest.distances, default=None),
        photograph=None if images.photographs is None else _picture(images.photographs[row], "before it was shrunk"),
        real=_picture(images.real[row], "real image"),
        reconstruction=None
        if images.reconstruction is None
        else _picture(images.reconstruction[row], "reconstruction"),
        variants=variants,
    )


def _picture(image: Tensor, caption: str) -> Picture:
    side = image.shape[-1]
    return Picture(picture_uri(image), f"{caption}, {side} px")
