"""What a variant is made from: partner, blend, noise, unconditional vector, resolution; and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import made_up
from pydantic import ValidationError
from torch import Tensor
from toy import RESOLUTION, WIDTH

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.errors import UsageError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import Embeddings
from diffusion_inversion.randomness import generator_for, shuffled
from diffusion_inversion.sample.denoising import denoise
from diffusion_inversion.sample.perturb import interpolate, slerp
from diffusion_inversion.sample.sampling import made_from, metadata_row, reconstruct, sample
from diffusion_inversion.sample.variants import (
    VariantPlan,
    draw_images,
    pick_partner,
    plan_variant,
    unconditional_tokens,
)

QUICK = {"variants": 1, "inference_steps": 2, "guidance_scales": (2.0,)}


@pytest.fixture(scope="module")
def embeddings(generator: Generator) -> Embeddings:
    """Seven images: rows 0, 2, 4 are cats, 1, 3, 5 dogs, 6 the only owl."""
    stream = torch.Generator().manual_seed(0)
    return made_up(generator, torch.randn(2, 7, 5, WIDTH, generator=stream), [0, 1, 0, 1, 0, 1, 2])


def plans(embeddings: Embeddings, generator: Generator, variants: int = 30, **changes: Any) -> list[VariantPlan]:
    settings = SampleSettings(**changes)
    rows = range(len(embeddings))
    return [plan_variant(embeddings, generator, settings, row, v) for row in rows for v in range(variants)]


def test_a_strength_that_is_not_found_yet_is_refused(generator: Generator, embeddings: Embeddings) -> None:
    with pytest.raises(UsageError, match="noise_strength=auto: found for the images of a run alone"):
        plans(embeddings, generator, noise_strength="auto")


def test_partners_follow_the_policy(generator: Generator, embeddings: Embeddings) -> None:
    labels = embeddings.labels.tolist()
    for plan in plans(embeddings, generator, partner="same-class"):
        assert labels[plan.partner] == labels[plan.source]
        assert (plan.partner == plan.source) == (plan.source == 6), "alone in its class: itself"
    others: dict[int, set[int]] = {row: set() for row in range(7)}
    for plan in plans(embeddings, generator, variants=60, partner="other-class"):
        others[plan.source].add(plan.partner)
    assert others == {row: {k for k in range(7) if labels[k] != labels[row]} for row in range(7)}


def test_reference_partners_stay_in_the_class_where_the_group_has_five_others_of_it(generator: Generator) -> None:
    """Classes of 6, 5 and 3 images in one group: 5, 4 and 2 others. Then in groups of 4."""
    labels = [0] * 6 + [1] * 5 + [2] * 3
    many = made_up(generator, torch.randn(1, 14, 5, WIDTH), labels)
    found = plans(many, generator, variants=100, partner="reference")
    assert all(plan.partner != plan.source for plan in found)
    for label, share in ((0, 1.0), (1, 0.8), (2, 0.4)):
        kin = [labels[plan.partner] == label for plan in found if labels[plan.source] == label]
        assert sum(kin) / len(kin) == pytest.approx(share, abs=4 * (0.25 / len(kin)) ** 0.5)
    groups = {row: many.group(row, 4, 0) for row in range(14)}
    assert sorted(len(rows) for rows in set(groups.values())) == [2, 4, 4, 4]
    for plan in plans(many, generator, variants=20, partner="reference", group_size=4):
        assert plan.partner in groups[plan.source] and plan.partner != plan.source


def test_choosing_partners_does_not_slow_down_with_the_number_of_images(generator: Generator) -> None:
    """A search through the class for each choice would make 50,000 images some 100 times as slow as 500."""

    def seconds(count: int, policy: str) -> float:
        many = made_up(generator, torch.zeros(1, count, 1, 1), [row % 2 for row in range(count)])
        stream, settings = torch.Generator().manual_seed(0), SampleSettings(partner=policy)
        pick_partner(many, settings, 0, 1, stream)  # what is looked up later
        found = []
        for _ in range(3):
            start = time.process_time()
            for choice in range(2000):
                pick_partner(many, settings, count - 1 - choice % 500, 1, stream)
            found.append(time.process_time() - start)
        return min(found)

    for policy in ("same-class", "other-class", "reference"):
        assert seconds(50_000, policy) < 5 * seconds(500, policy) + 0.02, policy


def test_a_reference_partner_of_a_run_with_one_image_is_itself(generator: Generator) -> None:
    alone = made_up(generator, torch.randn(1, 1, 5, WIDTH), [0])
    for policy in ("reference", "nearest", "same-class"):
        assert plan_variant(alone, generator, SampleSettings(partner=policy), 0, 0).partner == 0


def test_the_nearest_partner_is_of_the_same_class_and_the_step_drawn(generator: Generator) -> None:
    """On a line; the nearest of all is of the other class, and the steps disagree."""
    places = torch.tensor([[0.0, 0.1, 1.0, 5.0], [0.0, 0.1, 9.0, 5.0]])
    vectors = places[:, :, None, None] * torch.ones(5, WIDTH)
    found = plans(made_up(generator, vectors, [0, 1, 0, 0]), generator, partner="nearest", kept_steps=(1, 2))
    assert {(p.source, p.step, p.partner) for p in found} == {
        (0, 1, 2), (2, 1, 0), (3, 1, 2), (1, 1, 1), (0, 2, 3), (2, 2, 3), (3, 2, 2), (1, 2, 1),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["lerp", "slerp"])
@pytest.mark.parametrize("policy", ["same-class", "nearest", "other-class", "reference"])
def test_alpha_zero_is_the_vector_and_one_the_partners(
    generator: Generator, embeddings: Embeddings, kind: str, policy: str
) -> None:
    fixed = {"noise_strength": 0.0, "interpolation_kind": kind, "partner": policy}
    for alpha in (0.0, 1.0):
        for plan in plans(embeddings, generator, variants=2, interpolation=alpha, **fixed):
            row = plan.partner if alpha else plan.source
            torch.testing.assert_close(plan.embedding, embeddings.at(plan.step)[row], rtol=1e-4, atol=1e-5)


def test_the_noise_of_variants_has_mean_zero_and_standard_deviation_lambda(
    generator: Generator, embeddings: Embeddings
) -> None:
    drawn = plans(embeddings, generator, variants=100, noise_strength=0.5, interpolation=0.0)
    added = torch.stack([plan.embedding - embeddings.at()[plan.source] for plan in drawn])
    count = added.numel()  # 112,000
    assert abs(float(added.mean())) < 4 * 0.5 / count**0.5
    assert float(added.var()) == pytest.approx(0.25, rel=4 * (2 / count) ** 0.5)
    between = torch.corrcoef(torch.stack([added[0].flatten(), added[1].flatten()]))[0, 1]
    assert abs(float(between)) < 4 / added[0].numel() ** 0.5, "each variant has noise of its own"


def test_the_label_of_a_variant_is_soft_where_the_partner_is_of_another_class(
    generator: Generator, embeddings: Embeddings
) -> None:
    for policy in ("other-class", "reference", "same-class", "nearest"):
        settings = SampleSettings(partner=policy, interpolation=0.25)
        for row in range(7):
            plan = plan_variant(embeddings, generator, settings, row, 0)
            made = metadata_row(embeddings, generator, settings, plan)
            assert made["label"] == int(embeddings.labels[row])
            assert made["partner_label"] == int(embeddings.labels[plan.partner])
            assert made["label_weight"] == (0.75 if policy == "other-class" else 1.0)


def test_a_row_names_the_group_size_where_groups_matter(generator: Generator, embeddings: Embeddings) -> None:
    for changes, found in (
        ({}, None),
        ({"partner": "reference", "group_size": 4}, 4),
        ({"unconditional": "group-mean"}, 100),
        ({"partner": "nearest", "unconditional": "class-mean"}, None),
    ):
        settings = SampleSettings.model_validate(changes)
        plan = plan_variant(embeddings, generator, settings, 0, 0)
        assert metadata_row(embeddings, generator, settings, plan)["group_size"] == found


def test_the_unconditional_vector(generator: Generator, embeddings: Embeddings) -> None:
    drawn = plans(embeddings, generator, variants=2, kept_steps=(1, 2))
    at = embeddings.vectors

    def found(**changes: Any) -> Tensor:
        return unconditional_tokens(embeddings, generator, drawn, SampleSettings(**changes))

    members = {0: [0, 2, 4], 1: [1, 3, 5], 2: [6]}
    order = [embeddings.ids.index(i) for i in shuffled(embeddings.ids, 0)]
    assert order != sorted(order)
    groups = {row: order[:4] if row in order[:4] else order[4:] for row in order}
    for plan, mean, own, group in zip(
        drawn,
        found(),
        found(unconditional="class-mean"),
        found(unconditional="group-mean", group_size=4),
        strict=True,
    ):
        vectors = at[plan.step - 1]
        torch.testing.assert_close(mean, vectors.mean(0))
        torch.testing.assert_close(own, vectors[members[int(embeddings.labels[plan.source])]].mean(0))
        torch.testing.assert_close(group, vectors[groups[plan.source]].mean(0))
    torch.testing.assert_close(found(unconditional="group-mean"), found(), rtol=1e-4, atol=1e-5)
    assert torch.equal(found(unconditional="zero"), torch.zeros(len(drawn), 5, WIDTH))
    empty = found(unconditional="empty")
    assert torch.equal(empty, generator.text_tokens([""])[:, :5].expand(len(drawn), -1, -1))


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_the_first_tokens_of_the_empty_prompt_are_those_of_the_prompt_cut_to_them(
    checkpoint: Path, generator: Generator, count: int
) -> None:
    """As the reference code cuts it: `max_length` of the tokenizer is the number of learned tokens."""
    from transformers import CLIPTextModel, CLIPTokenizer

    encoder = CLIPTextModel.from_pretrained(checkpoint, subfolder="text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint, subfolder="tokenizer")
    cut = tokenizer([""], padding="max_length", max_length=count, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = encoder(cut)[0]
    assert theirs.shape[1] == count
    torch.testing.assert_close(generator.text_tokens([""])[:, :count], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "blend"), [("lerp", interpolate), ("slerp", slerp)])
def test_the_kind_of_interpolation_is_the_one_asked_for(
    generator: Generator, embeddings: Embeddings, kind: str, blend: Callable[[Tensor, Tensor, float], Tensor]
) -> None:
    for plan in plans(embeddings, generator, 2, interpolation_kind=kind, interpolation=0.3, noise_strength=0.0):
        vectors = embeddings.at(plan.step)
        torch.testing.assert_close(plan.embedding, blend(vectors[plan.source], vectors[plan.partner], 0.3))


def test_drawing_is_told_where_to_guide(generator: Generator, embeddings: Embeddings) -> None:
    """Guided nowhere but in a stretch between two steps, an image is that of scale 1."""
    (plain,), (guided,), (between,) = (
        draw_images(embeddings, generator, plans(embeddings, generator, **changes)[:1], SampleSettings(**changes))
        for changes in (
            QUICK | {"guidance_scales": (1.0,)}, QUICK | {"guidance_scales": (4.0,)},
            QUICK | {"guidance_scales": (4.0,), "guidance_interval": (0.7, 0.75)},
        )
    )  # fmt: skip
    torch.testing.assert_close(between, plain)
    assert float((guided - plain).abs().max()) > 1e-3


def test_the_class_mean_is_the_sources_whatever_the_partners_class(
    generator: Generator, embeddings: Embeddings
) -> None:
    drawing = {"partner": "other-class", "unconditional": "class-mean"}
    found = plans(embeddings, generator, 3, **drawing)
    labels = embeddings.labels
    assert all(labels[plan.partner] != labels[plan.source] for plan in found)
    means = unconditional_tokens(embeddings, generator, found, SampleSettings(**drawing))
    for plan, mean in zip(found, means, strict=True):
        torch.testing.assert_close(mean, embeddings.at(plan.step)[labels == labels[plan.source]].mean(0))


@pytest.mark.parametrize("name", ["mean", "class-mean", "group-mean", "empty", "zero"])
def test_images_depend_on_the_unconditional_vector_only_with_guidance(
    generator: Generator, embeddings: Embeddings, name: str
) -> None:
    for scale, same in ((1.0, True), (3.0, False)):
        drawn = []
        for kind in (name, "zero" if name != "zero" else "mean"):
            settings = SampleSettings(**QUICK | {"guidance_scales": (scale,)}, unconditional=kind)
            made = [plan_variant(embeddings, generator, settings, row, 0) for row in range(2)]
            drawn.append(draw_images(embeddings, generator, made, settings))
        assert torch.equal(*drawn) == same


def test_eta_does_not_depend_on_the_batch(generator: Generator, embeddings: Embeddings, tmp_path: Path) -> None:
    settings = SampleSettings(**QUICK | {"variants": 2}, scheduler="ddim", eta=1.0, batch_size=14)
    whole = sample(embeddings, generator, tmp_path / "whole", settings)
    parts = sample(embeddings, generator, tmp_path / "parts", settings.model_copy(update={"batch_size": 3}))
    assert parts.ids == whole.ids
    assert int((parts.images.int() - whole.images.int()).abs().max()) <= 1  # batches differ: rounding only
    still = sample(embeddings, generator, tmp_path / "still", settings.model_copy(update={"eta": 0.0}))
    assert int((still.images.int() - whole.images.int()).abs().max()) > 1
    assert len(set(whole.hashes)) == 14


def test_eta_has_noise_of_its_own_at_each_attempt(generator: Generator, embeddings: Embeddings) -> None:
    """The same plan at another attempt differs by the sampler's noise alone; the first attempt's stream is plain."""
    settings = SampleSettings(**QUICK, scheduler="ddim", eta=1.0)
    first = plan_variant(embeddings, generator, settings, 0, 3)
    assert (first.attempt, plan_variant(embeddings, generator, settings, 0, 3, 2).attempt) == (0, 2)
    again, other = (draw_images(embeddings, generator, [replace(first, attempt=n)], settings) for n in (0, 1))
    assert torch.equal(draw_images(embeddings, generator, [first], settings), again)
    assert not torch.allclose(other, again, atol=1e-2)
    still = settings.model_copy(update={"eta": 0.0})
    plain = [draw_images(embeddings, generator, [replace(first, attempt=n)], still) for n in (0, 1)]
    assert torch.equal(*plain)
    latents = denoise(
        generator, first.initial_noise[None], first.embedding[None], embeddings.mean(first.step)[None],
        torch.tensor([first.guidance_scale]), "ddim", settings.inference_steps, eta=1.0,
        streams=[generator_for(settings.seed, "eta", embeddings.ids[0], 3)],
    )  # fmt: skip
    assert torch.equal(generator.decode(latents).cpu(), again)


# --- resolution -------------------------------------------------------------------------------------------------------


def test_another_resolution_is_drawn_with_a_warning(
    generator: Generator, embeddings: Embeddings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SampleSettings(**QUICK, resolution=24, image_size=24)
    plan = plan_variant(embeddings, generator, settings, 0, 0)
    assert plan.initial_noise.shape[1:] == (12, 12)
    assert sample(embeddings, generator, tmp_path / "a", settings).size == 24
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1 and "resolution=24" in warnings[0] and "learned at 16 px" in warnings[0]
    assert reconstruct(embeddings, generator, settings, [0]).shape == (1, 3, 24, 24)
    assert sample(embeddings, generator, tmp_path / "b", settings.model_copy(update={"image_size": None})).size == 16
    sample(embeddings, generator, tmp_path / "c", SampleSettings(**QUICK, resolution=16, strict=True))
    assert "warning:" not in capsys.readouterr().err.split("sample:")[-1]


def test_refusals(generator: Generator, embeddings: Embeddings, tmp_path: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(UsageError, match=match):
            sample(embeddings, generator, tmp_path, SampleSettings(**QUICK, **changes))

    refused("resolution=24, strict: .*learned at 16 px", resolution=24, strict=True)
    refused("resolution=17: not a multiple of 2", resolution=17)
    refused("image_size=17: larger than the 16 px", image_size=17)
    refused("image_size=16: larger than the 8 px", image_size=16, resolution=8)
    one = replace(embeddings, labels=torch.zeros(7, dtype=torch.int64))
    with pytest.raises(UsageError, match="partner=other-class: the vectors are of one class"):
        sample(one, generator, tmp_path, SampleSettings(**QUICK, partner="other-class"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eta": 0.5}, r"eta=0\.5: dpm\+\+ has no eta"),
        ({"eta": 1.5, "scheduler": "ddim"}, "less than or equal to 1"),
        ({"guidance_interval": (0.5, 0.5)}, "the lower first"),
        ({"guidance_interval": (0.8, 0.2)}, "the lower first"),
        ({"guidance_interval": (-0.1, 1.0)}, "in 0..1"),
        ({"guidance_interval": (0.0, 1.1)}, "in 0..1"),
        ({"guidance_interval": (0.5,)}, "Field required"),
        ({"group_size": 50}, "group_size=50: unconditional=mean and partner=same-class have no groups"),
        ({"partner": "stranger"}, "'other-class', 'context' or 'reference'"),
        ({"scheduler": "heun"}, "'ddim', 'pndm'"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SampleSettings(**changes)


# --- runs of earlier versions -----------------------------------------------------------------------------------------


def test_what_makes_other_images_is_recorded_and_what_does_not_is_not(
    generator: Generator, embeddings: Embeddings
) -> None:
    plain = made_from(embeddings, generator, SampleSettings(), None)
    assert set(plain["settings"]) == SampleSettings.model_fields.keys() - {
        "variants",
        "balance",
        "strict",
        "safety_checker",
        "timestep_spacing",
        "storage",
    }
    packed = made_from(embeddings, generator, SampleSettings(storage="parquet"), None)
    assert packed["settings"] == plain["settings"] | {"storage": "parquet"}
    assert made_from(embeddings, generator, SampleSettings(resolution=RESOLUTION, strict=True), None) == plain
    assert made_from(embeddings, generator, SampleSettings(resolution=8), None)["settings"]["resolution"] == 8


def test_a_grid_takes_every_combination_in_turn(generator: Generator, embeddings: Embeddings) -> None:
    """And variant k is the same whatever the others: more may be added. At random they are drawn for each image."""
    grid = SampleSettings(kept_steps=(1, 2), guidance_scales=(2.0, 3.0, 4.0), combinations="grid", variants=12)

    def drawn(settings: SampleSettings, row: int) -> list[tuple[int, float]]:
        made = [plan_variant(embeddings, generator, settings, row, variant) for variant in range(12)]
        return [(plan.step, plan.guidance_scale) for plan in made]

    every = [(1, 2.0), (1, 3.0), (1, 4.0), (2, 2.0), (2, 3.0), (2, 4.0)]
    assert drawn(grid, 0) == drawn(grid, 1) == every * 2
    random = grid.model_copy(update={"combinations": "random"})
    assert drawn(random, 0) != drawn(random, 1)
    last = grid.model_copy(update={"kept_steps": ()})
    assert {step for step, _ in drawn(last, 0)} == {embeddings.steps[-1]}
    one, other = (plan_variant(embeddings, generator, grid, 0, variant) for variant in (0, 6))
    assert not torch.equal(one.initial_noise, other.initial_noise) and not torch.equal(one.embedding, other.embedding)
