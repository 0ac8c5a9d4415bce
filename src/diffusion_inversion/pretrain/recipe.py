"""The recipe of `mini` (vae -> latents -> unet -> export; figures, timesteps) and `mini-clip`; kills cost minutes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from ..engine.store import commit_bytes, replaced_folder
from ..errors import DataError, UsageError
from ..generator.adapter import Adapter
from ..generator.checkpoints import locate
from ..generator.device import resolve_device
from ..generator.generator import Generator, initialise, noise_schedule, save_checkpoint, use_plain_attention
from ..generator.timesteps import FILE as TIMESTEPS
from ..sample.png import encode_png
from ..train.few_shot.clip_files import MINI_CLIP
from . import checkpoint, parts
from .card import CLIP_LOG, write_card, write_clip_card
from .clip import ClipTask, Concepts, export_clip, new_clip, new_tokenizer
from .corpus import Corpus, hold_out, load_corpus
from .decoder import DecoderTask
from .figures import FILE as FIGURES
from .figures import Measured, measure
from .latents import HELD_OUT_VIEWS, TRAINING_VIEWS, LatentCache, cache_views, vae_hash
from .log import read_log
from .loop import Budget, Task, fit
from .networks import (
    NORMALISED_VAE,
    REFINED_VAE,
    TOKENIZER,
    Setting,
    load_tokenizer,
    load_vae,
    new_denoiser,
    require_same_encoder,
    save_vae,
)
from .quality import prompt_grid
from .timesteps import learn_timesteps
from .unet import DenoiserTask, recomputed_losses
from .vae import AutoencoderTask, normalise_latents
from .wordnet import hypernyms

SIZES = (64, 32)
STAGES = ("vae", "decoder", "latents", "unet", "export", "figures", "timesteps", "clip")
DEFAULT_STAGES = ("vae", "latents", "unet", "export")
DENOISER = "denoiser"
LOGS = ("vae.log.tsv", "unet.log.tsv")
DECODER_LOG = "decoder.log.tsv"
HELD_OUT_LOSSES = "held-out.json"
GRID_CLASSES = 10
NORMALISED_ON = 5_000  # training images
AVERAGED = "averaged"  # in the metadata of the normalised autoencoder: the hash of the weights before


def pretrain(
    corpus_path: Path,
    validation_path: Path | None,
    folder: Path,
    *,
    size: int = 64,
    stages: tuple[str, ...] = DEFAULT_STAGES,
    vae_budget: Budget | None = None,
    decoder_budget: Budget | None = None,
    unet_budget: Budget | None = None,
    clip_budget: Budget | None = None,
    wordnet: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    part_minutes: float | None = None,
    measured: Measured | None = None,
    start_from: str | None = None,
    seed: int = 0,
) -> Path:
    """Run `stages` in order and return `folder`/mini, what stage `export` writes, or /mini-clip of `clip` as the last.

    `corpus_path` is a parquet file with `image` (`size` px) and `label`; `validation_path` another, in no gradient, or
    None to hold 5,000 images of the corpus out. Every state, log and cache lives below `folder`; the same call goes on
    where a killed one saved. With `part_minutes` the call saves and ends after that time (PartEnded). `batch_size` is
    the denoiser's and mini-clip's, 1,024 on CUDA and 128 elsewhere. Stage `figures` measures the exported model, on the
    data sets of `measured` too, and writes the card again; so does `timesteps`, which learns where few denoising
    steps of it should lie. Stage `clip` needs no other; with `wordnet`, the folder of
    its noun files, prompts say what classes are kinds of. `start_from` ("mini" or an exported folder) lays its weights
    and logs into an empty `folder` first, to go on from them. Raises UsageError where a stage is unknown or needs an
    earlier one that was not run, DataError for a bad corpus.
    """
    begun = time.monotonic()
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise UsageError(f"--stage {','.join(unknown)}: unknown. Use some of {','.join(STAGES)}.")
    if size not in SIZES:
        raise UsageError(f"--size {size}: no architecture of that size. Use one of {', '.join(map(str, SIZES))}.")
    if part_minutes is not None and not part_minutes > 0:
        raise UsageError(f"--part-minutes {part_minutes:g}: leaves no time to train. Give a number above 0.")
    where = resolve_device(device)
    on_card = where.type == "cuda"
    setting = Setting(
        size=size,
        folder=folder,
        device=where,
        batch_size=batch_size or (1024 if on_card else 128),
        vae_batch_size=128 if on_card else 32,
        seed=seed,
        part_ends=None if part_minutes is None else begun + 60 * part_minutes,
    )
    if setting.batch_size < 4:
        raise UsageError(f"--batch-size {setting.batch_size}: a batch has rows of three kinds. Give at least 4.")
    folder.mkdir(parents=True, exist_ok=True)
    if on_card:
        torch.backends.cudnn.benchmark = True
    if start_from is not None:
        lay_down(start_from, setting)
    corpus = load_corpus(corpus_path, size)
    if validation_path is not None:
        held_out = load_corpus(validation_path, size)
    else:
        corpus, held_out = hold_out(corpus)
    above = {} if wordnet is None else hypernyms(corpus.names, wordnet)
    if len(corpus.labels) < max(setting.batch_size, setting.vae_batch_size):
        raise DataError(
            f"{corpus_path}: {len(corpus.labels)} images to train on, fewer than a batch of {setting.batch_size}. "
            "Give a larger corpus or a smaller --batch-size."
        )
    for stage in stages:
        if stage == "vae":
            run_vae(corpus, held_out, setting, vae_budget or Budget(samples=1_000_000))
        elif stage == "decoder":
            run_decoder(corpus, held_out, setting, decoder_budget or Budget(samples=100_000))
        elif stage == "latents":
            run_latents(corpus, held_out, setting)
        elif stage == "unet":
            run_unet(corpus, held_out, setting, unet_budget or Budget(samples=8_900_000))
        elif stage == "clip":
            run_clip(corpus, held_out, setting, clip_budget or Budget(samples=5_000_000), above)
        elif stage == "export":
            export(corpus.names, setting)
        elif stage == "timesteps":
            learn_timesteps(corpus, held_out, folder, where)
            write_card(folder / "mini", folder / "mini", _shown(corpus.names))
        else:
            run_figures(corpus.names, held_out, setting, measured or Measured())
    return folder / (MINI_CLIP.name if stages[-1] == "clip" else "mini")


def lay_down(source: str, setting: Setting) -> None:
    """Make the folder what it was when `source` was exported, but for the optimizers' moments, which begin anew.

    An autoencoder that is then trained on moves the latents little by little, so that the denoiser can follow.

    Does nothing where the folder holds a denoiser already: that is the later one. Raises UsageError for another
    architecture, and where an autoencoder was trained in the folder.
    """
    folder = setting.folder
    if (folder / "unet.state.safetensors").is_file():
        return
    begun = folder / ".laid-down"
    if (folder / "vae.state.safetensors").is_file() and not begun.exists():
        raise UsageError(
            f"--start-from {source}: {folder} has an autoencoder that was trained there. Give another --out, or go on "
            "with it without --start-from."
        )
    generator = Generator.load(source, device="cpu", dtype="float32")
    if generator.adapter is None:
        raise UsageError(f"--start-from {source}: has no adapter, so it was not made by `dinv pretrain`.")
    model = nn.ModuleDict(
        {"unet": generator.unet, "text_encoder": generator.text_encoder, "adapter": generator.adapter}
    )
    fresh = new_denoiser(setting)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    if generator.resolution != setting.size or shapes != {k: v.shape for k, v in fresh.state_dict().items()}:
        raise UsageError(
            f"--start-from {source}: networks of another shape than the recipe at {setting.size} px. "
            "Give another --size, or begin anew without it."
        )
    finished = locate(source, None)
    folder.mkdir(parents=True, exist_ok=True)
    begun.touch()
    with replaced_folder(folder / "mini") as target:
        shutil.copytree(finished, target, dirs_exist_ok=True)
    with replaced_folder(folder / TOKENIZER) as target:
        generator.tokenizer.save_pretrained(target)
    for name in LOGS:
        commit_bytes(folder / name, (finished / name).read_bytes())
    # Normalised as it is: where it is not trained on, its latents stay those that the denoiser learned.
    save_vae(generator.vae, folder / NORMALISED_VAE, {AVERAGED: vae_hash(generator.vae)})
    autoencoder = nn.ModuleDict({"vae": generator.vae})
    for name, weights in (("vae", autoencoder), ("unet", model)):  # the denoiser's is the sign that all is there
        last = read_log(folder / f"{name}.log.tsv")[-1]
        step = int(last["step"])
        progress = checkpoint.Progress(step, int(last["samples"]), float(last["seconds"]), begun=step)
        checkpoint.save(folder / f"{name}.state.safetensors", {"model": weights, "ema": weights}, {}, progress, None)
    begun.unlink()


def run_vae(corpus: Corpus, held_out: Corpus, setting: Setting, budget: Budget) -> None:
    """Train the autoencoder and save it with normalised latents, in the half precision that it ships in."""
    vae = initialise(setting.architecture, setting.seed)["vae"]
    _choose_attention(setting, vae)
    task = AutoencoderTask(vae, corpus, held_out, setting.device, setting.dtype, setting.vae_batch_size)
    _fit(task, setting, budget)
    vae, path = task.weights.ema["vae"], setting.folder / NORMALISED_VAE
    made_from = {AVERAGED: vae_hash(vae)}
    if checkpoint.metadata_of(path) == made_from:
        return  # normalised anew on CUDA its bits, hence what denoisers learned, could be others
    normalise_latents(vae, corpus.images[:: max(1, len(corpus.images) // NORMALISED_ON)])
    save_vae(vae, path, made_from)


def run_decoder(corpus: Corpus, held_out: Corpus, setting: Setting, budget: Budget) -> None:
    """Sharpen the decoder of the normalised autoencoder; `export` takes the result where there is one."""
    vae = load_vae(setting)
    of = vae_hash(vae)
    _choose_attention(setting, vae)
    task = DecoderTask(vae, corpus, held_out, setting.device, setting.dtype, setting.vae_batch_size, setting.seed)
    _fit(task, setting, budget, vae=of)
    save_vae(task.refined(), setting.folder / REFINED_VAE)


def run_latents(corpus: Corpus, held_out: Corpus, setting: Setting) -> tuple[LatentCache, LatentCache]:
    """Cache latents and Lite0 profiles of every view of both splits: of the corpus, and of what is held out."""
    vae, folder, device = load_vae(setting), setting.folder, setting.device
    held = cache_views(vae, held_out, folder / "views-held-out.safetensors", HELD_OUT_VIEWS, device=device)
    return cache_views(vae, corpus, folder / "views-train.safetensors", TRAINING_VIEWS, device=device), held


def run_unet(corpus: Corpus, held_out: Corpus, setting: Setting, budget: Budget) -> None:
    """Train denoiser, text encoder and adapter on the caches; their averaged weights are written with every save."""
    cache, held = run_latents(corpus, held_out, setting)
    of = vae_hash(load_vae(setting))
    model = new_denoiser(setting)
    _choose_attention(setting, model["unet"])
    adapter = model["adapter"]
    assert isinstance(adapter, Adapter)
    assert adapter.normalise.running_mean is not None and adapter.normalise.running_var is not None
    profiles = cache.profiles[0, ::10].float()
    adapter.normalise.running_mean.copy_(profiles.mean(0))
    adapter.normalise.running_var.copy_(profiles.var(0))
    task = DenoiserTask(
        model,
        noise_schedule(setting.architecture),
        load_tokenizer(corpus.names, setting),
        cache,
        held,
        corpus.names,
        setting.device,
        setting.dtype,
        setting.batch_size,
    )
    _fit(task, setting, budget, lambda: parts.write_parts(task.weights.ema, setting.folder / DENOISER, of), of)


def run_clip(
    corpus: Corpus, held_out: Corpus, setting: Setting, budget: Budget, above: Mapping[str, tuple[str, ...]]
) -> None:
    """Train `mini-clip` on the corpus and write it to `folder`/mini-clip; `above`: class => what it is a kind of."""
    concepts = Concepts.of(corpus.names, above)
    tokenizer = new_tokenizer(concepts)
    model, device = new_clip(setting.size, tokenizer, setting.seed), setting.device
    task = ClipTask(model, tokenizer, concepts, corpus, held_out, device, setting.dtype, setting.batch_size)
    _fit(task, setting, budget)
    count = len(corpus.names)
    with replaced_folder(setting.folder / MINI_CLIP.name) as target:
        export_clip(task, tokenizer, concepts, target)
        commit_bytes(target / CLIP_LOG, (setting.folder / CLIP_LOG).read_bytes())
        write_clip_card(target, (count, len(concepts.names) - count), len(task.held_out.labels))


def _fit(
    task: Task, setting: Setting, budget: Budget, on_save: Callable[[], None] | None = None, vae: str | None = None
) -> None:
    ends = setting.part_ends
    fit(task, setting.folder, budget, seed=setting.seed, part_ends=ends, on_save=on_save, vae=vae)


def export(names: tuple[str, ...], setting: Setting) -> None:
    """Write `folder`/mini: the diffusers folder in float16, the adapter, and the model card.

    A model that is there is replaced when the new one is whole; other files of its folder stay. Raises UsageError where
    the denoiser, or a refined decoder, is of another autoencoder than vae.safetensors.
    """
    folder = setting.folder
    if not (folder / DENOISER).is_dir():
        raise UsageError(f"{folder / DENOISER}: missing. Run the stage unet first.")
    model, normalised = new_denoiser(setting), load_vae(setting)
    parts.read_parts(model, folder / DENOISER, vae_hash(normalised))
    adapter = model["adapter"]
    assert isinstance(adapter, Adapter)
    scheduler_config = json.loads((setting.architecture / "scheduler" / "scheduler_config.json").read_text())
    refined = (folder / REFINED_VAE).is_file()
    vae = load_vae(setting, REFINED_VAE) if refined else normalised
    require_same_encoder(folder / REFINED_VAE, vae, normalised)
    modules = {"vae": vae, "unet": model["unet"], "text_encoder": model["text_encoder"]}
    halves = {key: module.half() for key, module in modules.items()}
    with replaced_folder(folder / "mini") as target:
        save_checkpoint(target, halves, load_tokenizer(names, setting), scheduler_config)
        # Stored in half precision, computed in single: transformers reads the dtype to compute in from here.
        text_config = json.loads((target / "text_encoder" / "config.json").read_text())
        (target / "text_encoder" / "config.json").write_text(
            json.dumps(text_config | {"dtype": "float32"}, indent=2) + "\n"
        )
        adapter.save(target / "adapter")
        (target / TIMESTEPS).unlink(missing_ok=True)  # they were learned for the weights before
        shown = _shown(names)
        commit_bytes(target / "samples.png", encode_png(prompt_grid(Generator.load(target), shown)))
        for name in (*LOGS, *([DECODER_LOG] if refined else [])):
            commit_bytes(target / name, (folder / name).read_bytes())
        write_card(target, folder, shown)


def run_figures(names: tuple[str, ...], held_out: Corpus, setting: Setting, measured: Measured) -> None:
    """Measure `folder`/mini, beside others if so wished, and write its card again.

    The held-out losses are those of the log's last record, computed again from the weights that are shipped.
    """
    folder = setting.folder
    if not (folder / "mini").is_dir():
        raise UsageError(f"{folder / 'mini'}: missing. Run the stage export first.")
    vae, model = load_vae(setting), new_denoiser(setting)
    cache = cache_views(vae, held_out, folder / "views-held-out.safetensors", HELD_OUT_VIEWS, device=setting.device)
    generator = Generator.load(folder / "mini", device=str(setting.device), dtype="float32")
    networks = {"unet": generator.unet, "text_encoder": generator.text_encoder, "adapter": generator.adapter}
    model.load_state_dict({f"{n}.{key}": v for n, part in networks.items() for key, v in part.state_dict().items()})
    losses = recomputed_losses(
        model.to(setting.device), noise_schedule(setting.architecture), generator.tokenizer, cache, names
    )
    commit_bytes(folder / HELD_OUT_LOSSES, (json.dumps(losses, indent=2) + "\n").encode())
    generators = {"mini": Generator.load(folder / "mini", device=str(setting.device))}
    generators |= {label: Generator.load(name, device=str(setting.device)) for label, name in measured.beside.items()}
    measure(
        folder,
        held_out,
        measured.target_train,
        measured.target_test,
        generators=generators,
        judge=measured.judge,
        domains=measured.domains,
        tests=measured.tests,
        amounts=measured.amounts,
    )
    for name in (FIGURES, HELD_OUT_LOSSES):
        commit_bytes(folder / "mini" / name, (folder / name).read_bytes())
    write_card(folder / "mini", folder, _shown(names))


def _choose_attention(setting: Setting, module: nn.Module) -> None:
    """The explicit product on a CPU, where the fused kernel's backward is slow at these sizes."""
    use_plain_attention(module, plain=setting.device.type == "cpu")


def _shown(names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names of the card's grid, evenly spaced."""
    return names[:: max(1, len(names) // GRID_CLASSES)][:GRID_CLASSES]
