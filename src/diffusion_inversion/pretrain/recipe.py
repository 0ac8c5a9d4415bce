"""The whole recipe of `mini`, stage by stage: vae -> latents -> unet -> export. Each stage goes on after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..adapter import Adapter
from ..checkpoints import locate
from ..engine.store import commit_bytes, commit_file
from ..errors import UsageError
from ..generator import Generator, initialise, noise_schedule, save_checkpoint, use_plain_attention
from ..synthetic import encode_png
from . import checkpoint
from .card import write_card
from .corpus import Corpus, load_corpus
from .figures import FILE as FIGURES
from .figures import measure, prompt_grid
from .latents import cache_latents
from .log import read_log
from .tokenizer import train_tokenizer
from .unet import TEMPLATES, Denoiser, train_unet
from .vae import normalise_latents, train_vae

ARCHITECTURE = Path(__file__).parent / "architecture"
STAGES = ("vae", "latents", "unet", "export", "figures")
NORMALISED_VAE = "vae.safetensors"
DENOISER = "denoiser.safetensors"
LOGS = ("vae.log.tsv", "unet.log.tsv")
GRID_CLASSES = 10


def pretrain(
    corpus_path: Path,
    validation_path: Path,
    folder: Path,
    *,
    stages: tuple[str, ...] = STAGES[:-1],
    vae_samples: int = 77_000,
    unet_samples: int = 450_000,
    target_train: Path | None = None,
    target_test: Path | None = None,
    start_from: str | None = None,
    seed: int = 0,
) -> Path:
    """Run `stages` in order and return `folder`/mini, the finished diffusers folder (after stage `export`).

    `corpus_path` and `validation_path` are parquet files with `image` (32 px) and `label`. Every state, log and
    cache lives below `folder`; the same call goes on where a killed one saved. Stage `figures` measures the exported
    model on a target data set (parquet files too) and writes the card again. `start_from` ("mini" or an exported
    folder) lays its weights and logs into an empty `folder` first, to go on from them. Raises UsageError where a
    stage is unknown or needs an earlier one that was not run, DataError for a bad corpus.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise UsageError(f"--stage {','.join(unknown)}: unknown. Use some of {','.join(STAGES)}.")
    if "figures" in stages and (target_train is None or target_test is None):
        raise UsageError("--stage figures: needs --target-train and --target-test, parquet files of a target data set.")
    folder.mkdir(parents=True, exist_ok=True)
    if start_from is not None:
        lay_down(start_from, folder)
    corpus, validation = load_corpus(corpus_path), load_corpus(validation_path)
    for stage in stages:
        if stage == "vae":
            run_vae(corpus, validation, folder, samples=vae_samples, seed=seed)
        elif stage == "latents":
            run_latents(corpus, validation, folder)
        elif stage == "unet":
            run_unet(corpus, validation, folder, samples=unet_samples, seed=seed)
        elif stage == "export":
            export(corpus, folder)
        elif target_train is not None and target_test is not None:
            measure(folder, validation, target_train, target_test)
            shutil.copyfile(folder / FIGURES, folder / "mini" / FIGURES)
            write_card(folder / "mini", folder, _shown(corpus.names))
    return folder / "mini"


def lay_down(source: str, folder: Path) -> None:
    """Make `folder` what it was when `source` was exported, but for the optimizer's moments, which begin anew.

    Does nothing where the folder holds a denoiser's state already: that is the later one.
    """
    state = folder / "unet.state.safetensors"
    if state.is_file():
        return
    generator = Generator.load(source, device="cpu", dtype="float32")
    if generator.adapter is None:
        raise UsageError(f"--start-from {source}: has no adapter, so it was not made by `dinv pretrain`.")
    for name in LOGS:
        shutil.copyfile(locate(source, None) / name, folder / name)
    last = read_log(folder / "unet.log.tsv")[-1]
    progress = checkpoint.Progress(int(last["step"]), int(last["samples"]), float(last["seconds"]))
    model = Denoiser(generator.unet, generator.text_encoder, generator.adapter, noise_schedule(ARCHITECTURE))
    _save(generator.vae, folder / NORMALISED_VAE)
    checkpoint.save(state, {"model": model, "ema": model}, {}, progress)


def run_vae(corpus: Corpus, validation: Corpus, folder: Path, *, samples: int, seed: int = 0) -> None:
    """Train the autoencoder (Muon, lr 2e-3, batch 32) and save it with normalised latents."""
    vae = initialise(ARCHITECTURE, seed)["vae"]
    vae = train_vae(
        vae, corpus, validation, folder, samples=samples, batch_size=32, lr=2e-3, optimizer="muon", seed=seed
    )
    normalise_latents(vae, corpus.images[:: max(1, len(corpus.images) // 10_000)])
    _save(vae, folder / NORMALISED_VAE)


def run_latents(corpus: Corpus, validation: Corpus, folder: Path) -> None:
    """Cache latents and Lite0 profiles of both splits."""
    vae = _load_vae(folder)
    cache_latents(vae, validation, folder / "latents-validation.safetensors")
    cache_latents(vae, corpus, folder / "latents-train.safetensors")


def run_unet(corpus: Corpus, validation: Corpus, folder: Path, *, samples: int, seed: int = 0) -> None:
    """Train denoiser, text encoder and adapter on the caches and save their EMA weights."""
    vae = _load_vae(folder)
    train_cache = cache_latents(vae, corpus, folder / "latents-train.safetensors")
    validation_cache = cache_latents(vae, validation, folder / "latents-validation.safetensors")
    model = _new_denoiser(seed)
    adapter = model.adapter
    assert isinstance(adapter, Adapter)
    assert adapter.normalise.running_mean is not None and adapter.normalise.running_var is not None
    profiles = train_cache.profiles[::10].float()
    adapter.normalise.running_mean.copy_(profiles.mean(0))
    adapter.normalise.running_var.copy_(profiles.var(0))
    model.eval()  # nothing here has dropout; the batch norm only standardises the profiles
    tokenizer = train_tokenizer(_texts(corpus.names))
    model = train_unet(
        model, tokenizer, train_cache, validation_cache, corpus.names, folder, samples=samples, seed=seed
    )
    _save(model, folder / DENOISER)


def export(corpus: Corpus, folder: Path) -> None:
    """Write `folder`/mini: the diffusers folder in float16, the adapter, and the model card."""
    if not (folder / DENOISER).is_file():
        raise UsageError(f"{folder / DENOISER}: missing. Run the stage unet first.")
    model = _new_denoiser(seed=0)
    model.load_state_dict(load_file(folder / DENOISER))
    assert isinstance(model.adapter, Adapter)
    target = folder / "mini"
    scheduler_config = json.loads((ARCHITECTURE / "scheduler" / "scheduler_config.json").read_text())
    modules = {"vae": _load_vae(folder).half(), "unet": model.unet.half(), "text_encoder": model.text_encoder.half()}
    save_checkpoint(target, modules, train_tokenizer(_texts(corpus.names)), scheduler_config)
    # Stored in half precision, computed in single: transformers reads the dtype to compute in from here.
    text_config = json.loads((target / "text_encoder" / "config.json").read_text())
    (target / "text_encoder" / "config.json").write_text(
        json.dumps(text_config | {"dtype": "float32"}, indent=2) + "\n"
    )
    model.adapter.save(target / "adapter")
    shown = _shown(corpus.names)
    commit_bytes(target / "samples.png", encode_png(prompt_grid(Generator.load(target), shown)))
    for name in LOGS:
        shutil.copyfile(folder / name, target / name)
    write_card(target, folder, shown)


def _shown(names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names of the card's grid, evenly spaced."""
    return names[:: max(1, len(names) // GRID_CLASSES)][:GRID_CLASSES]


def _save(module: nn.Module, path: Path) -> None:
    tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
    commit_file(path, lambda partial: save_file(tensors, partial))


def _texts(names: tuple[str, ...]) -> list[str]:
    return [template.format(name) for name in names for template in TEMPLATES]


def _new_denoiser(seed: int) -> Denoiser:
    modules = initialise(ARCHITECTURE, seed)
    width = json.loads((ARCHITECTURE / "unet" / "config.json").read_text())["cross_attention_dim"]
    torch.manual_seed(seed)
    return Denoiser(modules["unet"], modules["text_encoder"], Adapter(width=width), noise_schedule(ARCHITECTURE))


def _load_vae(folder: Path) -> nn.Module:
    if not (folder / NORMALISED_VAE).is_file():
        raise UsageError(f"{folder / NORMALISED_VAE}: missing. Run the stage vae first.")
    vae = initialise(ARCHITECTURE, seed=0)["vae"]
    vae.load_state_dict(load_file(folder / NORMALISED_VAE))
    use_plain_attention(vae)
    return vae.eval().requires_grad_(False)
