"""Images from prompts: StableDiffusionPipeline's own, kept and resumed as those from vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from command_line import dinv
from harness import content
from toy import prompted

from diffusion_inversion.config.sampling import PromptSettings
from diffusion_inversion.errors import ConfigMismatchError, DataError, UsageError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.sample import prompting
from diffusion_inversion.sample.prompting import Prompt, draw_images, draw_prompts, read_prompts
from diffusion_inversion.sample.synthetic import SyntheticStore

PROMPTS = (Prompt("dog", "a dog in the snow"), Prompt("cat", "a cat"), Prompt("cat", "a small cat, asleep"))
SETTINGS = PromptSettings(variants=2, inference_steps=3, batch_size=4, guidance_scales=(2.0, 7.5))


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_equals_stable_diffusion_pipeline_with_prompts(
    generator: Generator, checkpoint: Path, name: str, guidance_scale: float
) -> None:
    """Same prompts, same noise, same scheduler: the pipeline's images to 1e-4."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config
    if name == "ddim":
        pipeline.scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    else:
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
            config, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
        )
    noise = torch.randn(3, generator.latent_channels, 8, 8)
    theirs = pipeline(
        prompt=[prompt.text for prompt in PROMPTS],
        latents=noise,
        guidance_scale=guidance_scale,
        num_inference_steps=5,
        output_type="pt",
    ).images
    draws = [prompting._PromptPlan(row, 0, guidance_scale, noise[row]) for row in range(3)]
    settings = PromptSettings.model_validate({"scheduler": name, "inference_steps": 5})
    ours = draw_images(PROMPTS, generator, draws, settings)
    torch.testing.assert_close((ours + 1) / 2, theirs, rtol=1e-4, atol=1e-4)


def test_the_folder_is_that_of_stage_2(generator: Generator, tmp_path: Path) -> None:
    images = prompted(PROMPTS, generator, tmp_path, SETTINGS)
    assert len(images) == 6 and images.class_names == ("cat", "dog") and images.size == generator.resolution
    rows = pq.read_table(tmp_path / "synthetic" / "metadata.parquet").to_pylist()
    assert {row["source_id"] for row in rows} == {f"{p.class_name}: {p.text}" for p in PROMPTS}
    for row in rows:
        assert (tmp_path / "synthetic" / row["file_name"]).parent.name == row["class_name"]
        assert row["class_name"] == row["source_id"].partition(":")[0] == images.class_names[row["label"]]
        assert row["guidance_scale"] in SETTINGS.guidance_scales and row["generator_hash"] == generator.hash


def test_resumed_and_extended_equal_uninterrupted(generator: Generator, tmp_path: Path) -> None:
    whole = prompted(PROMPTS, generator, tmp_path / "whole", SETTINGS)
    grown = tmp_path / "grown"
    draw_prompts(PROMPTS[:2], generator, grown, SETTINGS.model_copy(update={"variants": 1}))
    store = SyntheticStore(grown, ("cat", "dog"))
    store.manifest.rewrite(store.manifest.records()[:1])  # killed after the first batch
    again = prompted(PROMPTS, generator, grown, SETTINGS)
    assert again.ids == whole.ids and torch.equal(again.labels, whole.labels)
    assert int((again.images.int() - whole.images.int()).abs().max()) <= 1  # batches differ: rounding only


def test_a_unit_of_prompts_is_drawn_in_parts_where_memory_is_short(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prompted(PROMPTS, generator, tmp_path / "whole", SETTINGS)
    predict = generator.predict

    def short(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(latents) > 4:  # two images with guidance
            raise MemoryError
        return predict(latents, *rest)

    monkeypatch.setattr(generator, "predict", short)
    parts = prompted(PROMPTS, generator, tmp_path / "parts", SETTINGS)
    manifest = SyntheticStore(tmp_path / "parts", parts.class_names).manifest
    assert [(unit["count"], unit.get("at_once")) for unit in manifest.units().values()] == [(4, 2), (2, None)]
    assert int((parts.images.int() - whole.images.int()).abs().max()) <= 1  # batches differ: rounding only
    manifest.append({"event": "drop", "unit": next(iter(manifest.units()))})
    monkeypatch.undo()
    again = prompted(PROMPTS, generator, tmp_path / "parts", SETTINGS)
    assert torch.equal(again.images, parts.images), "a unit that is drawn again has the size on record"


def test_a_draw_depends_on_seed_prompt_and_variant_alone(generator: Generator, tmp_path: Path) -> None:
    def noise(row: int, variant: int, prompts: tuple[Prompt, ...] = PROMPTS, seed: int = 0) -> torch.Tensor:
        settings = SETTINGS.model_copy(update={"seed": seed})
        return prompting._plan(prompts, generator, settings, 16, row, variant, 0).initial_noise

    assert torch.equal(noise(1, 1), noise(0, 1, PROMPTS[1:]))
    for other in (noise(1, 0), noise(2, 1), noise(1, 1, seed=1)):
        assert not torch.equal(noise(1, 1), other)


def test_what_changes_an_image_is_refused(generator: Generator, tmp_path: Path) -> None:
    draw_prompts(PROMPTS, generator, tmp_path, SETTINGS)
    for change in ({"seed": 1}, {"resolution": 32}, {"inference_steps": 2}, {"guidance_scales": (2.0,)}):
        with pytest.raises(ConfigMismatchError, match=next(iter(change))):
            draw_prompts(PROMPTS, generator, tmp_path, SETTINGS.model_copy(update=change))
    with pytest.raises(ConfigMismatchError, match="class_names"):
        draw_prompts([*PROMPTS, Prompt("ant", "an ant")], generator, tmp_path, SETTINGS)
    (tmp_path / "vectors" / "embeddings").mkdir(parents=True)
    with pytest.raises(UsageError, match="a folder of their own"):
        draw_prompts(PROMPTS, generator, tmp_path / "vectors", SETTINGS)


def test_bad_requests_name_the_remedy(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"resolution=15: not a multiple of 2.*--sample-resolution 16"):
        draw_prompts(PROMPTS, generator, tmp_path, SETTINGS.model_copy(update={"resolution": 15}))
    with pytest.raises(UsageError, match="image_size=99"):
        draw_prompts(PROMPTS, generator, tmp_path, SETTINGS.model_copy(update={"image_size": 99}))
    with pytest.raises(DataError, match="both name the source 'a: b: c'"):
        draw_prompts((Prompt("a: b", "c"), Prompt("a", "b: c")), generator, tmp_path, SETTINGS)
    assert not list(tmp_path.iterdir())


def test_prompts_are_read_from_files_and_templates(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# class and prompt\ncat\ta cat\n\ndog\t a dog, {0}\tand a tab \n", encoding="utf-8")
    assert read_prompts(str(file)) == (Prompt("cat", "a cat"), Prompt("dog", "a dog, {0}\tand a tab"))
    template = read_prompts("a photo of a {class}", ("cat", "owl {x}"))
    assert template == (Prompt("cat", "a photo of a cat"), Prompt("owl {x}", "a photo of a owl {x}"))
    for text, message in (("cat a cat\n", "line 1: not class<TAB>prompt"), ("", "no prompt"), ("c\tx\nc\tx", "line 2")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_prompts(str(file))
    file.write_text("".join(f"cat\t{row:05d} {'x' * 90}\n" for row in range(42_000)))
    with pytest.raises(DataError, match=r"4,242,000 bytes, more than 4,194,304\. Split it"):
        read_prompts(str(file))
    file.write_text("a: b\tc\na\tb: c\n")
    with pytest.raises(DataError, match=r"'c' of class 'a: b' and 'b: c' of class 'a': .* the source 'a: b: c'"):
        read_prompts(str(file))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_prompts(str(file))
    with pytest.raises(UsageError, match="--classes-of"):
        read_prompts("a {class}")
    with pytest.raises(UsageError, match="no such file"):
        read_prompts(str(tmp_path / "none.txt"))


def test_the_command_draws_over_the_classes_of_a_run(checkpoint: Path, finished: Path, tmp_path: Path) -> None:
    options = ["--generator", checkpoint, "--dtype", "float32", "--variants", 2, "--inference-steps", 2]
    command = ["sample", tmp_path / "out", "--prompts", "a photo of a {class}", "--classes-of", finished, *options]
    done = dinv(*command, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    classes = ["cat", "dog"]
    assert (found["images"], found["prompts"], found["blanked"]) == (2 * len(classes), len(classes), 0)
    assert sorted(path.name for path in (tmp_path / "out" / "synthetic").iterdir() if path.is_dir()) == classes
    assert dinv(*command, "--seed", 1).exit_code == 5
    drawn = content(tmp_path / "out")
    full = dinv(*command[:-4], "--variants", 10**9, *command[-2:], "--seed", 1, "--restart")
    assert full.exit_code == 7 and "nothing was computed" in full.output, full.output
    assert content(tmp_path / "out") == drawn, "what there is no room for deletes nothing"
    assert dinv(*command, "--seed", 1, "--restart").exit_code == 0
    before = content(finished)
    wrong = dinv("sample", finished, *command[2:], "--restart")
    assert wrong.exit_code == 2 and "a run of learned vectors" in wrong.output
    assert content(finished) == before, "what is refused deletes nothing"
    assert_care_of_prompts(tmp_path / "out", [*command, "--seed", 1])
    mixed = dinv(*command, "--noise-strength", 0.0)
    assert mixed.exit_code == 2 and "--noise-strength: of learned vectors" in mixed.output
    assert dinv("sample", tmp_path / "nowhere").exit_code == 2
    assert dinv("sample", finished, "--resolution", 16).exit_code == 2


def assert_care_of_prompts(out: Path, command: list[object]) -> None:
    """Damage is taken out by `dinv repair`, which says that the same command draws what is missing."""
    assert dinv("verify", out).exit_code == 0
    fine = dinv("repair", out)
    assert fine.exit_code == 0 and "0 findings mended" in fine.stdout and "draws what is missing" not in fine.stdout
    before = content(out)
    picture = next((out / "synthetic").rglob("*.png"))
    picture.write_bytes(picture.read_bytes()[:-9])
    assert dinv("verify", out).exit_code == 4
    mended = dinv("repair", out, "--json")
    assert mended.exit_code == 0 and json.loads(mended.stdout)["unfinished"] == ["sample"]
    assert "The same `dinv sample --prompts` command draws what is missing" in dinv("repair", out).stdout
    assert dinv(*command).exit_code == 0
    assert dinv("verify", out).exit_code == 0 and content(out) == before


def test_what_is_drawn_over_the_classes_of_a_run_can_be_trained_with(
    checkpoint: Path, finished: Path, tmp_path: Path
) -> None:
    options = ["--generator", checkpoint, "--dtype", "float32", "--variants", 2, "--inference-steps", 1]
    file = tmp_path / "prompts.txt"
    file.write_text("dog\ta dog\ncat\ta cat\n")
    out = tmp_path / "out"
    training = ["train", out, "--architecture", "resnet20", "--train-steps", 1, "--train-batch-size", 4]
    assert dinv("sample", out, "--prompts", file, *options).exit_code == 0
    unknown = dinv(*training)
    assert unknown.exit_code == 2 and "--classes-of RUN" in unknown.output
    assert dinv("sample", out, "--prompts", file, "--classes-of", finished, *options).exit_code == 0
    done = dinv(*training, "--json")
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["arms"]) == ["real", "prompted", "real+prompted"]
    page, record = (out / "report.html").read_text(), json.loads((out / "run.json").read_text())
    assert "Did prompted images help" in page and record["generator"]["hash"] in page
    assert record["stages"]["sample"]["images"] == 4 and "inversion_curve" not in record and "found" not in record
    rows = pq.read_table(out / "synthetic" / "metadata.parquet").to_pylist()
    assert {row["method"] for row in rows} == {"prompts"}
    before = content(out)
    assert dinv("sample", out, "--prompts", file, "--classes-of", finished, *options).exit_code == 0
    assert dinv("repair", out).exit_code == 0 and content(out) == before
    fewer = [*options[:4], "--variants", 1, *options[6:]]
    assert dinv("sample", out, "--prompts", file, "--classes-of", finished, *fewer).exit_code == 0
    assert dinv(*training).exit_code == 0
    assert json.loads((out / "run.json").read_text())["stages"]["sample"]["images"] == 2, "of four that are there"


def test_images_of_prompts_that_are_not_given_any_more_are_not_used(generator: Generator, tmp_path: Path) -> None:
    prompted(PROMPTS, generator, tmp_path, SETTINGS)
    fewer = prompted(PROMPTS[:2], generator, tmp_path, SETTINGS)
    asked = {f"{one.class_name}: {one.text}" for one in PROMPTS[:2]}
    assert len(fewer) == 2 * SETTINGS.variants and {*fewer.source_ids} == asked
    assert len(prompted(PROMPTS, generator, tmp_path, SETTINGS)) == len(PROMPTS) * SETTINGS.variants
