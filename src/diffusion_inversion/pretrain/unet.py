"""Stage `unet`: train the denoiser, the text encoder and the image adapter of `mini` together on cached latents."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..generator import tokenize
from . import checkpoint
from .corpus import batch_indices
from .latents import LatentCache
from .log import TrainingLog
from .optim import ema_update, make_optimizer, trapezoid

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# Share of each batch that sees the image through the adapter, its class name, and the empty prompt.
ADAPTER_SHARE, NAME_SHARE = 0.6, 0.3
TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}")
LOG_EVERY, VALIDATE_EVERY, SAVE_EVERY = 100, 500, 500
VALIDATION_IMAGES, VALIDATION_DRAWS = 500, 4


class Denoiser(nn.Module):
    """The three networks that are trained together, and the schedule they are trained on."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, adapter: nn.Module, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.adapter = unet, text_encoder, adapter
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Squared error of the v-prediction (arXiv 2202.00512, appendix D), per image: (B,)."""
        assert isinstance(self.alphas_cumprod, Tensor)
        alpha_bar = self.alphas_cumprod[timesteps][:, None, None, None]
        signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        predicted: Tensor = self.unet(signal * latents + sigma * noise, timesteps, encoder_hidden_states=tokens).sample
        return (predicted.float() - (signal * noise - sigma * latents)).square().mean(dim=(1, 2, 3))


def prompts_for(names: tuple[str, ...], labels: Tensor, generator: torch.Generator) -> list[str]:
    """A class-name prompt per label, its template drawn at random."""
    templates = torch.randint(len(TEMPLATES), (len(labels),), generator=generator)
    return [TEMPLATES[t].format(names[label]) for t, label in zip(templates.tolist(), labels.tolist(), strict=True)]


def stratified_timesteps(count: int, total: int, generator: torch.Generator) -> Tensor:
    """One timestep in each of `count` equal parts of 0..total-1, shuffled: uniform, with less variance."""
    strata = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return (strata / count * total).long().clamp(max=total - 1)


@torch.no_grad()
def validation_loss(
    model: Denoiser, tokenizer: CLIPTokenizer, cache: LatentCache, names: tuple[str, ...]
) -> dict[str, float]:
    """Loss on fixed images, timesteps and noise, given the image's adapter tokens, its class name, or nothing."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(cache.labels), generator=generator)[:VALIDATION_IMAGES]
    prompts = {
        "val_name": [f"a photo of a {names[label]}" for label in cache.labels[rows].tolist()],
        "val_empty": [""] * len(rows),
    }
    tokens = {key: model.text_encoder(tokenize(tokenizer, texts))[0] for key, texts in prompts.items()}
    sums = dict.fromkeys(("val_adapter", *prompts), 0.0)
    for _ in range(VALIDATION_DRAWS):
        latents, profiles = cache.batch(rows, generator)  # mirrored together
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = stratified_timesteps(len(rows), len(model.alphas_cumprod), generator)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16):
            for key, value in (tokens | {"val_adapter": model.adapter(profiles)}).items():
                sums[key] += float(model.loss(latents, noise, timesteps, value).mean()) / VALIDATION_DRAWS
    return sums


def train_unet(
    model: Denoiser,
    tokenizer: CLIPTokenizer,
    cache: LatentCache,
    validation: LatentCache,
    names: tuple[str, ...],
    folder: Path,
    *,
    samples: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    optimizer: str = "muon",
    ema_decay: float = 0.9995,
    seed: int = 0,
) -> Denoiser:
    """Train until `samples` images were seen and return the EMA weights; a killed run goes on where it saved.

    The learning rate falls to zero over the last fifth of `samples`; a later call with more samples raises it again.
    """
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizers = make_optimizer(model, optimizer, lr)
    state = folder / "unet.state.safetensors"
    progress = checkpoint.restore(state, {"model": model, "ema": ema}, optimizers)
    log = TrainingLog(
        folder / "unet.log.tsv",
        ("lr", "adapter", "name", "empty", "val_adapter", "val_name", "val_empty"),
        progress.step,
    )
    total_steps = samples // batch_size
    n_adapter, n_name = round(ADAPTER_SHARE * batch_size), round(NAME_SHARE * batch_size)
    kinds = ("adapter", "name", "empty")
    sums = dict.fromkeys(kinds, 0.0)
    since_log = 0
    validated = {"val_adapter": float("nan"), "val_name": float("nan"), "val_empty": float("nan")}
    started = time.monotonic() - progress.seconds
    while progress.step < total_steps:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + progress.step)
        rows = batch_indices(len(cache.labels), batch_size, progress.step, seed)
        latents, profiles = cache.batch(rows, generator)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = stratified_timesteps(batch_size, len(model.alphas_cumprod), generator)  # type: ignore[arg-type]
        prompts = prompts_for(names, cache.labels[rows[n_adapter : n_adapter + n_name]], generator)
        prompts += [""] * (batch_size - n_adapter - n_name)
        current_lr = trapezoid(lr, progress.step, total_steps)
        for opt in optimizers.values():
            for group in opt.param_groups:
                group["lr"] = current_lr
        losses = []
        # Two passes, since adapter tokens and text tokens differ in number.
        for part in (slice(0, n_adapter), slice(n_adapter, None)):
            with torch.autocast("cpu", torch.bfloat16):
                if part.start == 0:
                    tokens = model.adapter(profiles[part])
                else:
                    tokens = model.text_encoder(tokenize(tokenizer, prompts))[0]
                loss = model.loss(latents[part], noise[part], timesteps[part], tokens)
            (loss.sum() / batch_size).backward()
            losses.append(loss.detach())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in optimizers.values():
            opt.step()
            opt.zero_grad(set_to_none=True)
        ema_update(ema, model, ema_decay, progress.step)
        progress.step += 1
        progress.samples += batch_size
        progress.seconds = time.monotonic() - started
        parts = (losses[0], losses[1][:n_name], losses[1][n_name:])
        for key, value in zip(kinds, parts, strict=True):
            sums[key] += float(value.mean())
        since_log += 1
        last = progress.step == total_steps
        if progress.step % VALIDATE_EVERY == 0 or last:
            validated = validation_loss(ema, tokenizer, validation, names)
        if progress.step % LOG_EVERY == 0 or last:
            means = {key: value / since_log for key, value in sums.items()}
            log.write(progress.step, progress.samples, progress.seconds, lr=current_lr, **means, **validated)
            sums, since_log = dict.fromkeys(kinds, 0.0), 0
        if progress.step % SAVE_EVERY == 0 or last:
            checkpoint.save(state, {"model": model, "ema": ema}, optimizers, progress)
    return ema
