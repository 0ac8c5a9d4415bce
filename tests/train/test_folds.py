"""Folds over sources: nothing that was made from an image is trained on where that image measures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_toys import toy

from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.train.folds import FOLDS, NEVER, fold_of, split


def noise(count: int, classes: int, seed: int = 0) -> LabelledImages:
    """Images of noise, none like another, labels in turn."""
    stream = torch.Generator().manual_seed(seed)
    ids = tuple(f"{seed}/{row:03d}" for row in range(count))
    return LabelledImages(
        "noise", ids, ids, torch.arange(count) % classes, tuple("abcdefgh"[:classes]),
        torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=stream), 8,
    )  # fmt: skip


@given(st.data())
def test_a_source_and_all_that_was_made_from_it_never_meet_their_own_fold(data: st.DataObject) -> None:
    count, classes = data.draw(st.integers(2, 30)), data.draw(st.integers(1, 4))
    images = noise(count, classes)
    folds = fold_of(images)
    pairs = st.tuples(st.sampled_from(images.ids), st.sampled_from(images.ids))
    sources = data.draw(st.lists(pairs, max_size=60))
    for number in range(FOLDS):
        found = split(images, folds, sources, number)
        held = {images.ids[row] for row in found.held_out}
        seen = {images.ids[row] for row in found.training}
        made_from = {image_id for row in found.synthetic for image_id in sources[row]}
        assert held.isdisjoint(seen) and held.isdisjoint(made_from)
        assert held | seen == set(images.ids), "and nothing else is left out"
        left_out = set(range(len(sources))) - set(found.synthetic)
        assert all(held & set(sources[row]) for row in left_out)


@given(st.integers(2, 60), st.integers(1, 6))
def test_every_class_is_dealt_out_evenly_and_stays_in_every_training(count: int, classes: int) -> None:
    images = noise(count, classes)
    folds = torch.tensor(fold_of(images))
    for label in images.labels.unique():
        own = folds[images.labels == label]
        if len(own) == 1:
            assert own.tolist() == [NEVER]
            continue
        sizes = [int((own == number).sum()) for number in range(FOLDS)]
        assert sum(sizes) == len(own) and max(sizes) - min(sizes) <= 1
        assert max(sizes) < len(own), "some of the class is in every training"


def test_folds_depend_on_ids_and_not_on_the_order_of_rows() -> None:
    images = toy(30, 0)
    turned = list(reversed(range(30)))
    assert fold_of(images.subset(turned)) == tuple(reversed(fold_of(images)))
    other = replace(images, ids=tuple(f"other/{i}" for i in images.ids))
    assert fold_of(other) != fold_of(images)


def test_equal_and_nearly_equal_pictures_share_a_fold() -> None:
    images = noise(40, 2)
    copies = replace(
        images.subset(range(20)),
        ids=tuple(f"copy/{row}" for row in range(20)),
        images=(images.images[:20].int() + torch.tensor(1)).clamp(0, 255).to(torch.uint8),  # a little brighter
        hashes=tuple(images.hashes[:10]) + tuple(f"other {row}" for row in range(10)),
    )
    both = LabelledImages(
        "both", images.ids + copies.ids, images.hashes + copies.hashes, torch.cat([images.labels, copies.labels]),
        images.class_names, torch.cat([images.images, copies.images]), 8,
    )  # fmt: skip
    folds = fold_of(both)
    assert folds[40:] == folds[:20]
    assert len(set(folds)) == FOLDS


def test_a_class_of_copies_of_one_picture_is_never_held_out() -> None:
    images = noise(12, 2)
    same = replace(images, hashes=tuple("x" if label == 0 else h for h, label in zip(
        images.hashes, images.labels.tolist(), strict=True)))  # fmt: skip
    folds = torch.tensor(fold_of(same))
    assert (folds[images.labels == 0] == NEVER).all() and (folds[images.labels == 1] != NEVER).all()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), min_size=2, max_size=40), st.integers(2, 5))
def test_groups_share_a_fold_and_classes_are_spread(images: list[tuple[int, int]], count: int) -> None:
    plain = noise(len(images), 3)
    grouped = replace(
        plain, labels=torch.tensor([label for label, _ in images]), groups=tuple(f"g{group}" for _, group in images)
    )
    folds = fold_of(grouped, count)
    assert {*folds} <= {NEVER, *range(count)}
    fold_of_group = {}
    for (_, group), fold in zip(images, folds, strict=True):
        assert fold_of_group.setdefault(group, fold) == fold
    for label in {label for label, _ in images}:
        in_folds = {fold for (own, _), fold in zip(images, folds, strict=True) if own == label}
        assert len(in_folds) > 1 or in_folds == {NEVER}, "some of the class is in every training"
    turned = list(reversed(range(len(images))))
    assert fold_of(grouped.subset(turned), count) == tuple(reversed(folds))


def test_groups_of_one_image_each_are_dealt_evenly() -> None:
    images = noise(60, 2)
    folds = torch.tensor(fold_of(replace(images, groups=images.ids)))
    for label in (0, 1):
        assert folds[images.labels == label].bincount().tolist() == [6] * FOLDS


def test_a_copy_in_another_group_takes_its_group_along() -> None:
    images = noise(40, 2)
    groups = tuple(f"g{row // 4}" for row in range(40))
    copied = replace(images, hashes=(*images.hashes[:39], images.hashes[0]), groups=groups)
    folds = fold_of(copied)
    assert folds[:4] == folds[36:] and len({*folds}) == FOLDS


@pytest.mark.parametrize("number", range(FOLDS))
def test_without_synthetic_images_a_fold_has_none(number: int) -> None:
    images = toy(15, 0)
    assert split(images, fold_of(images), [], number).synthetic == ()
