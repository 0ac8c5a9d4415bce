"""The picture of a sweep's images: classes in turn, each image of another source, gaps where there is none."""

from __future__ import annotations

import torch
from toy import toy_images

from diffusion_inversion.sweep.pictures import COLUMNS, _strip, real_of_classes


def test_columns_are_the_classes_in_turn_and_no_image_is_there_twice() -> None:
    train = toy_images(7, 8, classes=2)  # labels 0 1 0 1 0 1 0
    found = real_of_classes(train, 8)
    assert len(found) == COLUMNS
    for column, image in enumerate(found):
        if column < 7:
            assert image is not None and torch.equal(image, train.images[column])
        else:
            assert image is None


def test_smaller_images_are_enlarged_by_whole_pixels_and_gaps_are_white() -> None:
    small, large = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2), torch.zeros(3, 4, 4, dtype=torch.uint8)
    strip = _strip([small, None, large], 4)
    assert strip.shape == (3, 4, 14)
    assert torch.equal(strip[:, ::2, 0:4:2], small) and torch.equal(strip[:, 1::2, 1:4:2], small)
    assert (strip[:, :, 4:10] == 255).all() and torch.equal(strip[:, :, 10:], large)
