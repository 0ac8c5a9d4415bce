"""Mixing of the images of a batch and of their targets: torchvision's MixUp and CutMix."""

from __future__ import annotations

import torch
from torch import Tensor

from .seeding import global_draws_from

MIXERS = ("mixup", "cutmix")


class Mixing:
    """Mix each image with a partner from its batch; one share, or one rectangle, for the batch, from Beta(1, 1).

    Section B.2.3: "combining a permuted batch of inputs with the original batch". Of two methods each batch gets one,
    at even odds.
    """

    def __init__(self, names: tuple[str, ...], classes: int) -> None:
        from torchvision.transforms import v2

        make = {"mixup": v2.MixUp, "cutmix": v2.CutMix}
        mixers = [make[name](alpha=1.0, num_classes=classes) for name in names]
        self._mix = mixers[0] if len(mixers) == 1 else v2.RandomChoice(mixers)

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix uint8 images (B, 3, S, S) and float32 targets (B, classes), which stay in their order.

        Pixels are rounded to the nearest value. For CutMix the share of a label is that of its pixels, for MixUp
        the share of its image in the blend.
        """
        # torchvision pairs each image with the one before it. A batch may hold the real images first and the
        # synthetic ones after, so it is shuffled for that: partners come from all of it, and none is its own.
        order = torch.randperm(len(images), generator=generator, device=generator.device).to(images.device)
        with global_draws_from(generator):
            mixed, shares = self._mix(images[order].float(), targets[order])
        back = order.argsort()
        return mixed.round_().to(torch.uint8)[back], shares[back]
