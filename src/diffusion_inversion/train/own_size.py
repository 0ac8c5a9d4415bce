"""The real images at the side they have without us: the baseline that a user could reach without a generator."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.datasets import Splits
from ..data.images import LabelledImages

# px: the largest side of this arm, 9 times the work of 32 px; what the paper's larger data sets have (STL-10).
OWN_SIZE_LIMIT = 96


@dataclass(frozen=True)
class Sides:
    """Sides in px of one run's images."""

    native: int  # of the real images as they are stored, the smallest where they vary
    used: int  # of what the classifiers of all other arms see
    own: int | None = None  # of the arm "real (own size)"; None where it is not trained
    images: str = "synthetic"  # what the images beside the real ones are called

    @property
    def sentence(self) -> str:
        """What the verdict's sentence has to say of it; "" where no image was shrunk."""
        if self.own is not None:
            of = f" of the {self.native} px they have" if self.native > self.own else ""
            return f"{self.images} images at {self.used} px against real ones at {self.own} px{of}"
        return f"all at {self.used} px, of the {self.native} px real images have" if self.native > self.used else ""


def own_side(images: LabelledImages, used: int) -> int | None:
    """The side of the arm "real (own size)": that of `images`, at most 96 px; None where that is not above `used`.

    They are loaded at their own side unless `--size` says otherwise.
    """
    side = min(images.size, OWN_SIZE_LIMIT)
    return side if side > used else None


def at_own_size(splits: Splits, used: int) -> tuple[LabelledImages, LabelledImages] | None:
    """Training and test images at that side; None where there is no such arm."""
    side = own_side(splits.train, used)
    return None if side is None else (splits.train.resized(side), splits.test.resized(side))
