"""Stage `vae`: train the autoencoder of `mini` on the corpus, then normalise its latents channel by channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import to_model_range, to_uint8
from ..generator.features import load_lite0, stage_maps
from .corpus import Corpus
from .loop import Task
from .optim import MixedPrecision
from .views import Draw, device_draws, mirrored_half, wide_view

KL_WEIGHT = 1e-6
PERCEPTUAL_WEIGHT = 0.3
PERCEPTUAL_SIZE = 64
PERCEPTUAL_STAGES = (0, 1, 2)
WIDE_SHARE = 0.5  # of a batch
TURNED_SHARE, HALVED_SHARE = 0.375, 0.25  # of a batch, whose latents are changed between encoder and decoder
LR, LR_VECTORS, LR_BATCH = 3e-3, 1e-3, 128  # rates at batches of LR_BATCH; elsewhere they follow the square root
EMA_DECAY, DECAY_SHARE = 0.998, 0.5
VALIDATION_IMAGES = 1_000


def reconstruct(vae: nn.Module, images: Tensor) -> Tensor:
    """Decode the mean of the latent distribution: float (B, 3, H, W) in [-1, 1], no sampling noise."""
    decoded: Tensor = vae.decode(vae.encode(images).latent_dist.mean).sample  # type: ignore[operator]
    return decoded


@torch.no_grad()
def autoencoded(vae: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """uint8 (N, 3, H, W) through the autoencoder and rounded to 8 bits as a PNG would be, on the images' device."""
    device = next(vae.parameters()).device
    chunks = [reconstruct(vae, to_model_range(chunk.to(device))) for chunk in images.split(batch_size)]
    return to_uint8(torch.cat(chunks)).to(images.device)


def image_psnr(decoded: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image (B,); both uint8 (B, 3, H, W)."""
    mse = (decoded.float() - images.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / mse)


def sharpness(images: Tensor) -> float:
    """Mean absolute horizontal gradient over the standard deviation of uint8 images (B, 3, H, W)."""
    values = images.float()
    return float(values.diff(dim=-1).abs().mean() / values.std())


def perceptual_distance(lite0: nn.Module, decoded: Tensor, images: Tensor) -> Tensor:
    """Mean squared distance of channel-normalised Lite0 maps (strides 2, 4, 8), as LPIPS (arXiv 1801.03924)."""
    both = torch.cat([decoded, images])
    if both.shape[-1] != PERCEPTUAL_SIZE:
        both = F.interpolate(both, size=(PERCEPTUAL_SIZE, PERCEPTUAL_SIZE), mode="bilinear")
    total = decoded.new_zeros((), dtype=torch.float32)
    for maps in stage_maps(lite0, both, PERCEPTUAL_STAGES):
        a, b = F.normalize(maps.float(), dim=1).chunk(2)
        total = total + (a - b).square().sum(1).mean()
    return total / len(PERCEPTUAL_STAGES)


@torch.no_grad()
def draw_views(images: Tensor, count: int, draw: Draw) -> Tensor:
    """`count` random training images (uint8): half in a wide view, half plain or mirrored, shuffled; float [-1, 1]."""
    rows = torch.randint(len(images), (count,), device=images.device)
    chosen = to_model_range(images[rows])
    wide = round(WIDE_SHARE * count)
    views = torch.cat([wide_view(chosen[:wide], draw), mirrored_half(chosen[wide:], draw)])
    return views[torch.randperm(count, device=images.device)]


def quality(vae: nn.Module, images: Tensor) -> dict[str, float]:
    """PSNR in dB of autoencoded images, and their sharpness over that of the originals, uint8 (N, 3, H, W)."""
    decoded = autoencoded(vae, images)
    return {
        "val_psnr_db": float(image_psnr(decoded, images).mean()),
        "val_sharpness": sharpness(decoded) / sharpness(images),
    }


def equivariant(latents: Tensor, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows of latents, and what they should decode to: some turned or mirrored, some at half the side, both alike.

    (B, C, h, w) and (B, 3, H, W) to pairs of one size each. Latents that follow the image when it is turned or reduced
    have less in them that no denoiser can predict (EQ-VAE, arXiv 2502.09509; scale alone, arXiv 2502.14831).
    """
    count = len(latents)
    turned, halved = round(TURNED_SHARE * count), round(HALVED_SHARE * count)
    full = []
    for rows in (latents, images):
        plain, to_turn, _ = rows.split((count - turned - halved, turned, halved))
        once, twice, thrice, mirrored = to_turn.tensor_split(4)
        quarters = [part.rot90(k, (2, 3)) for k, part in enumerate((once, twice, thrice), 1)]
        full.append(torch.cat([plain, *quarters, mirrored.flip(-1)]))
    reduced = [F.avg_pool2d(rows[count - halved :], 2) for rows in (latents, images)]
    return [(full[0], full[1]), (reduced[0], reduced[1])]


class AutoencoderTask(Task):
    """L1 + 0.3 * Lite0 distance + 1e-6 * KL on plain, mirrored and wide views, made as they are needed.

    Five eighths of a batch's latents are turned or halved before they are decoded (`equivariant`).
    """

    name = "vae"
    columns = ("l1", "perceptual", "kl")
    validated = ("val_psnr_db", "val_sharpness")
    decay_share = DECAY_SHARE
    least_batch = 3  # with rows of all three kinds

    def __init__(
        self,
        vae: nn.Module,
        corpus: Corpus,
        held_out: Corpus,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
    ) -> None:
        scale = (batch_size / LR_BATCH) ** 0.5
        self.batch_size, self.dtype = batch_size, dtype
        self.weights = MixedPrecision(
            nn.ModuleDict({"vae": vae.to(device)}), dtype, LR * scale, LR_VECTORS * scale, EMA_DECAY
        )
        self.lite0 = load_lite0().to(device, dtype)
        self.images, self.held_out = corpus.images.to(device), held_out.images[:VALIDATION_IMAGES]
        self.draw = device_draws(device)

    def losses(self) -> tuple[Tensor, Tensor]:
        """L1, perceptual distance and KL of a batch, and their weighted sum."""
        vae = self.weights.network["vae"]
        images = draw_views(self.images, self.batch_size, self.draw).to(self.dtype)
        latent_dist = vae.encode(images).latent_dist  # type: ignore[operator]
        latents = latent_dist.mean + latent_dist.std * torch.randn_like(latent_dist.mean)
        l1 = perceptual = torch.zeros((), device=images.device)
        for given, wanted in equivariant(latents, images):
            decoded, share = vae.decode(given).sample, len(given) / len(images)  # type: ignore[operator]
            l1 = l1 + share * (decoded.float() - wanted.float()).abs().mean()
            perceptual = perceptual + share * perceptual_distance(self.lite0, decoded, wanted)
        kl = 0.5 * (latent_dist.mean.float().square() + latent_dist.var.float() - 1 - latent_dist.logvar.float())
        kl = kl.sum(dim=(1, 2, 3)).mean()
        return l1 + PERCEPTUAL_WEIGHT * perceptual + KL_WEIGHT * kl, torch.stack([l1, perceptual, kl])

    def validate(self) -> dict[str, float]:
        """PSNR, and the sharpness of the autoencoded held-out images over that of the originals."""
        return quality(self.weights.ema["vae"], self.held_out)


@torch.no_grad()
def normalise_latents(vae: nn.Module, images: Tensor, batch_size: int = 250) -> None:
    """Fold per-channel mean and standard deviation of the latents into the two 1x1 convolutions, exactly.

    Afterwards the latents of `images` (N, 3, S, S) uint8 have mean 0 and standard deviation 1 in every
    channel, `scaling_factor` is 1, and decode(encode(x)) is what it was: a plain StableDiffusionPipeline
    needs to know nothing of it.
    """
    device = next(vae.parameters()).device
    chunks = images.split(batch_size)
    means = torch.cat([vae.encode(to_model_range(chunk.to(device))).latent_dist.mean for chunk in chunks])  # type: ignore[operator]
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
