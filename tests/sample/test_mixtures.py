"""Mixtures of vectors and of start noise, and guidance against the nearest other class: closed forms, then plans."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import made_up
from pydantic import ValidationError
from torch import Tensor
from toy import WIDTH

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.errors import UsageError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import Embeddings
from diffusion_inversion.invert.peers import nearest_classes, nearest_rows
from diffusion_inversion.sample.denoising import denoise
from diffusion_inversion.sample.guidance import add_rival, classifier_free_guidance
from diffusion_inversion.sample.perturb import (
    choose_several,
    circle,
    dirichlet_weights,
    interpolate,
    mix,
    move_to_class,
    slerp,
)
from diffusion_inversion.sample.sampling import check_settings, in_batches, metadata_row
from diffusion_inversion.sample.variants import VariantPlan, draw_images, plan_variant, unconditional_tokens

LABELS = [0, 1, 0, 1, 0, 1, 0, 2]  # of rows; four cats, three dogs, an owl


@pytest.fixture(scope="module")
def embeddings(generator: Generator) -> Embeddings:
    stream = torch.Generator().manual_seed(0)
    return made_up(generator, torch.randn(2, len(LABELS), 5, WIDTH, generator=stream), LABELS)


def plans(embeddings: Embeddings, generator: Generator, variants: int = 4, **changes: Any) -> list[VariantPlan]:
    settings = SampleSettings(**{"noise_strength": 0.0, **changes})
    rows = range(len(embeddings))
    return [plan_variant(embeddings, generator, settings, row, v) for row in rows for v in range(variants)]


def means_of(vectors: Tensor) -> dict[int, Tensor]:
    return {label: vectors[torch.tensor(LABELS) == label].mean(0) for label in set(LABELS)}


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_a_circle_has_cosine_and_sine_for_weights_about_the_centre() -> None:
    own, partner, centre = torch.eye(3, dtype=torch.float64)
    for alpha, weights in ((0.0, (1, 0)), (1.0, (0, 1)), (-1.0, (0, -1)), (1 / 3, (3**0.5 / 2, 0.5))):
        found = circle(centre + own, centre + partner, centre, alpha)
        torch.testing.assert_close(found, weights[0] * own + weights[1] * partner + centre)


@given(st.floats(-1, 1), st.integers(2, 9))
def test_a_circle_keeps_the_spread_of_a_class(alpha: float, count: int) -> None:
    """Over all pairs of a class: its mean square, but for what two of few have in common, 1 / (count - 1)."""
    vectors = torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    mean = vectors.mean(0)
    pairs = [circle(a, b, mean, alpha) - mean for a, b in itertools.permutations(vectors, 2)]
    kept = torch.stack(pairs).square().sum(1).mean() / (vectors - mean).square().sum(1).mean()
    assert float(kept) == pytest.approx(1 - math.sin(alpha * math.pi) / (count - 1), abs=1e-9)


@given(st.floats(0, 1), st.integers(2, 8), st.integers(0, 2**31))
def test_dirichlet_weights_are_shares(alpha: float, count: int, seed: int) -> None:
    weights = dirichlet_weights(alpha, count, torch.Generator().manual_seed(seed))
    assert len(weights) == count and min(weights) >= 0 and sum(weights) == pytest.approx(1)


@pytest.mark.parametrize(("alpha", "count"), [(0.1, 2), (0.1, 3), (0.4, 5), (0.8, 3)])
def test_the_source_keeps_one_less_alpha_on_average_and_the_others_share_the_rest(alpha: float, count: int) -> None:
    stream, draws = torch.Generator().manual_seed(1), 8000
    found = torch.tensor([dirichlet_weights(alpha, count, stream) for _ in range(draws)], dtype=torch.float64)
    variance = alpha * (1 - alpha) / (count + 1)
    expected = torch.tensor([1 - alpha, *[alpha / (count - 1)] * (count - 1)], dtype=torch.float64)
    torch.testing.assert_close(found.mean(0), expected, rtol=0, atol=4 * (variance / draws) ** 0.5)
    assert float(found[:, 0].var()) == pytest.approx(variance, rel=0.1)


def test_dirichlet_weights_at_the_ends_and_where_all_are_equally_likely() -> None:
    stream = torch.Generator().manual_seed(2)
    assert dirichlet_weights(0.0, 4, stream) == (1, 0, 0, 0)
    assert dirichlet_weights(1.0, 2, stream) == (0, 1)
    own = [dirichlet_weights(2 / 3, 3, stream)[0] for _ in range(4000)]
    for bound in (0.2, 0.5, 0.8):  # uniform on a triangle: P(w < t) = 1 - (1 - t)^2
        assert sum(w < bound for w in own) / 4000 == pytest.approx(1 - (1 - bound) ** 2, abs=0.03)


def test_a_mixture_is_the_weighted_sum() -> None:
    vectors = torch.randn(3, 5, 8)
    found = mix(vectors, (0.5, 0.3, 0.2))
    torch.testing.assert_close(found, 0.5 * vectors[0] + 0.3 * vectors[1] + 0.2 * vectors[2])


def test_a_class_that_is_moved_has_the_new_mean_and_keeps_its_differences() -> None:
    vectors, new = torch.randn(6, 5, 8), torch.randn(5, 8)
    moved = torch.stack([move_to_class(one, vectors.mean(0), new) for one in vectors])
    torch.testing.assert_close(moved.mean(0), new)
    torch.testing.assert_close(moved[0] - moved[4], vectors[0] - vectors[4])


@pytest.mark.parametrize("blend", [interpolate, slerp, lambda c, p, alpha: circle(c, p, 0.0, alpha)])
def test_below_zero_is_away_from_the_partner(blend: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """On a line between two axes: towards the partner there is more of it, away from it less than none."""
    own, partner = torch.eye(2, dtype=torch.float64)
    towards, away = blend(own, partner, 0.2), blend(own, partner, -0.2)
    assert float(away[1]) == pytest.approx(-float(towards[1])) and float(towards[1]) > 0.1
    if blend is not interpolate:
        assert float(away.norm()) == pytest.approx(1)
    else:
        torch.testing.assert_close(away, own - 0.2 * (partner - own))


def test_several_partners_differ_and_every_set_is_as_likely() -> None:
    stream, rows = torch.Generator().manual_seed(0), (7, 9, 0, 2, 3, 4, 5, 8)
    drawn = Counter(frozenset(choose_several(rows, 3, range(2, 7), 2, stream)) for _ in range(6000))
    assert set(drawn) == {frozenset(pair) for pair in itertools.combinations((0, 3, 4, 5), 2)}
    assert all(850 < count < 1150 for count in drawn.values())
    assert {frozenset(choose_several(rows, 3, range(2, 7), 9, stream)) for _ in range(9)} == {frozenset((0, 3, 4, 5))}
    assert choose_several(rows, 7, range(7, 8), 2, stream) == (8,)


def test_the_farthest_row_is_the_farthest() -> None:
    cloud = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nearest_rows(cloud, block=7, farthest=True), torch.cdist(cloud, cloud).argmax(1))
    assert nearest_rows(torch.tensor([[0.0], [1.0]]), farthest=True).tolist() == [1, 0]


def test_the_nearest_class_is_another_one_with_images() -> None:
    nan = torch.full((2,), torch.nan)
    means = torch.stack([torch.tensor([0.0, 0.0]), nan, torch.tensor([5.0, 0.0]), torch.tensor([3.0, 0.0])])
    assert nearest_classes(means) == {0: 3, 2: 3, 3: 2}


def test_a_rival_at_its_limits() -> None:
    c, u, r = torch.randn(3, 4, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(add_rival(u, r, 0.0), u)
    torch.testing.assert_close(add_rival(u, r, 1.0), r)
    torch.testing.assert_close(add_rival(u, r, 0.3), 0.7 * u + 0.3 * r)
    for weight in (0.0, 0.3, 1.0):  # both negatives the same: classifier-free guidance
        assert torch.equal(
            classifier_free_guidance(c, add_rival(u, u, weight), 3.0), classifier_free_guidance(c, u, 3.0)
        )


# --- plans ------------------------------------------------------------------------------------------------------------


def test_the_farthest_partner_is_of_the_class(generator: Generator, embeddings: Embeddings) -> None:
    for plan in plans(embeddings, generator, 1, partner="farthest", kept_steps=(1, 2)):
        vectors = embeddings.at(plan.step).flatten(1)
        distances = torch.cdist(vectors, vectors)[plan.source]
        kin = [row for row, label in enumerate(LABELS) if label == LABELS[plan.source]]
        assert plan.partner == max(kin, key=lambda row: float(distances[row]))


def test_a_circle_goes_about_the_mean_of_the_class(generator: Generator, embeddings: Embeddings) -> None:
    cosine, sine = math.cos(0.15 * math.pi), math.sin(0.15 * math.pi)
    for plan in plans(embeddings, generator, interpolation_kind="circle", interpolation=0.3, kept_steps=(1, 2)):
        vectors = embeddings.at(plan.step)
        mean = means_of(vectors)[LABELS[plan.source]]
        expected = cosine * vectors[plan.source] + sine * vectors[plan.partner] + (1 - cosine - sine) * mean
        torch.testing.assert_close(plan.embedding, expected, rtol=1e-4, atol=1e-5)


def test_a_context_is_what_sets_a_vector_of_another_class_apart(generator: Generator, embeddings: Embeddings) -> None:
    made = plans(embeddings, generator, 30, partner="context", interpolation=1.0)
    for plan in made:
        vectors, own, other = embeddings.at(), LABELS[plan.source], LABELS[plan.partner]
        assert own != other
        means = means_of(vectors)
        torch.testing.assert_close(
            plan.embedding, means[own] + vectors[plan.partner] - means[other], rtol=1e-4, atol=1e-5
        )
    assert len({plan.partner for plan in made if plan.source == 7}) == 7
    for kind in ("lerp", "slerp", "circle"):
        for plan in plans(embeddings, generator, 1, partner="context", interpolation=0.0, interpolation_kind=kind):
            torch.testing.assert_close(plan.embedding, embeddings.at()[plan.source])


def test_labels_of_contexts_and_of_what_leads_away_are_the_sources(
    generator: Generator, embeddings: Embeddings
) -> None:
    for partner, alpha, weight in (("context", 0.4, 1.0), ("other-class", -0.4, 1.0), ("other-class", 0.4, 0.6)):
        settings = SampleSettings(partner=partner, interpolation=alpha)
        plan = plan_variant(embeddings, generator, settings, 0, 0)
        row = metadata_row(embeddings, generator, settings, plan)
        assert (row["label"], row["label_weight"]) == (0, pytest.approx(weight))
        assert row["partner_label"] == LABELS[plan.partner] != 0


def test_a_dirichlet_mixture_and_its_record(generator: Generator, embeddings: Embeddings) -> None:
    """The record alone gives the vector again, whatever the size of the class."""
    settings = SampleSettings(interpolation_kind="dirichlet", interpolation=0.5, noise_strength=0.0)
    row_of = {image_id: row for row, image_id in enumerate(embeddings.ids)}
    sizes = Counter(LABELS)
    for plan in plans(embeddings, generator, 6, **settings.model_dump(exclude_unset=True)):
        row = metadata_row(embeddings, generator, settings, plan)
        ids = [row["source_id"], row["partner_id"], *(row["further_ids"] or ())]
        assert len(ids) == len(row["mixture_weights"]) == max(min(sizes[LABELS[plan.source]], 3), 2)
        assert len(set(ids)) == min(sizes[LABELS[plan.source]], 3)
        assert {LABELS[row_of[one]] for one in ids} == {LABELS[plan.source]}
        assert [embeddings.versions[row_of[one]] for one in ids[2:]] == (row["further_versions"] or [])
        expected = sum(w * embeddings.at()[row_of[one]] for w, one in zip(row["mixture_weights"], ids, strict=True))
        torch.testing.assert_close(plan.embedding, expected)
    whole = plans(embeddings, generator, 6, interpolation_kind="dirichlet", mixture_size=9)
    assert {len(plan.weights) for plan in whole if plan.source == 0} == {4}
    plain = SampleSettings()
    row = metadata_row(embeddings, generator, plain, plan_variant(embeddings, generator, plain, 0, 0))
    assert row["further_ids"] is row["further_versions"] is row["mixture_weights"] is row["rival_label"] is None


def test_shared_start_noise_is_standard_normal_and_alike_within_a_source(
    generator: Generator, embeddings: Embeddings
) -> None:
    """At 1/3 of the quarter circle the weights are cos 30 and sin 30 degrees: variants correlate by sin^2 = 1/4."""
    big = replace(embeddings, resolution=128)
    noise: dict[int, list[Tensor]] = {}
    for plan in plans(big, generator, 6, shared_noise=1 / 3):
        noise.setdefault(plan.source, []).append(plan.initial_noise.flatten())
    count = noise[0][0].numel()
    within = torch.corrcoef(torch.stack(noise[0]))
    off = within[~torch.eye(6, dtype=torch.bool)]
    assert float((off - 0.25).abs().max()) < 4.5 / count**0.5
    assert float(torch.stack(noise[0]).var()) == pytest.approx(1, abs=0.03)
    assert abs(float(torch.corrcoef(torch.stack([noise[0][0], noise[1][0]]))[0, 1])) < 4.5 / count**0.5


def test_at_one_all_variants_start_where_the_reconstruction_does_and_at_zero_as_ever(
    generator: Generator, embeddings: Embeddings
) -> None:
    shared = [plan for plan in plans(embeddings, generator, 3, shared_noise=1.0) if plan.source == 0]
    assert torch.allclose(shared[0].initial_noise, shared[2].initial_noise, atol=1e-6)
    assert not torch.allclose(shared[0].embedding, shared[2].embedding)
    settings = SampleSettings(inference_steps=2, shared_noise=0.5, noise_strength=0.5)
    ((_, image),) = in_batches(embeddings, generator, settings, [[0]])
    bare = plan_variant(
        embeddings, generator, SampleSettings(interpolation=0.0, noise_strength=0.0, shared_noise=1.0), 0, 0
    )
    expected = draw_images(embeddings, generator, [bare], settings)
    assert float((expected * 127.5 + 127.5 - image.float()).abs().max()) <= 1
    plain, turned = (plans(embeddings, generator, 1, shared_noise=share)[0] for share in (0.0, 0.4))
    assert torch.equal(plain.embedding, turned.embedding), "the variant's own stream goes on as before"
    own = shared[0].initial_noise
    angle = 0.2 * math.pi
    torch.testing.assert_close(
        turned.initial_noise, math.cos(angle) * plain.initial_noise + math.sin(angle) * own, rtol=1e-4, atol=1e-5
    )


def test_the_rival_is_the_class_with_the_nearest_mean_at_the_step(generator: Generator) -> None:
    places = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 5.0], [0.0, 9.0, 0.0, 9.0, 0.0, 9.0, 0.0, 5.0]])
    line = made_up(generator, places[:, :, None, None] * torch.ones(5, WIDTH), LABELS)
    assert line.rivals == {1: {0: 1, 1: 0, 2: 1}, 2: {0: 2, 1: 2, 2: 1}}
    made = plans(line, generator, 2, kept_steps=(1, 2), guidance_scales=(3.0,))
    for away in ("mean", "class-mean", "zero", "empty"):
        settings = SampleSettings(guidance_scales=(3.0,), unconditional=away)
        plain = unconditional_tokens(line, generator, made, settings)
        changed = settings.model_copy(update={"rival_weight": 0.25})
        for one, found, plan in zip(plain, unconditional_tokens(line, generator, made, changed), made, strict=True):
            rival = line.rivals[plan.step][LABELS[plan.source]]
            mean = line.class_mean(rival, plan.step)
            torch.testing.assert_close(found, 0.75 * one + 0.25 * mean)
            assert metadata_row(line, generator, changed, plan)["rival_label"] == rival


def test_images_are_guided_away_from_the_rival(generator: Generator, embeddings: Embeddings) -> None:
    """As `denoise` does it with the mixed vector; at weight 0 the bits are those of the mean alone."""
    settings = SampleSettings(guidance_scales=(4.0,), inference_steps=2, rival_weight=0.5)
    plan = plan_variant(embeddings, generator, settings, 0, 0)
    rival = embeddings.class_mean(embeddings.rivals[2][0])
    for weight in (0.0, 0.5):
        away = embeddings.mean() + weight * (rival - embeddings.mean())
        latents = denoise(
            generator, plan.initial_noise[None], plan.embedding[None], away[None], torch.tensor([4.0]), "dpm++", 2
        )
        changed = settings.model_copy(update={"rival_weight": weight})
        assert torch.equal(draw_images(embeddings, generator, [plan], changed), generator.decode(latents).cpu())


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"interpolation_kind": "dirichlet", "partner": "nearest"}, "dirichlet: .*but partner=nearest; use same-class"),
        ({"interpolation_kind": "dirichlet", "interpolation": -0.1}, "interpolation=-0.1 is no weight; give 0 to 1"),
        ({"interpolation_kind": "circle", "partner": "other-class"}, "circle: .*partner=other-class takes others; use"),
        ({"interpolation_kind": "circle", "partner": "reference"}, "circle: .*partner=reference takes others; use"),
        ({"mixture_size": 4}, "mixture_size=4: interpolation_kind=lerp mixes two; leave it out or use"),
        ({"mixture_size": 1, "interpolation_kind": "dirichlet"}, "greater than or equal to 2"),
        ({"rival_weight": 0.2}, "rival_weight=0.2: guidance_scales=1 leads away from nothing; leave it out or give"),
        ({"rival_weight": 1.2, "guidance_scales": (3.0,)}, "less than or equal to 1"),
        ({"shared_noise": -0.1}, "greater than or equal to 0"),
        ({"interpolation": -1.1}, "greater than or equal to -1"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SampleSettings(**changes)


@pytest.mark.parametrize(
    "settings", [SampleSettings(partner="context"), SampleSettings(rival_weight=0.5, guidance_scales=(1.0, 3.0))]
)
def test_one_class_has_no_other(generator: Generator, settings: SampleSettings) -> None:
    about = {"steps": (1,), "resolution": 16, "image_size": 16}
    check_settings(generator, settings, classes=2, **about)
    with pytest.raises(UsageError, match="the vectors are of one class"):
        check_settings(generator, settings, classes=1, **about)
