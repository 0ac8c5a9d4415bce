"""Policies of operations on single images: torchvision's AutoAugment, RandAugment and AugMix, with its defaults."""

from __future__ import annotations

import torch
from torch import Tensor

from .seeding import global_draws_from

POLICIES = ("autoaugment", "randaugment", "augmix")  # in the order of application


class Policies:
    """Some of `POLICIES`, applied one after the other to every image, each with draws of its own.

    Their settings are torchvision's defaults, as in section B.2.3: AutoAugment's ImageNet policy, RandAugment's two
    operations at magnitude 9, AugMix with severity 3, three chains of depth 1 to 3 and alpha 1.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        from torchvision.transforms import v2

        make = {"autoaugment": v2.AutoAugment, "randaugment": v2.RandAugment, "augmix": v2.AugMix}
        self._transforms = [make[name]() for name in names]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Transform uint8 images (B, 3, S, S), B from 1 up, to the same shape, dtype and device.

        The images go through the CPU one by one: the draws are the same whatever their device, and at these sizes
        the calls cost more than the pixels.
        """
        moved = []
        with global_draws_from(generator):
            for image in images.cpu():
                for transform in self._transforms:
                    image = transform(image)
                moved.append(image)
        return torch.stack(moved).to(images.device)
