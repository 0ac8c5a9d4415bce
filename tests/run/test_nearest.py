"""The real image that is shown beside a variant is the nearest one; a page names no data set by its split."""

from __future__ import annotations

import pytest
import torch

from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.run.images import data_name
from diffusion_inversion.run.nearest import MOST_SEARCHED, nearest_real


@pytest.fixture(scope="module")
def train() -> LabelledImages:
    """Six images of 32 px, each of large blocks in random colours of its own."""
    blocks = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = blocks.repeat_interleave(8, -1).repeat_interleave(8, -2)
    names = tuple(f"class/{row}.png" for row in range(6))
    return LabelledImages("blocks", names, names, torch.zeros(6, dtype=torch.int64), ("class",), images, 32)


def test_the_nearest_is_found_and_a_copy_is_at_zero(train: LabelledImages) -> None:
    def noisy(row: int, strength: float) -> torch.Tensor:
        noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
        return (train.images[row] + strength * noise).clamp(0, 255).to(torch.uint8)

    found = nearest_real([train.images[[4, 1]], torch.stack([noisy(2, 4.0), noisy(2, 20.0)])], train)
    assert found is not None
    copies, drawn = found
    assert copies.ids == ("class/4.png", "class/1.png") and torch.equal(copies.images, train.images[[4, 1]])
    assert copies.distances == pytest.approx((0, 0), abs=1e-4)
    assert drawn.ids == ("class/2.png", "class/2.png") and 0 < drawn.distances[0] < drawn.distances[1]


def test_the_unit_is_the_mean_distance_between_two_real_images(train: LabelledImages) -> None:
    """With two real images alone their distance is the unit: d(0, 2) / d(1, 2) and d(1, 2) / d(0, 2) are inverse."""

    def distance(drawn: int, real: tuple[int, int]) -> tuple[str, float]:
        (found,) = nearest_real([train.images[[drawn]]], train.subset(real)) or ()
        return found.ids[0], found.distances[0]

    near = [distance(*given) for given in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1)))]
    a, b, c = (one for _, one in near)
    named = [image_id for image_id, _ in near]
    # Of a triangle's sides x <= y <= z two corners see x as the nearest, in units of y and of z; the third sees y / x.
    x_by_y, x_by_z, y_by_x = max(s for s in (a, b, c) if s <= 1), min(a, b, c), max(a, b, c)
    assert x_by_z <= x_by_y <= 1 <= y_by_x and x_by_y * y_by_x == pytest.approx(1, rel=1e-4)
    assert len(set(named)) < 3
    assert nearest_real([train.images[:1]], train.subset([0])) is None, "one image has no distance to another"


def test_too_many_images_are_not_searched(train: LabelledImages) -> None:
    count = MOST_SEARCHED + 1
    names = tuple(map(str, range(count)))
    many = LabelledImages(
        "many",
        names,
        names,
        torch.zeros(count, dtype=torch.int64),
        ("class",),
        torch.zeros(count, 3, 4, 4, dtype=torch.uint8),
        4,
    )
    assert nearest_real([many.images[:1]], many) is None


def test_a_folder_that_is_called_as_a_split_is_named_after_its_parent() -> None:
    assert data_name("train", "/data/birds/train") == "birds"
    assert data_name("Validation", "/data/birds/Validation/") == "birds"
    assert data_name("birds", "/data/birds") == "birds" and data_name("digits", "digits") == "digits"


@pytest.mark.parametrize("given", ["hf:/home/me/clinic/x", "hf:~/x@main?config=small", "hf:/home/me/x/train"])
def test_a_local_folder_that_is_given_as_of_the_hub_is_named_without_its_path(given: str) -> None:
    assert data_name(given, given) == "x"
    assert data_name("hf:owner/x", "hf:owner/x") == "hf:owner/x"
