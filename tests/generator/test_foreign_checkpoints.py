"""Checkpoints and vectors that do not fit: one line each, with the key, the value and the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest
import torch
from toy import WIDTH, toy_images

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.errors import ConfigMismatchError, DinvError, UsageError
from diffusion_inversion.generator.checkpoints import check_parts, locate
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import Embeddings
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.sample.denoising import denoise
from diffusion_inversion.sample.sampling import sample


def said(error: pytest.ExceptionInfo[DinvError]) -> str:
    text = str(error.value)
    assert "\n" not in text, "one line"
    return text


def renamed_pipeline(name: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        index = folder / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": name}))

    return change


def edited(part: str, key: str, value: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))

    return change


def pointer(name: str) -> Callable[[Path], object]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1719125304\n"
    return lambda folder: (folder / name).write_text(text)


def variant(end: str, dot: str = ".") -> Callable[[Path], object]:
    weights = "unet/diffusion_pytorch_model"
    return lambda folder: (folder / f"{weights}.safetensors").rename(folder / f"{weights}{dot}{end}")


def pickled(folder: Path) -> None:
    for part in ("unet", "vae"):
        weights = folder / part / "diffusion_pytorch_model.safetensors"
        weights.rename(weights.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (renamed_pipeline("StableDiffusionXLPipeline"), r"_class_name='?StableDiffusionXLPipeline.*1\.x and 2\.x"),
        (renamed_pipeline("StableDiffusion3Pipeline"), r"StableDiffusion3Pipeline.*give one of them"),
        (renamed_pipeline("FluxPipeline"), r"FluxPipeline"),
        (lambda folder: (folder / "text_encoder_2").mkdir(), r"text_encoder_2, as SDXL.*CompVis/stable-diffusion-v1-4"),
        (lambda folder: (folder / "unet").rename(folder / "transformer"), r"transformer, as Flux.*`mini`"),
        (lambda folder: shutil.rmtree(folder / "unet"), r"unet missing\. Give the folder"),
        (pickled, r"diffusion_pytorch_model\.safetensors is missing.*save_pretrained\(folder, safe_serialization"),
        (edited("unet", "addition_embed_type", "text_time"), r"unet\.addition_embed_type='?text_time'?, expected None"),
        (edited("unet", "in_channels", 9), r"unet\.in_channels=9, expected 4"),
        (edited("unet", "sample_size", 0), r"unet\.sample_size=0, expected 1"),
        (edited("unet", "out_channels", 8), r"unet\.out_channels=8, expected 4"),
        (edited("scheduler", "variance_type", "learned_range"), r"variance_type='?learned_range'?, expected fixed"),
        (pointer("unet/diffusion_pytorch_model.safetensors"), r"a Git LFS pointer.*`git lfs pull`"),
        (pointer("vae/config.json"), r"a Git LFS pointer.*`git lfs pull`"),
        (variant("fp16.safetensors"), r"only diffusion_pytorch_model\.fp16\.safetensors is here.*Rename it"),
        (variant("non_ema.safetensors"), r"only diffusion_pytorch_model\.non_ema\.safetensors is here"),
        (variant("-00001-of-00002.safetensors", ""), r"in parts \(.*-00001-of-00002.*max_shard_size"),
    ],
)  # fmt: skip
def test_what_is_not_stable_diffusion_is_refused(
    toy: Path, tmp_path: Path, change: Callable[[Path], object], expected: str
) -> None:
    folder = Path(shutil.copytree(toy, tmp_path / "other"))
    change(folder)
    with pytest.raises(UsageError, match=expected) as caught:
        Generator.load(folder, device="cpu")
    assert str(folder) in said(caught)


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionPipelineSafe",
        "FlaxStableDiffusionPipeline",
    ],
)  # fmt: skip
def test_pipelines_over_the_same_parts_are_welcome(toy: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(toy, tmp_path / "same"))
    renamed_pipeline(name)(folder)
    check_parts(folder)
    (folder / "model_index.json").unlink()
    check_parts(folder)


def test_a_scaling_factor_of_one_is_a_number(toy: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy, tmp_path / "one"))
    edited("vae", "scaling_factor", 1)(folder)
    loaded = Generator.load(folder, device="cpu", dtype="float32")
    latents = loaded.encode(torch.zeros(1, 3, 16, 16)).mean
    assert torch.allclose(latents, loaded.vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean)


def test_a_renamed_variant_is_read(toy: Path, tmp_path: Path) -> None:
    """What the message about variants promises: any precision is read."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(toy, tmp_path / "half"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
    assert Generator.load(folder, device="cpu", dtype="float32").unet.dtype == torch.float32


def test_one_file_gets_the_conversion_command(tmp_path: Path) -> None:
    file = tmp_path / "v1-5-pruned.ckpt"
    file.write_bytes(b"pickle")
    with pytest.raises(UsageError, match="from_single_file") as caught:
        locate(str(file), None)
    assert "v1-5-pruned.ckpt" in said(caught)


@pytest.mark.parametrize(("resolution", "nearest"), [(15, 16), (9, 8), (33, 32)])
def test_a_resolution_that_the_vae_cannot_divide(
    loaded: Generator, tmp_path: Path, resolution: int, nearest: int
) -> None:
    settings = InvertSettings(steps=1, init="random", resolution=resolution)
    with pytest.raises(
        UsageError, match=rf"resolution={resolution}: not a multiple of 2.*--resolution {nearest}\."
    ) as e:
        invert(toy_images(2), loaded, tmp_path, settings)
    said(e)
    assert not list(tmp_path.iterdir())


def test_vectors_of_another_width_are_refused(loaded: Generator, tmp_path: Path) -> None:
    settings = InvertSettings(steps=1, init="random", eval_draws=1)
    vectors = invert(toy_images(2), loaded, tmp_path, settings)
    wide: Embeddings = replace(vectors, vectors=torch.zeros(1, 2, 5, WIDTH + 1))
    with pytest.raises(ConfigMismatchError, match=rf"width={WIDTH + 1}, but .* takes {WIDTH}\. Load") as caught:
        sample(wide, loaded, tmp_path, SampleSettings(inference_steps=1))
    said(caught)
    assert not (tmp_path / "synthetic").exists()


@pytest.mark.parametrize(("conditional", "unconditional"), [((5, WIDTH), (16, 8)), ((5, 8), (5, 8))])
def test_tokens_of_another_width_are_refused(
    loaded: Generator, conditional: tuple[int, int], unconditional: tuple[int, int]
) -> None:
    noise = torch.randn(1, loaded.latent_channels, 8, 8)
    c, u = torch.zeros(1, *conditional), torch.zeros(1, *unconditional)
    jaxtyping.config.update("jaxtyping_disable", True)  # users have no checked shapes
    try:
        with pytest.raises(UsageError, match=rf"width: .* Give both the width {WIDTH}") as caught:
            denoise(loaded, noise, c, u, torch.full((1,), 2.0), "ddim", 1)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    said(caught)


def test_more_tokens_than_the_text_encoder_has(loaded: Generator, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tokens=20: more than the text encoder's 16\. Use fewer") as caught:
        invert(toy_images(2), loaded, tmp_path, InvertSettings(steps=1, tokens=20))
    said(caught)
