"""Stage `decoder`: sharpen the decoder against a small PatchGAN; the encoder, hence every latent, stays as it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..generator.features import load_lite0
from .corpus import Corpus
from .loop import Task
from .optim import MixedPrecision
from .vae import LR_BATCH, PERCEPTUAL_WEIGHT, VALIDATION_IMAGES, draw_views, perceptual_distance, quality
from .views import device_draws

LR, LR_VECTORS = 1e-3, 5e-4
EMA_DECAY, DECAY_SHARE = 0.998, 0.5
ADVERSARIAL_WEIGHT = 0.3  # of the gradient of the other losses at the last convolution (arXiv 2012.09841, eq. 7)
MAX_RATIO = 1e3


class PatchDiscriminator(nn.Sequential):
    """Judge patches of 22 px of images (B, 3, H, W): logits (B, 1, H/4 - 2, W/4 - 2) (arXiv 1611.07004)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, padding=1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 4, padding=1),
        )


class DecoderTask(Task):
    """L1 + Lite0 distance + hinge loss of a discriminator that is trained in the same step."""

    name = "decoder"
    columns = ("l1", "perceptual", "generator", "discriminator", "ratio")
    validated = ("val_psnr_db", "val_sharpness")
    decay_share = DECAY_SHARE

    def __init__(
        self,
        vae: nn.Module,
        corpus: Corpus,
        held_out: Corpus,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        seed: int = 0,
    ) -> None:
        scale = (batch_size / LR_BATCH) ** 0.5
        self.batch_size, self.dtype = batch_size, dtype
        self.vae = vae.to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            discriminator = PatchDiscriminator().to(device)
        decoder, post = vae.decoder, vae.post_quant_conv
        assert isinstance(decoder, nn.Module) and isinstance(post, nn.Module)
        model = nn.ModuleDict({"decoder": decoder, "post_quant_conv": post, "discriminator": discriminator})
        model.requires_grad_(True)
        self.weights = MixedPrecision(model, dtype, LR * scale, LR_VECTORS * scale, EMA_DECAY)
        self.lite0 = load_lite0().to(device, dtype)
        self.images, self.held_out = corpus.images.to(device), held_out.images[:VALIDATION_IMAGES]
        self.draw = device_draws(device)

    def losses(self) -> tuple[Tensor, Tensor]:
        """The decoder's and the discriminator's losses; neither's gradient reaches the other's weights."""
        network = self.weights.network
        images = draw_views(self.images, self.batch_size, self.draw)
        with torch.no_grad(), torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            latent_dist = self.vae.encode(images).latent_dist  # type: ignore[operator]
            latents = latent_dist.mean + latent_dist.std * torch.randn_like(latent_dist.mean)
        images = images.to(self.dtype)
        decoded = network["decoder"](network["post_quant_conv"](latents.to(self.dtype)))
        l1 = (decoded.float() - images.float()).abs().mean()
        perceptual = perceptual_distance(self.lite0, decoded, images)
        faithful = l1 + PERCEPTUAL_WEIGHT * perceptual

        judge = network["discriminator"]
        fixed = {key: value.detach() for key, value in judge.named_parameters()}
        generator = -functional_call(judge, fixed, (decoded,)).float().mean()
        last = network["decoder"].get_parameter("conv_out.weight")
        norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].float().norm() for loss in (faithful, generator)]
        ratio = (norms[0] / (norms[1] + 1e-6)).clamp(max=MAX_RATIO).detach()
        on_real, on_decoded = judge(images).float(), judge(decoded.detach()).float()
        discriminator = 0.5 * (F.relu(1 - on_real).mean() + F.relu(1 + on_decoded).mean())
        total = faithful + ADVERSARIAL_WEIGHT * ratio * generator + discriminator
        return total, torch.stack([l1, perceptual, generator, discriminator, ratio])

    def validate(self) -> dict[str, float]:
        """PSNR and relative sharpness of the held-out images through the averaged decoder."""
        return quality(self.refined(), self.held_out)

    def refined(self) -> nn.Module:
        """The autoencoder with the averaged decoder."""
        ema = self.weights.ema
        self.vae.decoder, self.vae.post_quant_conv = ema["decoder"], ema["post_quant_conv"]
        return self.vae
