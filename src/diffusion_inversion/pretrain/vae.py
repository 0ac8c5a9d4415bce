"""Stage `vae`: train the autoencoder of `mini` on the corpus, then normalise its latents channel by channel."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features import load_lite0, stage_maps
from ..images import to_model_range, to_uint8
from . import checkpoint
from .corpus import Corpus, batch_indices
from .log import TrainingLog
from .optim import ema_update, learning_rate, make_optimizer

KL_WEIGHT = 1e-6
PERCEPTUAL_SIZE = 64
PERCEPTUAL_STAGES = (0, 1, 2)
LOG_EVERY, SAVE_EVERY = 200, 1000


def reconstruct(vae: nn.Module, images: Tensor) -> Tensor:
    """Decode the mean of the latent distribution: float (B, 3, H, W) in [-1, 1], no sampling noise."""
    decoded: Tensor = vae.decode(vae.encode(images).latent_dist.mean).sample  # type: ignore[operator]
    return decoded


@torch.no_grad()
def psnr(vae: nn.Module, images: Tensor, batch_size: int = 250) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, pixels rounded to 8 bits as a PNG would."""
    values = []
    for chunk in images.split(batch_size):
        values.append(image_psnr(to_uint8(reconstruct(vae, to_model_range(chunk))), chunk))
    return float(torch.cat(values).mean())


def image_psnr(decoded: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image (B,); both uint8 (B, 3, H, W)."""
    mse = (decoded.float() - images.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / mse)


def perceptual_distance(lite0: nn.Module, decoded: Tensor, images: Tensor) -> Tensor:
    """Mean squared distance of channel-normalised Lite0 maps (strides 2, 4, 8), as LPIPS (arXiv 1801.03924)."""
    both = F.interpolate(torch.cat([decoded, images]), size=(PERCEPTUAL_SIZE, PERCEPTUAL_SIZE), mode="bilinear")
    total = decoded.new_zeros(())
    for maps in stage_maps(lite0, both, PERCEPTUAL_STAGES):
        a, b = F.normalize(maps.float(), dim=1).chunk(2)
        total = total + (a - b).square().sum(1).mean()
    return total / len(PERCEPTUAL_STAGES)


def train_vae(
    vae: nn.Module,
    corpus: Corpus,
    validation: Corpus,
    folder: Path,
    *,
    samples: int,
    batch_size: int = 64,
    lr: float = 1e-3,
    optimizer: str = "adamw",
    perceptual_weight: float = 0.1,
    ema_decay: float = 0.999,
    seed: int = 0,
) -> nn.Module:
    """Train until `samples` images were seen and return the EMA weights; a killed run goes on where it saved.

    Loss: L1 + perceptual_weight * Lite0 distance + 1e-6 * KL. Learning rate: warm-up, then cosine to zero.
    """
    lite0 = load_lite0()
    ema = copy.deepcopy(vae).requires_grad_(False)
    optimizers = make_optimizer(vae, optimizer, lr)
    state = folder / "vae.state.safetensors"
    progress = checkpoint.restore(state, {"model": vae, "ema": ema}, optimizers)
    log = TrainingLog(folder / "vae.log.tsv", ("lr", "l1", "perceptual", "kl", "val_psnr_db"), progress.step)
    total_steps = samples // batch_size
    sums: dict[str, float] = dict.fromkeys(("l1", "perceptual", "kl"), 0.0)
    since_log = 0
    started = time.monotonic() - progress.seconds
    while progress.step < total_steps:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + progress.step)
        rows = batch_indices(len(corpus.images), batch_size, progress.step, seed)
        images = to_model_range(corpus.images[rows])
        flipped = torch.rand(len(images), generator=generator) < 0.5
        images[flipped] = images[flipped].flip(-1)
        current_lr = learning_rate(lr, progress.step, total_steps)
        for opt in optimizers.values():
            for group in opt.param_groups:
                group["lr"] = current_lr
        with torch.autocast("cpu", torch.bfloat16):
            latent_dist = vae.encode(images).latent_dist  # type: ignore[operator]
            noise = torch.randn(latent_dist.mean.shape, generator=generator)
            decoded = vae.decode(latent_dist.mean + latent_dist.std * noise).sample  # type: ignore[operator]
            perceptual = perceptual_distance(lite0, decoded, images)
        l1 = (decoded.float() - images).abs().mean()
        kl = 0.5 * (latent_dist.mean.float().square() + latent_dist.var.float() - 1 - latent_dist.logvar.float())
        kl = kl.sum(dim=(1, 2, 3)).mean()
        (l1 + perceptual_weight * perceptual + KL_WEIGHT * kl).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for opt in optimizers.values():
            opt.step()
            opt.zero_grad(set_to_none=True)
        ema_update(ema, vae, ema_decay, progress.step)
        progress.step += 1
        progress.samples += batch_size
        for key, value in (("l1", l1), ("perceptual", perceptual), ("kl", kl)):
            sums[key] += float(value.detach())
        since_log += 1
        progress.seconds = time.monotonic() - started
        if progress.step % LOG_EVERY == 0 or progress.step == total_steps:
            means = {key: value / since_log for key, value in sums.items()}
            sums, since_log = dict.fromkeys(sums, 0.0), 0
            quality = psnr(ema, validation.images[:1000])
            log.write(progress.step, progress.samples, progress.seconds, lr=current_lr, val_psnr_db=quality, **means)
        if progress.step % SAVE_EVERY == 0 or progress.step == total_steps:
            checkpoint.save(state, {"model": vae, "ema": ema}, optimizers, progress)
    return ema


@torch.no_grad()
def normalise_latents(vae: nn.Module, images: Tensor, batch_size: int = 250) -> None:
    """Fold per-channel mean and standard deviation of the latents into the two 1x1 convolutions, exactly.

    Afterwards the latents of `images` (N, 3, S, S) uint8 have mean 0 and standard deviation 1 in every
    channel, `scaling_factor` is 1, and decode(encode(x)) is what it was: a plain StableDiffusionPipeline
    needs to know nothing of it.
    """
    means = torch.cat([vae.encode(to_model_range(chunk)).latent_dist.mean for chunk in images.split(batch_size)])  # type: ignore[operator]
    mu, sigma = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    channels = len(mu)
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert isinstance(quant, nn.Conv2d) and isinstance(post, nn.Conv2d)
    assert quant.bias is not None and post.bias is not None
    quant.weight[:channels] /= sigma[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mu) / sigma
    quant.bias[channels:] -= 2 * sigma.log()  # the second half is the log-variance
    post.bias += (post.weight[:, :, 0, 0] * mu).sum(1)
    post.weight *= sigma[None, :, None, None]
