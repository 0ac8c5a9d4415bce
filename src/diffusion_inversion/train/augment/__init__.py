"""Augmentation of batches in memory: the methods of the paper's section B.2.3, alone or combined.

| name | what | from |
|---|---|---|
| none | nothing | |
| default | random crop of the zero-padded image, horizontal flip | `geometric.py`, equal to torchvision's |
| autoaugment | one of the 25 sub-policies for ImageNet (Cubuk et al., arXiv 1805.09501) | torchvision v2 |
| randaugment | 2 of 14 operations at magnitude 9 of 30 (Cubuk et al., arXiv 1909.13719) | torchvision v2 |
| augmix | three chains mixed with the image, severity 3 (Hendrycks et al., arXiv 1912.02781) | torchvision v2 |
| cutout | one black square of side S / 8 (DeVries and Taylor, arXiv 1708.04552) | `cutout.py` |
| mixup | blend with a partner, share from Beta(1, 1) (Zhang et al., arXiv 1710.09412) | torchvision v2 |
| cutmix | rectangle of a partner, area from Beta(1, 1) (Yun et al., arXiv 1905.04899) | torchvision v2 |

Combined, they come in this order whatever the order of the names: default, autoaugment, randaugment, augmix, cutout,
then mixup or cutmix; where both are named, each batch gets one of the two at even odds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch.nn.functional as F
from torch import Generator, Tensor

from ...config.training import AugmentationName
from ...errors import UsageError
from .cutout import cutout
from .geometric import Moves, augment, crop_and_flip, crop_padding
from .mixing import MIXERS, Mixing
from .policies import POLICIES, Policies

__all__ = ["NAMES", "Augmentation", "Moves", "augment", "crop_and_flip", "crop_padding", "make_augmentation"]

NAMES: tuple[str, ...] = get_args(AugmentationName)


@dataclass(frozen=True)
class Augmentation:
    """What `make_augmentation` makes. All that is random comes from the generator of the call."""

    names: tuple[str, ...]  # in the order of application; empty for "none"
    classes: int
    steps: tuple[Callable[[Tensor, Generator], Tensor], ...]  # on the images alone
    mixing: Mixing | None

    @property
    def mixes(self) -> bool:
        """Whether targets of hard labels are ever soft. Without it each row of these is one-hot."""
        return self.mixing is not None

    def __call__(self, images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Augment uint8 images (B, 3, S, S) with labels (B,) int64 in [0, classes), or soft ones (B, classes) float32.

        Returns new uint8 images (B, 3, S, S) and targets (B, classes) float32, whose rows sum to 1, on the images'
        device. Equal generator states give equal bits. PyTorch's global generator is left as it was found.
        """
        for step in self.steps:
            images = step(images, generator)
        labels = labels.to(images.device)
        targets = labels if labels.is_floating_point() else F.one_hot(labels, self.classes).float()
        return (images, targets) if self.mixing is None else self.mixing(images, targets, generator)


def make_augmentation(names: tuple[str, ...], classes: int) -> Augmentation:
    """Return the augmentation of these `NAMES`, for labels of so many classes. Raises UsageError for unusable names.

    Each name stands for itself alone: ("cutout",) neither crops nor flips, ("default", "cutout") does.
    """
    if unknown := sorted(set(names) - set(NAMES)):
        raise UsageError(f"augmentation={list(names)}: {', '.join(unknown)} unknown; use some of {', '.join(NAMES)}.")
    if not names or len(set(names)) < len(names) or ("none" in names and len(names) > 1):
        raise UsageError(
            f"augmentation={list(names)}: give each name once, and 'none' alone where nothing is to be done; "
            f"the others are {', '.join(NAMES[1:])}."
        )
    policies = tuple(name for name in POLICIES if name in names)
    mixers = tuple(name for name in MIXERS if name in names)
    steps: list[Callable[[Tensor, Generator], Tensor]] = []
    if "default" in names:
        steps.append(augment)
    if policies:
        steps.append(Policies(policies))
    if "cutout" in names:
        steps.append(cutout)
    return Augmentation(
        names=tuple(name for name in ("default", *POLICIES, "cutout", *MIXERS) if name in names),
        classes=classes,
        steps=tuple(steps),
        mixing=Mixing(mixers, classes) if mixers else None,
    )
