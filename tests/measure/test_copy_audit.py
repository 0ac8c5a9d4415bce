"""The audit over two sets of images: planted copies are found, independent images are not, and what it says of them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from smooth_pictures import pictures
from torch import Tensor

from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.errors import DataError
from diffusion_inversion.measure.copies.auditing import audit_images
from diffusion_inversion.measure.copies.found import ANY, BINS, CopyAudit
from diffusion_inversion.measure.copies.planted import LEVELS
from diffusion_inversion.measure.copies.said import table
from diffusion_inversion.measure.copies.views import View, pixel_view

VIEWS = (pixel_view(torch.device("cpu")),)


def labelled(name: str, images: Tensor, hashes: Sequence[str] | None = None) -> LabelledImages:
    count = len(images)
    return LabelledImages(
        name=name,
        ids=tuple(f"{name}/{place:03d}.png" for place in range(count)),
        hashes=tuple(hashes or (f"{name} {place}" for place in range(count))),
        labels=torch.arange(count) % 2,
        class_names=("cat", "dog"),
        images=images,
        native_size=images.shape[-1],
    )


REAL, TEST = labelled("real", pictures(120, 0)), labelled("test", pictures(199, 1))
# The first ten are copies: three exact, mirrored, shifted by 2 px, and so on.
COPIED = torch.cat(
    [REAL.images[:3], REAL.images[3:6].flip(-1), torch.roll(REAL.images[6:10], (2, -2), (2, 3)), pictures(190, 2)]
)
MADE = labelled("made", COPIED)


def audit(
    real: LabelledImages = REAL,
    generated: LabelledImages = MADE,
    test: LabelledImages | None = TEST,
    rate: float = 0.01,
    planted: int = 0,
    sources: Sequence[str] | None = None,
    views: Sequence[View] = VIEWS,
) -> CopyAudit:
    return audit_images(
        real, generated, test, views, false_positives=rate, neighbours=10, planted=planted, seed=0, sources=sources
    )


@pytest.mark.parametrize("test", [TEST, None], ids=["test images", "left out"])
def test_copies_are_found_with_what_they_copy(test: LabelledImages | None) -> None:
    found = audit(test=test)
    assert found.flagged[:10].all() and int(found.flagged[10:].sum()) <= 6  # 1 of 190 is meant
    assert [found.nearest_row(row) for row in range(10)] == list(range(10))
    record = found.record()
    first = [one["file"] for one in record["pairs"][:10]]
    assert set(first) == {f"made/{row:03d}.png" for row in range(10)}  # in which order, rounding decides
    assert all(one["distance"] < 0.01 for one in record["pairs"][:6])
    scores = [one["score"] for one in record["pairs"]]
    assert scores == sorted(scores) and len(record["pairs"]) == record["copies"]["count"]
    assert record["null"]["kind"] == ("left out" if test is None else "test")
    assert any("left out in turn" in note for note in record["notes"]) == (test is None)


def test_a_generator_that_copies_everything_exceeds_chance_and_one_that_copies_nothing_does_not() -> None:
    everything = audit(generated=labelled("copied", REAL.images))
    assert everything.copies.value == 1.0 and everything.exceeds_chance
    nothing = audit(generated=labelled("fresh", pictures(1000, 3)))
    assert nothing.copies.value < 0.04 and not nothing.exceeds_chance


def test_a_higher_rate_flags_more_and_never_less() -> None:
    before = audit(rate=0.005).flagged
    for rate in (0.01, 0.05, 0.3):
        flagged = audit(rate=rate).flagged
        assert (flagged | ~before).all()
        before = flagged
    assert int(before.sum()) > 30


def test_views_share_the_rate() -> None:
    class_of = pixel_view(torch.device("cpu"))
    twice = audit(views=(class_of, View("again", class_of.known, class_of.query, class_of.distances)))
    assert torch.equal(twice.flagged, audit().flagged)  # what sees the same costs nothing
    blind = View("blind", class_of.known, class_of.query, lambda q, k: 1 + 0.1 * torch.rand(len(q), len(k)))
    both = audit(generated=labelled("fresh", pictures(1000, 3)), views=(class_of, blind))
    assert both.threshold.rate == 0.01 and int(both.flagged.sum()) < 40
    assert sum(int((seen.nearest.scores < both.threshold.value * seen.unit).sum()) for seen in both.views.values()) > 0
    assert audit(views=(class_of, blind)).flagged[:10].all()


def test_near_duplicates_are_no_null() -> None:
    """A test set that holds training images would push the threshold to 0, and copies would pass."""
    doubled = torch.cat([REAL.images[:5], (REAL.images[5:9].float() * 0.98).to(torch.uint8), TEST.images])
    hashes = [*REAL.hashes[:5], *(f"x{place}" for place in range(len(doubled) - 5))]
    found = audit(test=labelled("test", doubled, hashes))
    assert (found.null_dropped, found.threshold.images) == (9, 199)
    assert found.threshold.value == audit().threshold.value
    within = audit(real=labelled("real", torch.cat([REAL.images, REAL.images[:4]])), test=None)
    assert (within.null_dropped, within.threshold.images) == (8, 116)
    assert within.flagged[:10].all()


def test_sources_and_classes_have_shares_of_their_own() -> None:
    sources = [REAL.ids[row // 2 if row < 10 else 100] for row in range(200)]
    record = audit(sources=sources).record()
    assert record["by_source"]["flagged"]["real/000.png"] == 2
    assert record["by_source"]["sources"]["n"] == 6
    # Of images 0 to 9, made from rows 0 to 4, row 0 alone shows its own source.
    assert record["by_source"]["of_their_own_source"] == 1
    assert sum(one["count"] for one in record["by_class"].values()) == record["copies"]["count"]
    assert sum(one["n"] for one in record["by_class"].values()) == 200
    assert audit().record()["by_source"] is None


def test_what_was_planted_says_what_would_be_found() -> None:
    found = audit(planted=30)
    assert set(found.recall) == {"pixels", ANY} and set(found.recall[ANY]) == set(LEVELS)
    for level in ("exact", "flip", "JPEG 75", "colour 0.2", "blur 1/32"):
        one = found.recall["pixels"][level]
        assert (one.found.count, one.right, one.found.n) == (30, 30, 30), level
    record = found.record()
    view = record["views"]["pixels"]
    counts = {kind: sum(bins) for kind, bins in view["scores"].items()}
    assert counts == {"null": 199, "planted": 30 * len(LEVELS), "generated": 200}
    assert all(len(bins) == BINS for bins in view["scores"].values())
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    said = table(record)
    assert "exact" in said and "30 of 30" in said and record["generated"]["name"] in said


def test_a_null_that_is_too_small_is_said() -> None:
    few = labelled("test", pictures(20, 5))
    found = audit(test=few)
    assert found.threshold.rate == pytest.approx(1 / 21)
    (note,) = found.notes()
    assert "20 images that copy nothing are too few for 1 %" in note and "99 would do" in note


def test_images_of_different_sizes_are_compared_at_the_smaller_side() -> None:
    large = torch.nn.functional.interpolate(REAL.images.float(), size=(64, 64), mode="bilinear").to(torch.uint8)
    found = audit(real=labelled("real", large), generated=labelled("made", MADE.images))
    assert found.flagged[:6].all()
    assert found.notes() == ["Real images have 64 px, generated 32: compared at 32."]


@pytest.mark.parametrize(
    ("real", "generated", "test", "said"),
    [
        (labelled("real", pictures(4, 0)), MADE, TEST, "real: 4 images that are no near-duplicates"),
        (REAL, MADE.subset([]), TEST, "made: no images to audit"),
        (REAL, MADE, labelled("test", pictures(4, 1)), "test: 4 images that are no near-duplicates"),
    ],
)
def test_too_few_images_are_refused(
    real: LabelledImages, generated: LabelledImages, test: LabelledImages, said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        audit(real=real, generated=generated, test=test)
    assert "\n" not in str(caught.value)
