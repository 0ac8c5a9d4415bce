"""Stage 2 against StableDiffusionPipeline, and its promises: identity seeds, guidance, resumption, a readable store."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from toy import WIDTH, toy_images

from diffusion_inversion.config.sampling import PromptSettings, SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.errors import ConfigMismatchError, DataError, PartialError, UsageError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import Embeddings
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.sample.columns import COLUMNS
from diffusion_inversion.sample.denoising import denoise
from diffusion_inversion.sample.prompting import Prompt, draw_prompts
from diffusion_inversion.sample.sampling import reconstruct, sample
from diffusion_inversion.sample.synthetic import SyntheticStore, file_name, read_synthetic
from diffusion_inversion.sample.variants import plan_variant

SETTINGS = SampleSettings(variants=2, inference_steps=3, batch_size=3, guidance_scales=(1.5, 3.0))


@pytest.fixture(scope="module")
def embeddings(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    settings = InvertSettings(steps=2, keep_steps=(1,), init="random", eval_draws=1)
    return invert(toy_images(4), generator, tmp_path_factory.mktemp("inverted"), settings)


def test_guidance_scale_one_ignores_the_unconditional_vector(generator: Generator) -> None:
    noise, c = torch.randn(2, generator.latent_channels, 8, 8), torch.randn(2, 5, WIDTH)
    one = torch.ones(2)
    a = denoise(generator, noise, c, torch.randn(2, 5, WIDTH), one, "ddim", 4)
    b = denoise(generator, noise, c, torch.zeros(2, 5, WIDTH), one, "ddim", 4)
    assert torch.equal(a, b)
    mixed = denoise(generator, noise, c, torch.zeros(2, 5, WIDTH), torch.tensor([1.0, 4.0]), "ddim", 4)
    torch.testing.assert_close(mixed[0], a[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[1], a[1], atol=1e-3)


def test_the_unconditional_vector_is_the_mean_of_all(embeddings: Embeddings) -> None:
    torch.testing.assert_close(embeddings.mean(), embeddings.vectors[-1].mean(0))
    torch.testing.assert_close(embeddings.mean(1), embeddings.vectors[0].mean(0))


def test_a_plan_depends_on_seed_source_and_variant_alone(generator: Generator, embeddings: Embeddings) -> None:
    def plan(row: int, variant: int, **changes: int) -> torch.Tensor:
        chosen = plan_variant(embeddings, generator, SETTINGS.model_copy(update=changes), row, variant)
        return torch.cat([chosen.embedding.flatten(), chosen.initial_noise.flatten()])

    assert torch.equal(plan(1, 1), plan(1, 1, batch_size=1, variants=9))
    for other in (plan(1, 0), plan(3, 1), plan(1, 1, seed=1)):
        assert not torch.equal(plan(1, 1), other)


def test_plans_use_same_class_partners_and_kept_steps(generator: Generator, embeddings: Embeddings) -> None:
    settings = SampleSettings(kept_steps=(1, 2), interpolation=1.0, noise_strength=0.0, guidance_scales=(2.0, 4.0))
    plans = [plan_variant(embeddings, generator, settings, row, v) for row in range(4) for v in range(12)]
    assert {p.step for p in plans} == {1, 2}
    assert {p.guidance_scale for p in plans} == {2.0, 4.0}
    for p in plans:
        assert p.partner == (p.source + 2) % 4  # the only other image of its class
        torch.testing.assert_close(p.embedding, embeddings.at(p.step)[p.partner])


def test_store_opens_with_hugging_face_datasets(generator: Generator, embeddings: Embeddings, tmp_path: Path) -> None:
    from datasets import load_dataset

    images = sample(embeddings, generator, tmp_path, SETTINGS)
    assert len(images) == 8 and images.size == embeddings.image_size
    folder = tmp_path / "synthetic"
    opened = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(opened) == 8 and set(COLUMNS) - {"file_name"} <= set(opened.column_names)
    assert opened[0]["image"].size == (images.size, images.size)
    table = load_dataset(
        "parquet", data_files=str(folder / "metadata.parquet"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert table.column_names == list(COLUMNS)
    rows = pq.read_table(folder / "metadata.parquet").to_pylist()
    assert {row["source_id"] for row in rows} == set(embeddings.ids)
    for row in rows:
        assert row["generator_hash"] == generator.hash
        assert row["partner_id"] != row["source_id"]
        assert (folder / row["file_name"]).parent.name == embeddings.class_names[row["label"]] == row["class_name"]
        assert row["guidance_scale"] in SETTINGS.guidance_scales


def test_resumed_and_extended_equal_uninterrupted(generator: Generator, embeddings: Embeddings, tmp_path: Path) -> None:
    whole = sample(embeddings, generator, tmp_path / "whole", SETTINGS)
    grown = tmp_path / "grown"
    sample(embeddings, generator, grown, SETTINGS.model_copy(update={"variants": 1}))
    manifest = SyntheticStore(grown, embeddings.class_names).manifest
    manifest.rewrite(manifest.records()[:1])  # killed after the first batch
    again = sample(embeddings, generator, grown, SETTINGS)
    assert again.ids == whole.ids
    assert int((again.images.int() - whole.images.int()).abs().max()) <= 1  # batches differ: rounding only


def test_what_is_not_finite_is_never_committed(
    generator: Generator, embeddings: Embeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network whose numbers run away for one source: the error names it, the unit is not kept, one before it is."""
    bad = embeddings.ids[3]
    prompts = (Prompt("dog", "a dog"), Prompt("cat", "a cat"))

    predict = generator.predict

    def overflow(*arguments: torch.Tensor) -> torch.Tensor:
        prediction = predict(*arguments)
        prediction[-1, 0, 0, 0] = torch.inf  # of the last image of a batch
        return prediction

    sample(embeddings, generator, tmp_path, SETTINGS.model_copy(update={"variants": 1, "batch_size": 4}))
    monkeypatch.setattr(generator, "predict", overflow)
    with pytest.raises(
        PartialError, match=rf"^{re.escape(bad)}: what was drawn is not finite \(scheduler=dpm\+\+, .*=3"
    ):
        sample(embeddings, generator, tmp_path, SETTINGS.model_copy(update={"batch_size": 4}))
    assert SyntheticStore(tmp_path, embeddings.class_names).count == 4
    with pytest.raises(PartialError, match=r"^cat: a cat: what was drawn is not finite"):
        draw_prompts(prompts, generator, tmp_path / "prompts", PromptSettings(variants=1, inference_steps=2))
    assert SyntheticStore(tmp_path / "prompts", ("cat", "dog")).count == 0


def test_learned_timesteps_are_recorded_and_a_run_begun_without_goes_on_without(
    generator: Generator, embeddings: Embeddings, tmp_path: Path
) -> None:
    few = SETTINGS.model_copy(update={"variants": 1})
    sample(embeddings, generator, tmp_path / "before", few)
    other = copy.copy(generator)
    other.learned = {"dpm++": {3: [990, 300, 40]}}
    grown = sample(embeddings, other, tmp_path / "before", SETTINGS)
    assert torch.equal(grown.images, sample(embeddings, generator, tmp_path / "plain", SETTINGS).images)
    learned = SETTINGS.model_copy(update={"timestep_spacing": "learned"})
    with pytest.raises(ConfigMismatchError, match=r'settings\.timestep_spacing: was absent, now "learned"'):
        sample(embeddings, other, tmp_path / "before", learned)
    with pytest.raises(UsageError, match="no timesteps for 3 steps"):
        sample(embeddings, generator, tmp_path / "lacking", learned)

    drawn = sample(embeddings, other, tmp_path / "learned", learned)
    assert drawn.ids == grown.ids and not torch.equal(drawn.images, grown.images)
    for folder, timesteps in (("before", None), ("learned", [990, 300, 40])):
        rows = pq.read_table(tmp_path / folder / "synthetic" / "metadata.parquet")["timesteps"].to_pylist()
        assert rows == [timesteps] * 8
    packed = learned.model_copy(update={"storage": "parquet"})
    assert torch.equal(sample(embeddings, other, tmp_path / "packed", packed).images, drawn.images)
    table = SyntheticStore(tmp_path / "packed", embeddings.class_names).table("timesteps")
    assert table["timesteps"].to_pylist() == [[990, 300, 40]] * 8
    other.learned = {"dpm++": {3: [990, 300, 41]}}
    with pytest.raises(ConfigMismatchError, match=r"timesteps: was \[990, 300, 40\], now \[990, 300, 41\]"):
        sample(embeddings, other, tmp_path / "learned", learned)


def test_settings_that_change_an_image_are_refused(
    generator: Generator, embeddings: Embeddings, tmp_path: Path
) -> None:
    sample(embeddings, generator, tmp_path, SETTINGS)
    with pytest.raises(ConfigMismatchError, match=r"noise_strength: was 0\.1, now 0\.2"):
        sample(embeddings, generator, tmp_path, SETTINGS.model_copy(update={"noise_strength": 0.2}))


def test_bad_requests_name_the_remedy(generator: Generator, embeddings: Embeddings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="image_size=99"):
        sample(embeddings, generator, tmp_path, SETTINGS.model_copy(update={"image_size": 99}))
    with pytest.raises(DataError, match="--keep-steps 7"):
        sample(embeddings, generator, tmp_path, SETTINGS.model_copy(update={"kept_steps": (7,)}))
    with pytest.raises(UsageError, match="dinv sample"):
        read_synthetic(tmp_path / "none", embeddings.class_names)


def test_a_changed_image_is_found(generator: Generator, embeddings: Embeddings, tmp_path: Path) -> None:
    found = sample(embeddings, generator, tmp_path, SETTINGS)
    victim = tmp_path / "synthetic" / found.ids[0]
    victim.write_bytes(victim.read_bytes() + b"x")
    with pytest.raises(DataError, match="changed since it was written"):
        read_synthetic(tmp_path, embeddings.class_names)


def test_reconstruction_has_no_perturbation(generator: Generator, embeddings: Embeddings) -> None:
    noisy = SETTINGS.model_copy(update={"noise_strength": 5.0, "interpolation": 0.9})
    drawn = reconstruct(embeddings, generator, noisy)
    assert drawn.shape == (4, 3, embeddings.resolution, embeddings.resolution)
    assert torch.equal(drawn, reconstruct(embeddings, generator, SETTINGS))
    assert torch.equal(reconstruct(embeddings, generator, SETTINGS, rows=[2])[0], drawn[2]) or (
        int((reconstruct(embeddings, generator, SETTINGS, rows=[2])[0].int() - drawn[2].int()).abs().max()) <= 1
    )


@pytest.mark.parametrize("name", ["T-shirt/top", "../../etc", ".hidden", "a\nb", "", "ünï", "x" * 300])
def test_file_names_stay_inside_their_class_folder(name: str) -> None:
    path = Path(file_name(name, f"{name}/1.png", 3))
    assert not path.is_absolute() and len(path.parts) == 2
    assert ".." not in path.parts and not path.parts[0].startswith(".")
    assert all(len(part.encode()) < 255 for part in path.parts)
    assert file_name(name, "a/1.png", 0) != file_name(name, "b/1.png", 0)


def test_reconstructions_are_of_the_last_kept_step_and_one_scale_alike(
    generator: Generator, embeddings: Embeddings
) -> None:
    several = SampleSettings(inference_steps=2, kept_steps=embeddings.steps, guidance_scales=(1.0, 4.0))
    one = {"kept_steps": (max(embeddings.steps),), "guidance_scales": (1.0,)}
    for combinations in ("random", "grid"):
        mixed = several.model_copy(update={"combinations": combinations})
        expected = reconstruct(embeddings, generator, mixed.model_copy(update=one))
        assert torch.equal(reconstruct(embeddings, generator, mixed), expected)
