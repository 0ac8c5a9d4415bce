"""The named augmentations: torchvision's images for torchvision's seeds, targets that say what the pixels hold."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from diffusion_inversion.errors import UsageError
from diffusion_inversion.train.augment import NAMES, augment, crop_padding, make_augmentation
from diffusion_inversion.train.augment.cutout import cutout, erase_squares, square_side

COMBINED = ("default", "autoaugment", "randaugment", "augmix", "cutout", "mixup", "cutmix")  # order of application
CASES = [*((name,) for name in NAMES), COMBINED, ("mixup", "cutout", "default")]
TORCHVISION = {
    "autoaugment": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET),
    "randaugment": lambda: v2.RandAugment(num_ops=2, magnitude=9, num_magnitude_bins=31),
    "augmix": lambda: v2.AugMix(severity=3, mixture_width=3, chain_depth=-1, alpha=1.0),
}


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def batch(count: int = 12, size: int = 16, classes: int = 5) -> tuple[Tensor, Tensor]:
    images = torch.randint(1, 256, (count, 3, size, size), dtype=torch.uint8, generator=seeded(0))
    return images, torch.arange(count) % classes


def levels(count: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """One grey level and one class of its own for each image: a pixel tells whose it is."""
    return (torch.arange(count, dtype=torch.uint8) * 10)[:, None, None, None].expand(-1, 3, size, size), torch.arange(
        count
    )


def lent_seed(generator: Generator) -> int:
    """The seed that torchvision's transforms are given: one draw."""
    return int(torch.randint(2**63 - 1, (), generator=generator))


@pytest.mark.parametrize("names", CASES)
def test_equal_states_give_equal_bits_and_nothing_else_matters(names: tuple[str, ...]) -> None:
    images, labels = batch()
    kept = images.clone()
    augmentation = make_augmentation(names, 5)
    results = []
    for noise in (1, 2):  # the global generators: neither read nor moved
        torch.manual_seed(noise)
        random.seed(noise)
        np.random.seed(noise)
        generator = seeded(7)
        out = [augmentation(images, labels, generator) for _ in range(3)]
        assert torch.initial_seed() == noise and torch.equal(torch.get_rng_state(), seeded(noise).get_state())
        assert random.random() == random.Random(noise).random()
        assert np.random.random() == np.random.RandomState(noise).random()
        results.append((out, generator.get_state()))
    (first, end), (second, other_end) = results
    assert torch.equal(end, other_end) and torch.equal(images, kept)
    for (pixels, targets), (again, same) in zip(first, second, strict=True):
        assert torch.equal(pixels, again) and torch.equal(targets, same)
        assert pixels.dtype == torch.uint8 and pixels.shape == images.shape
        assert targets.dtype == torch.float32 and torch.allclose(targets.sum(1), torch.ones(len(images)))
    assert torch.equal(first[0][0], first[1][0]) == (names == ("none",)), "each call draws anew"
    if augmentation.mixes:
        assert any(not torch.equal(targets.argmax(1), labels) or (targets.max(1)[0] < 1).any() for _, targets in first)
    else:
        assert all(torch.equal(targets, torch.eye(5)[labels]) for _, targets in first)


def test_default_keeps_its_random_stream() -> None:
    # Corners, then flips, and nothing else is drawn: classifiers trained before keep their bits.
    images, labels = batch(40, 32)
    ours, by_hand, old = seeded(3), seeded(3), seeded(3)
    moved, _ = make_augmentation(("default",), 5)(images, labels, ours)
    padding = crop_padding(32)
    top, left = torch.randint(0, 2 * padding + 1, (2, 40), generator=by_hand)
    flip = torch.rand(40, generator=by_hand) < 0.5
    for image, t, x, f, out in zip(images, top.tolist(), left.tolist(), flip.tolist(), moved, strict=True):
        cropped = VF.crop(VF.pad(image, [padding]), t, x, 32, 32)
        assert torch.equal(out, VF.horizontal_flip(cropped) if f else cropped)
    assert torch.equal(moved, augment(images, old))
    assert torch.equal(ours.get_state(), by_hand.get_state()) and torch.equal(ours.get_state(), old.get_state())


@pytest.mark.parametrize("name", TORCHVISION)
def test_policies_are_torchvisions_image_by_image(name: str) -> None:
    images, labels = batch(30)
    ours, _ = make_augmentation((name,), 5)(images, labels, seeded(5))
    transform = TORCHVISION[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lent_seed(seeded(5)))
        theirs = torch.stack([transform(image) for image in images])
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, images)


@pytest.mark.parametrize("name", TORCHVISION)
def test_policies_draw_for_each_image(name: str) -> None:
    image = batch(1)[0].expand(40, -1, -1, -1)
    ours, _ = make_augmentation((name,), 2)(image, torch.zeros(40, dtype=torch.int64), seeded(1))
    assert len({out.numpy().tobytes() for out in ours}) > 10


def test_randaugment_has_the_papers_14_operations_and_autoaugment_25_subpolicies() -> None:
    assert len(v2.RandAugment()._AUGMENTATION_SPACE) == 14 and len(v2.AutoAugment()._policies) == 25


@pytest.mark.parametrize(("size", "side"), [(8, 1), (28, 3), (32, 4), (96, 12), (4, 1)])
def test_cutout_erases_one_square_of_an_eighth(size: int, side: int) -> None:
    assert square_side(size) == side
    images = torch.randint(1, 256, (200, 3, size, size), dtype=torch.uint8, generator=seeded(2))
    out, _ = make_augmentation(("cutout",), 2)(images, torch.zeros(200, dtype=torch.int64), seeded(3))
    corners = torch.randint(0, size - side + 1, (2, 200), generator=seeded(3)).T.tolist()
    for image, erased, (top, left) in zip(images, out, corners, strict=True):
        gone = (erased == 0).nonzero()
        assert len(gone) == 3 * side * side
        assert gone.min(0)[0].tolist() == [0, top, left]
        assert gone.max(0)[0].tolist() == [2, top + side - 1, left + side - 1]
        assert torch.equal(erased, VF.erase(image, top, left, side, side, v=torch.zeros(3, 1, 1, dtype=torch.uint8)))


def test_cutout_reaches_every_place_equally() -> None:
    n, size = 20_000, 10
    kept = cutout(torch.ones(n, 1, size, size), seeded(0))[:, 0]
    counts = (kept == 0).sum(0).double()
    assert square_side(size) == 1 and ((counts - n / 100) ** 2 / (n / 100)).sum() < 148.2, "99 degrees, p = 0.001"


def test_cutout_squares_are_not_transposed() -> None:
    out = erase_squares(torch.ones(1, 3, 16, 16), torch.tensor([1]), torch.tensor([9]), 2)
    assert not out[0, :, 1:3, 9:11].any() and out.sum() == 3 * (256 - 4)


def partners_of(targets: Tensor) -> Tensor:
    """Whose second share each row holds, where image k alone has class k: (B,) int64."""
    count = len(targets)
    others = targets.masked_fill(torch.eye(count, dtype=torch.bool), 0)
    assert ((others > 0).sum(1) == 1).all(), "a partner, and never the image itself"
    return others.argmax(1)


def test_mixup_targets_are_the_shares_of_the_blend() -> None:
    images, labels = levels(20)
    values = images[:, 0, 0, 0].double()
    augmentation, generator, shares = make_augmentation(("mixup",), 20), seeded(0), []
    across = 0
    for _ in range(300):
        mixed, targets = augmentation(images, labels, generator)
        partners = partners_of(targets)
        assert sorted(partners.tolist()) == list(range(20)), "a permuted batch"
        across += int(((partners < 10) != (labels < 10)).sum())
        own = targets.diagonal()
        assert torch.allclose(own, own[:1].expand(20)), "one share for the batch"
        blend = targets.double() @ values  # own share of own pixel, partner's share of the partner's
        assert ((mixed.double() - blend[:, None, None, None]).abs() <= 0.5 + 1e-3).all(), "to the nearest value"
        shares.append(float(own[0]))
    ordered = torch.tensor(sorted(shares)).double()
    assert (ordered - (torch.arange(300) + 0.5) / 300).abs().max() < 1.95 / 300**0.5, "Beta(1, 1), KS p = 0.001"
    assert abs(across / 6000 - 10 / 19) < 0.03, "partners come from the other half as often as chance says"


def test_cutmix_targets_are_the_shares_of_the_pixels() -> None:
    images, labels = levels(20)
    augmentation, generator, shares = make_augmentation(("cutmix",), 20), seeded(0), []
    for _ in range(300):
        mixed, targets = augmentation(images, labels, generator)
        owners = (mixed // 10).long()
        pixels = torch.stack([(owners == k).double().mean((1, 2, 3)) for k in range(20)], dim=1)
        assert torch.allclose(targets.double(), pixels, rtol=0, atol=1e-6)
        foreign = owners[:, 0] != labels[:, None, None]
        assert (foreign == foreign[0]).all(), "one rectangle for the batch"
        if foreign.any():
            partners = partners_of(targets)
            assert torch.equal(owners[:, 0][foreign], partners[:, None, None].expand_as(foreign)[foreign])
            rows, columns = foreign[0].any(1).sum(), foreign[0].any(0).sum()
            assert rows * columns == foreign[0].sum() and foreign[0].any(1).diff().sum() <= 2
        shares.append(float(foreign[0].double().mean()))
    assert 0.25 < sum(shares) / 300 < 0.5, "half by Beta(1, 1), less what hangs over the edge"


@pytest.mark.parametrize(("name", "transform"), [("mixup", v2.MixUp), ("cutmix", v2.CutMix)])
def test_mixing_is_torchvisions_on_a_shuffled_batch(name: str, transform: type) -> None:
    images, labels = batch()
    mixed, targets = make_augmentation((name,), 5)(images, labels, seeded(4))
    generator = seeded(4)
    order = torch.randperm(len(images), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lent_seed(generator))
        theirs, their_targets = transform(alpha=1.0, num_classes=5)(images[order].double(), labels[order])
    assert torch.equal(mixed[order], theirs.round().to(torch.uint8))
    assert torch.allclose(targets[order], their_targets)


def test_of_mixup_and_cutmix_each_batch_gets_one() -> None:
    images, labels = levels(8)
    augmentation, generator, blended = make_augmentation(("cutmix", "mixup"), 8), seeded(0), 0
    assert augmentation.names == ("mixup", "cutmix")
    for _ in range(200):
        mixed, targets = augmentation(images, labels, generator)
        constant = bool((mixed == mixed[:, :1, :1, :1]).all())
        blended += constant
        if not constant:
            assert (mixed % 10 == 0).all(), "a rectangle of whole pixels"
        assert ((targets > 0).sum(1) <= 2).all()
    # An empty rectangle looks like a blend too: few are.
    assert 75 < blended < 135


def test_a_batch_of_one_has_no_partner() -> None:
    images, labels = batch(1)
    for name in ("mixup", "cutmix"):
        mixed, targets = make_augmentation((name,), 5)(images, labels, seeded(0))
        assert torch.equal(mixed, images) and torch.allclose(targets, torch.eye(5)[labels])


def test_combinations_apply_in_the_stated_order() -> None:
    images, labels = batch()
    combined = make_augmentation(("mixup", "cutout", "randaugment", "default"), 5)
    assert combined.names == ("default", "randaugment", "cutout", "mixup")
    assert make_augmentation(tuple(reversed(COMBINED)), 5).names == COMBINED
    ours, targets = combined(images, labels, seeded(9))
    generator, expected = seeded(9), images
    for name in ("default", "randaugment", "cutout"):
        expected, _ = make_augmentation((name,), 5)(expected, labels, generator)
    expected, soft = make_augmentation(("mixup",), 5)(expected, labels, generator)
    assert torch.equal(ours, expected) and torch.equal(targets, soft)


def test_two_policies_follow_one_another_on_each_image() -> None:
    images, labels = batch()
    ours, _ = make_augmentation(("augmix", "autoaugment"), 5)(images, labels, seeded(6))
    first, second = TORCHVISION["autoaugment"](), TORCHVISION["augmix"]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lent_seed(seeded(6)))
        theirs = torch.stack([second(first(image)) for image in images])
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cutmixx",), "cutmixx unknown; use some of none, default"),
        ((), "'none' alone"),
        (("none", "default"), "'none' alone"),
        (("mixup", "mixup"), "each name once"),
    ],
)
def test_unusable_names_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_augmentation(names, 5)
