"""Stage `unet`: train the denoiser, the text encoder and the image adapter of `mini` together on cached views."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..generator.device import bfloat16_is_fast
from ..generator.generator import tokenize
from .latents import HELD_OUT_VIEWS, TRAINING_VIEWS, LatentCache
from .loop import Task
from .optim import MixedPrecision

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# Share of each batch that sees the image through the adapter, its class name, and the empty prompt.
ADAPTER_SHARE, NAME_SHARE = 0.6, 0.3
# Share of the adapter's rows that see a near or a wide view; all other rows see the plain or the mirrored one.
NEAR_SHARE, WIDE_SHARE = 0.25, 0.4
TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}")
VALIDATION_TEMPLATE = TEMPLATES.index("a photo of a {}")
LR, LR_VECTORS, LR_BATCH = 3e-3, 1e-3, 1024  # rates at batches of LR_BATCH; elsewhere they follow the square root
EMA_DECAY, DECAY_SHARE = 0.999, 0.25
VALIDATION_IMAGES, VALIDATION_DRAWS = 1_000, 4


def prompt_texts(names: tuple[str, ...]) -> list[str]:
    """Every prompt that the denoiser is trained with: the templates of the first name, of the second, ..."""
    return [template.format(name) for name in names for template in TEMPLATES]


def velocity_loss(
    unet: nn.Module, alphas_cumprod: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor, tokens: Tensor
) -> Tensor:
    """Squared error of the v-prediction (arXiv 2202.00512, appendix D), per image: (B,) float32."""
    alpha_bar = alphas_cumprod[timesteps][:, None, None, None]
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    noisy = (signal * latents + sigma * noise).to(tokens.dtype)
    predicted: Tensor = unet(noisy, timesteps, encoder_hidden_states=tokens, return_dict=False)[0]
    return (predicted.float() - (signal * noise - sigma * latents)).square().mean(dim=(1, 2, 3))


def stratified_timesteps(count: int, total: int, device: torch.device) -> Tensor:
    """One timestep in each of `count` equal parts of 0..total-1, shuffled: uniform, with less variance."""
    strata = torch.randperm(count, device=device) + torch.rand(count, device=device)
    return (strata / count * total).long().clamp(max=total - 1)


def rows_of_each_kind(count: int) -> tuple[int, int, int]:
    """How many rows of a batch of at least 4 see the image, its class name, and the empty prompt: one each at least."""
    n_adapter = round(ADAPTER_SHARE * count)
    n_name = min(round(NAME_SHARE * count), count - n_adapter - 1)  # else 5 and 6 would leave none
    return n_adapter, n_name, count - n_adapter - n_name


def sampled(cache: LatentCache, view: Tensor | int, rows: Tensor, noise: Tensor | None = None) -> Tensor:
    """Latents (B, C, H, W) float32 drawn from the encoder's distribution of these views of these images."""
    mean, logvar = cache.latents[view, rows].float().chunk(2, dim=1)
    return mean + (0.5 * logvar).exp() * (torch.randn_like(mean) if noise is None else noise)


class DenoiserTask(Task):
    """v-loss of the denoiser, given adapter tokens (60 %), class names (30 %) or the empty prompt (10 %)."""

    name = "unet"
    columns = ("adapter", "name", "empty")
    validated = ("val_adapter", "val_wide", "val_name", "val_empty")
    decay_share = DECAY_SHARE
    least_batch = 4  # with rows of all three kinds

    def __init__(
        self,
        model: nn.ModuleDict,
        alphas_cumprod: Tensor,
        tokenizer: CLIPTokenizer,
        cache: LatentCache,
        held_out: LatentCache,
        names: tuple[str, ...],
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
    ) -> None:
        scale = (batch_size / LR_BATCH) ** 0.5
        self.batch_size, self.dtype, self.device = batch_size, dtype, device
        self.weights = MixedPrecision(model.to(device), dtype, LR * scale, LR_VECTORS * scale, EMA_DECAY)
        self.alphas_cumprod = alphas_cumprod.to(device)
        self.cache, self.held_out = cache.to(device), held_out.to(device)
        prompts = tokenize(tokenizer, prompt_texts(names))
        self.prompts = prompts.unflatten(0, (len(names), len(TEMPLATES))).to(device)  # (names, templates, tokens)
        self.empty = tokenize(tokenizer, [""]).to(device)

    def losses(self) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch, and that of its three kinds of rows."""
        network, device, count = self.weights.network, self.device, self.batch_size
        n_adapter, n_name, n_empty = rows_of_each_kind(count)
        rows = torch.randint(len(self.cache.labels), (count,), device=device)
        view = self._views(n_adapter)
        latents = sampled(self.cache, view, rows)
        noise, timesteps = torch.randn_like(latents), stratified_timesteps(count, len(self.alphas_cumprod), device)
        labels = self.cache.labels[rows[n_adapter : n_adapter + n_name]]
        templates = torch.randint(len(TEMPLATES), (n_name,), device=device)
        ids = torch.cat([self.prompts[labels, templates], self.empty.expand(n_empty, -1)])
        profiles = self.cache.profiles[view[:n_adapter], rows[:n_adapter]].float()
        # Two passes, since adapter tokens and text tokens differ in number.
        tokens = (self._adapted(network["adapter"], profiles).to(self.dtype), network["text_encoder"](ids)[0])
        losses = torch.cat(
            [
                velocity_loss(network["unet"], self.alphas_cumprod, latents[part], noise[part], timesteps[part], given)
                for part, given in zip((slice(n_adapter), slice(n_adapter, None)), tokens, strict=True)
            ]
        )
        kinds = losses.detach().split((n_adapter, n_name, n_empty))
        return losses.mean(), torch.stack([kind.mean() for kind in kinds])

    def _views(self, n_adapter: int) -> Tensor:
        """The view of each row: (B,)."""
        count, device = self.batch_size, self.device
        plain = torch.randint(2, (count,), device=device)
        kind = torch.rand(count, device=device)
        near = torch.randint(2, 4, (count,), device=device)
        wide = torch.randint(4, len(TRAINING_VIEWS), (count,), device=device)
        view = torch.where(kind < NEAR_SHARE, near, torch.where(kind < NEAR_SHARE + WIDE_SHARE, wide, plain))
        view[n_adapter:] = plain[n_adapter:]
        return view

    def _adapted(self, adapter: nn.Module, profiles: Tensor) -> Tensor:
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16, cache_enabled=False
        ):
            tokens: Tensor = adapter(profiles)
        return tokens

    def validate(self) -> dict[str, float]:
        """Held-out losses given the image's adapter tokens (plain and wide view), its class name, or nothing."""
        return held_out_losses(self.weights.ema, self.alphas_cumprod, self.held_out, self.prompts, self.empty)


@torch.no_grad()
def held_out_losses(
    model: nn.ModuleDict, alphas_cumprod: Tensor, cache: LatentCache, prompts: Tensor, empty: Tensor
) -> dict[str, float]:
    """Mean v-losses over fixed images, timesteps and noise, drawn alike on every device."""
    device = cache.latents.device
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(cache.labels), generator=generator)[:VALIDATION_IMAGES]
    count, total = len(rows), len(alphas_cumprod)
    shape = (count, cache.latents.shape[2] // 2, *cache.latents.shape[3:])
    on_device = rows.to(device)
    sums = dict.fromkeys(DenoiserTask.validated, 0.0)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device)):
        texts = {
            "val_name": prompts[cache.labels[on_device], VALIDATION_TEMPLATE],
            "val_empty": empty.expand(count, -1),
        }
        plain = {key: model["text_encoder"](ids)[0] for key, ids in texts.items()}
        plain["val_adapter"] = model["adapter"](cache.profiles[0, on_device].float())
        wide = {"val_wide": model["adapter"](cache.profiles[HELD_OUT_VIEWS.index("wide"), on_device].float())}
        for _ in range(VALIDATION_DRAWS):
            noise, own = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
            strata = torch.randperm(count, generator=generator) + 0.5
            timesteps = (strata / count * total).long().to(device)
            for view, given in ((0, plain), (HELD_OUT_VIEWS.index("wide"), wide)):
                latents = sampled(cache, view, on_device, own)
                for key, tokens in given.items():
                    loss = velocity_loss(model["unet"], alphas_cumprod, latents, noise, timesteps, tokens)
                    sums[key] += float(loss.mean()) / VALIDATION_DRAWS
    return sums


def recomputed_losses(
    model: nn.ModuleDict,
    alphas_cumprod: Tensor,
    tokenizer: CLIPTokenizer,
    cache: LatentCache,
    names: tuple[str, ...],
) -> dict[str, float]:
    """The held-out losses of finished networks, as the last record of their log has them."""
    device = next(model.parameters()).device
    prompts = tokenize(tokenizer, prompt_texts(names)).unflatten(0, (len(names), len(TEMPLATES))).to(device)
    empty = tokenize(tokenizer, [""]).to(device)
    return held_out_losses(model, alphas_cumprod.to(device), cache.to(device), prompts, empty)
