"""A checkpoint's safety checker: what it flags is drawn again and never kept; as StableDiffusionPipeline judges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import prompted, toy_images

from diffusion_inversion.config.sampling import PromptSettings, SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.errors import ConfigMismatchError, PartialError, UsageError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.generator.safety import (
    ATTEMPTS,
    check_safety_checker,
    draw_safely,
    load_safety_checker,
    read_safety_checker,
)
from diffusion_inversion.invert.embeddings import Embeddings
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.sample.prompting import Prompt, draw_prompts
from diffusion_inversion.sample.sampling import reconstruct, sample
from diffusion_inversion.sample.synthetic import SyntheticStore, refused_drawings
from diffusion_inversion.sample.variants import plan_variant

CPU = torch.device("cpu")
SETTINGS = SampleSettings(variants=3, inference_steps=2, batch_size=6)


def add_checker(folder: Path, threshold: float) -> Path:
    """Put a tiny random checker into a checkpoint: it flags images whose cosine to its one concept is above."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16}
    network = StableDiffusionSafetyChecker(CLIPConfig(projection_dim=8, vision_config=vision))
    for parameter in network.parameters():  # so that images differ by more than the rounding to 3 decimals
        parameter.data = torch.randn_like(parameter)
    network.concept_embeds.data = torch.randn(1, 8).repeat(17, 1)
    network.concept_embeds_weights.data = torch.full((17,), threshold)
    network.special_care_embeds_weights.data = torch.full((3,), 2.0)  # above any cosine: never
    network.save_pretrained(folder / "safety_checker")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder / "feature_extractor")
    return folder


@pytest.fixture(scope="module")
def embeddings(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    generator = Generator.load(toy, device="cpu", dtype="float32")
    settings = InvertSettings(steps=1, init="random", eval_draws=1)
    return invert(toy_images(4), generator, tmp_path_factory.mktemp("inverted"), settings)


@pytest.fixture
def folder(toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy, tmp_path / "toy"))


def scores(folder: Path, images: torch.Tensor) -> torch.Tensor:
    """The cosines that decide, by diffusers' own network and image processor."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
    from transformers import CLIPImageProcessor

    network = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker")
    pixels = CLIPImageProcessor.from_pretrained(folder / "feature_extractor")(list(images), return_tensors="pt")
    with torch.no_grad():
        embedded = network.visual_projection(network.vision_model(pixels.pixel_values)[1])
        return cosine_distance(embedded, network.concept_embeds)[:, 0]


def between(folder: Path, images: torch.Tensor) -> float:
    """A threshold that flags some of these images and not others, amid the widest gap: scores are rounded."""
    found = scores(folder, images).sort().values
    widest = int(found.diff().argmax())
    assert found.diff().max() > 0.01
    return float(found[widest : widest + 2].mean())


def set_threshold(folder: Path, threshold: float) -> None:
    path = folder / "safety_checker" / "model.safetensors"
    save_file(load_file(path) | {"concept_embeds_weights": torch.full((17,), threshold)}, path, {"format": "pt"})


def test_flags_are_the_pipelines(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    add_checker(folder, 0.0)
    images = torch.rand(12, 3, 24, 24) * torch.rand(12, 3, 1, 1)  # of different colours
    threshold = between(folder, (images * 255).round().to(torch.uint8))
    set_threshold(folder, threshold)
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder,
        safety_checker=StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker"),
        feature_extractor=CLIPImageProcessor.from_pretrained(folder / "feature_extractor"),
    )
    _, theirs = pipeline.run_safety_checker(images * 2 - 1, "cpu", torch.float32)
    checker = read_safety_checker(folder, CPU)
    assert checker is not None
    before = images * 2 - 1
    ours = checker.flagged(before)
    assert ours.tolist() == theirs and 0 < sum(theirs) < 12
    assert torch.equal(before, images * 2 - 1), "it judges, and blanks nothing itself"


def test_flagged_images_are_drawn_again_and_never_kept(folder: Path, embeddings: Embeddings, tmp_path: Path) -> None:
    plain = Generator.load(add_checker(folder, 2.0), device="cpu", dtype="float32")
    free = sample(embeddings, plain, tmp_path / "free", SETTINGS)
    assert refused_drawings(tmp_path / "free") == 0
    without = sample(embeddings, plain, tmp_path / "without", SETTINGS.model_copy(update={"safety_checker": False}))
    assert torch.equal(free.images, without.images), "a checker that flags nothing changes nothing"
    cosines = scores(folder, free.images)
    set_threshold(folder, between(folder, free.images))
    bad = cosines > between(folder, free.images)
    generator = Generator.load(folder, device="cpu", dtype="float32")
    assert generator.hash == plain.hash, "the checker is no part of the weights"
    kept = sample(embeddings, generator, tmp_path / "kept", SETTINGS)
    assert kept.ids == free.ids
    changed = (kept.images != free.images).flatten(1).any(1)
    assert bad.any() and not bad.all() and torch.equal(changed, bad)
    assert refused_drawings(tmp_path / "kept") >= int(bad.sum())
    checker = load_safety_checker(generator)
    assert checker is not None
    assert not checker.flagged(kept.images.float() / 127.5 - 1).any()
    assert not (kept.images == 0).flatten(1).all(1).any()
    again = sample(embeddings, generator, tmp_path / "again", SETTINGS)
    assert torch.equal(again.images, kept.images), "attempts are part of the identity"
    with pytest.raises(ConfigMismatchError, match="safety_checker: was"):
        sample(embeddings, generator, tmp_path / "kept", SETTINGS.model_copy(update={"safety_checker": False}))


def test_an_image_that_is_always_flagged_is_named(folder: Path, embeddings: Embeddings, tmp_path: Path) -> None:
    generator = Generator.load(add_checker(folder, -2.0), device="cpu", dtype="float32")
    with pytest.raises(PartialError, match=rf"toy/000\.png#0: the safety checker blanked all {ATTEMPTS} drawings"):
        sample(embeddings, generator, tmp_path / "run", SETTINGS)
    assert SyntheticStore(tmp_path / "run", embeddings.class_names).table().to_pylist() == []
    white = reconstruct(embeddings, generator, SETTINGS, [0, 1])
    assert white.shape[0] == 2 and bool((white == 255).all()), "the report goes on without its picture"
    prompts = [Prompt("cat", "a cat")]
    with pytest.raises(PartialError, match="cat: a cat#0"):
        draw_prompts(prompts, generator, tmp_path / "prompts", PromptSettings(variants=1, inference_steps=1))
    settings = PromptSettings(variants=1, inference_steps=1, safety_checker=False)
    assert len(prompted(prompts, generator, tmp_path / "unchecked", settings)) == 1


def test_flagged_images_of_prompts_are_drawn_again_and_counted(folder: Path, tmp_path: Path) -> None:
    prompts = [Prompt("cat", "a cat"), Prompt("dog", "a dog")]
    settings = PromptSettings(variants=4, inference_steps=2, batch_size=8)
    generator = Generator.load(add_checker(folder, 2.0), device="cpu", dtype="float32")
    free = prompted(prompts, generator, tmp_path / "free", settings)
    assert refused_drawings(tmp_path / "free") == 0
    threshold = between(folder, free.images)
    bad = scores(folder, free.images) > threshold
    set_threshold(folder, threshold)
    kept = prompted(prompts, generator, tmp_path / "kept", settings)
    assert torch.equal((kept.images != free.images).flatten(1).any(1), bad) and bad.any() and not bad.all()
    (unit,) = SyntheticStore(tmp_path / "kept", kept.class_names).manifest.units().values()
    assert unit["blanked"] == refused_drawings(tmp_path / "kept") >= int(bad.sum()) and "at_once" not in unit


def test_each_attempt_has_another_stream(toy: Path, embeddings: Embeddings) -> None:
    generator = Generator.load(toy, device="cpu", dtype="float32")
    drawn = [plan_variant(embeddings, generator, SETTINGS, 0, 0, attempt).initial_noise for attempt in (0, 1, 2, 0)]
    assert torch.equal(drawn[0], drawn[3])
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_only_what_is_flagged_is_drawn_again() -> None:
    class Dark:
        """Flags images below 0."""

        def flagged(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(1, 2, 3)) < 0

    value = {(0, 0): 0.5, (1, 0): -0.5, (1, 1): -0.2, (1, 2): 0.3, (2, 0): -0.1, (2, 1): 0.9}
    calls: list[list[tuple[int, int]]] = []

    def draw(items: list[tuple[int, int]]) -> torch.Tensor:
        calls.append(list(items))
        return torch.stack([torch.full((3, 2, 2), value[item]) for item in items])

    checker: Any = Dark()
    never = {(0, 0): 0.5, **{(1, attempt): -0.5 for attempt in range(ATTEMPTS)}}
    _, shown, blanked = draw_safely(
        lambda place, attempt: (place, attempt),
        lambda items: torch.stack([torch.full((3, 2, 2), never[item]) for item in items]),
        ["a", "b"],
        checker,
        white=True,
    )
    assert shown[:, 0, 0, 0].tolist() == [0.5, 1.0] and blanked == ATTEMPTS
    plans, images, blanked = draw_safely(lambda place, attempt: (place, attempt), draw, ["a", "b", "c"], checker)
    assert plans == [(0, 0), (1, 2), (2, 1)] and blanked == 3
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0.5, 0.3, 0.9]))
    assert calls == [[(0, 0), (1, 0), (2, 0)], [(1, 1), (2, 1)], [(1, 2)]]


def test_pickles_and_odd_configs_are_refused(folder: Path) -> None:
    generator = Generator.load(folder, device="cpu", dtype="float32")
    assert read_safety_checker(folder, CPU) is None
    check_safety_checker(generator)
    add_checker(folder, 0.0)
    check_safety_checker(generator)
    extractor = folder / "feature_extractor" / "preprocessor_config.json"
    config, whole = folder / "safety_checker" / "config.json", extractor.read_text()
    extractor.write_text(json.dumps(json.loads(whole) | {"size": 32, "crop_size": 32}))  # as in 2022
    assert read_safety_checker(folder, CPU) is not None
    extractor.write_text(json.dumps(json.loads(whole) | {"size": {"shortest_edge": 10**9}}))
    with pytest.raises(UsageError, match="sides"):
        read_safety_checker(folder, CPU)
    extractor.write_text(whole)
    entries = json.loads(config.read_text())
    for change in ({"projection_dim": 10**9}, {"vision_config": entries["vision_config"] | {"hidden_size": 32}}):
        config.write_text(json.dumps(entries | change))
        with pytest.raises(UsageError, match=r"safety_checker"):
            read_safety_checker(folder, CPU)
        with pytest.raises(UsageError, match=r"safety_checker"):
            check_safety_checker(generator)
    config.write_text(json.dumps(entries))
    weights = folder / "safety_checker" / "model.safetensors"
    old = {name.replace("vision_model.", "vision_model.vision_model.", 1): t for name, t in load_file(weights).items()}
    save_file(old, weights, {"format": "pt"})
    assert read_safety_checker(folder, CPU) is not None, "the names of the published file"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(UsageError, match=r"pickles are never loaded.*--no-safety-checker"):
        read_safety_checker(folder, CPU)
    with pytest.raises(UsageError, match=r"pickles are never loaded.*--no-safety-checker"):
        check_safety_checker(generator)
