"""Settings of the GAN: frozen models with units and ranges. Each description ends with where the default comes from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.settings import Settings

Policy = Literal["color", "translation", "cutout"]


class GanSettings(Settings):
    """Training of generator and discriminator.

    "SNGAN": Miyato et al., arXiv 1802.05957 and 1802.05637; "DiffAugment": Zhao et al., arXiv 2006.10738, BigGAN on
    CIFAR-10, of which the paper takes its GAN.
    """

    steps: int = Field(30_000, ge=1, description="steps of the generator (ours)")
    width: int = Field(64, ge=1, le=512, description="channels at 64 px; four times as many at 4 px (SNGAN: 64)")
    latent_dim: int = Field(128, ge=1, le=4096, description="length of the latent vector z (SNGAN)")
    batch_size: int = Field(64, ge=2, description="images in every step (SNGAN)")
    discriminator_steps: int = Field(4, ge=1, description="steps of the discriminator for each of the generator "
                                     "(DiffAugment)")  # fmt: skip
    learning_rate: float = Field(2e-4, gt=0, description="Adam's, of both networks (SNGAN, DiffAugment)")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="of the averaged generator; lower at first (DiffAugment)")
    augmentations: tuple[Policy, ...] = Field(
        ("color", "translation", "cutout"), description="DiffAugment's, of real and generated images (its small sets)"
    )
    seed: int = Field(0, ge=0, description="of weights and of every draw (ours)")


class GanSampleSettings(Settings):
    """Images of latents drawn at random."""

    variants: int = Field(1, ge=1, description="images for every training image of the run (text: 1)")
    batch_size: int = Field(100, ge=1, description="images side by side (ours)")
    seed: int = Field(0, ge=0, description="a latent depends on (seed, class, number, variant) (ours)")


class GanInvertSettings(Settings):
    """Inversion (paper, section B.2.1): one latent for every image."""

    steps: int = Field(500, ge=1, description="Adam steps of every start (ours; text: not said)")
    starts: int = Field(4, ge=1, description="starts of every image; the one with the least distance counts (ours)")
    learning_rate: float = Field(0.1, gt=0, description="Adam's at first, falling to 0 along a cosine (ours)")
    pixel_weight: float = Field(1.0, ge=0, description="lambda_pixel (text)")
    batch_size: int = Field(25, ge=1, description="images side by side, each with all its starts (ours)")
    seed: int = Field(0, ge=0, description="a start depends on (seed, image id, its number) (ours)")

    @property
    def variants(self) -> int:
        """Images that are made of each source."""
        return 1
