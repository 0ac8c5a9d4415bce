"""Batched augmentation equals torchvision's, image by image, and draws what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from diffusion_inversion.train.augment import Moves, augment, crop_and_flip, crop_padding


def images_of(batch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(1, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [8, 28, 32, 33])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_equals_torchvision_pad_crop_hflip(size: int, dtype: torch.dtype) -> None:
    images, padding = images_of(40, size).to(dtype), crop_padding(size)
    moves = Moves.draw(40, padding, torch.Generator().manual_seed(1))
    moved = crop_and_flip(images, moves, padding)
    assert moved.dtype == dtype and moved.shape == images.shape
    assert 0 < moves.flip.sum() < 40, "both branches are seen"
    for image, top, left, flip, ours in zip(
        images, moves.top.tolist(), moves.left.tolist(), moves.flip.tolist(), moved, strict=True
    ):
        theirs = TF.crop(TF.pad(image, [padding]), top, left, size, size)
        assert torch.equal(ours, TF.hflip(theirs) if flip else theirs)


def test_corner_zero_moves_the_image_down_and_right() -> None:
    image = images_of(1, 32)
    zero = torch.zeros(1, dtype=torch.int64)
    moved = crop_and_flip(image, Moves(zero, zero + 4, torch.tensor([False])), 4)
    assert torch.equal(moved[..., 4:, :], image[..., :-4, :]) and not moved[..., :4, :].any()
    moved = crop_and_flip(image, Moves(zero + 4, zero, torch.tensor([False])), 4)
    assert torch.equal(moved[..., 4:], image[..., :-4]) and not moved[..., :4].any()


def test_padding_is_four_at_32_px() -> None:
    assert [crop_padding(s) for s in (8, 28, 32, 64, 96)] == [1, 3, 4, 8, 12]


def test_corners_are_uniform_and_half_are_mirrored() -> None:
    n = 20_000
    moves = Moves.draw(n, 4, torch.Generator().manual_seed(0))
    for corner in (moves.top, moves.left):
        counts = torch.bincount(corner, minlength=9).double()
        assert len(counts) == 9
        chi2 = float(((counts - n / 9) ** 2 / (n / 9)).sum())
        assert chi2 < 26.1, "8 degrees of freedom, p = 0.001"
    assert abs(moves.flip.double().mean() - 0.5) < 3.3 * 0.5 / n**0.5
    correlations = torch.corrcoef(torch.stack([moves.top, moves.left, moves.flip]).double()).fill_diagonal_(0)
    assert correlations.abs().max() < 4 / n**0.5


def test_seed_decides() -> None:
    images = images_of(64, 32)

    def once(seed: int) -> Tensor:
        return augment(images, torch.Generator().manual_seed(seed))

    assert torch.equal(once(1), once(1)) and not torch.equal(once(1), once(2))
    assert torch.equal(images, images_of(64, 32)), "the input is left alone"
