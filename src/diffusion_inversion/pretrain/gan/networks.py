"""The networks: residual blocks as in SNGAN, classes by conditional batch norm and by projection.

Miyato et al., arXiv 1802.05957 (spectral norm, table 4) and 1802.05637 (projection discriminator).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SIDES = (32, 64)  # px
FIRST = 4  # px: side of the generator's first map
LAST = 8  # px: side of the discriminator's last maps


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias are of the image's class."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.bias = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, maps: Tensor, labels: Tensor) -> Tensor:
        gain, bias = (part(labels)[:, :, None, None] for part in (self.gain, self.bias))
        return torch.addcmul(bias, self.norm(maps), gain)


class GeneratorBlock(nn.Module):
    """Twice the side: norm, ReLU, upsampling, 3x3, norm, ReLU, 3x3, beside an upsampled 1x1."""

    def __init__(self, channels: int, out: int, classes: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = ConditionalBatchNorm(channels, classes), ConditionalBatchNorm(out, classes)
        self.conv_1, self.conv_2 = _conv(channels, out, 3), _conv(out, out, 3)
        self.shortcut = _conv(channels, out, 1)

    def forward(self, maps: Tensor, labels: Tensor) -> Tensor:
        inner = F.interpolate(F.relu(self.norm_1(maps, labels)), scale_factor=2)
        inner = self.conv_2(F.relu(self.norm_2(self.conv_1(inner), labels)))
        # A 1x1 convolution and nearest upsampling commute; this order takes a quarter of the work.
        total: Tensor = F.interpolate(self.shortcut(maps), scale_factor=2) + inner
        return total


class GanGenerator(nn.Module):
    """G(z, y). `architecture` is what it was made with."""

    def __init__(self, classes: int, size: int, width: int, latent_dim: int) -> None:
        """size: side of the images in px, one of SIDES; width: channels at 64 px, of which 4 px have four times."""
        super().__init__()
        self.architecture = {"classes": classes, "size": size, "width": width, "latent_dim": latent_dim}
        sides = [FIRST * 2**n for n in range(1, (size // FIRST).bit_length())]
        channels = [width * max(1, min(4, 64 // side)) for side in (FIRST, *sides)]
        self.first = nn.Linear(latent_dim, channels[0] * FIRST**2)
        nn.init.orthogonal_(self.first.weight)
        self.blocks = nn.ModuleList(GeneratorBlock(before, after, classes) for before, after in pairwise(channels))
        self.norm, self.last = nn.BatchNorm2d(channels[-1]), _conv(channels[-1], 3, 3)

    def forward(
        self, latents: Float[Tensor, "batch latent"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch 3 side side"]:
        """Images in (-1, 1) of latents that are N(0, I)."""
        maps = self.first(latents).unflatten(1, (-1, FIRST, FIRST))
        for block in self.blocks:
            maps = block(maps, labels)
        return torch.tanh(self.last(F.relu(self.norm(maps))))


@torch.no_grad()
def standing_statistics(generator: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Make the batch norms' statistics those of the generator's maps, the mean over batches of latents and labels.

    Statistics of the weights on their way would be of other maps (BigGAN, arXiv 1809.11096, section 3). The generator
    is in evaluation mode afterwards.
    """
    for norm in generator.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
    generator.train()
    for latents, labels in batches:
        generator(latents, labels)
    generator.eval()


class DiscriminatorBlock(nn.Module):
    """ReLU (not on pixels), 3x3, ReLU, 3x3 and, `down`, a 2x2 mean; beside a 1x1 where the shape changes."""

    def __init__(self, channels: int, out: int, *, down: bool, pixels: bool = False) -> None:
        super().__init__()
        self.down, self.pixels = down, pixels
        self.conv_1, self.conv_2 = spectral_norm(_conv(channels, out, 3)), spectral_norm(_conv(out, out, 3))
        self.shortcut = spectral_norm(_conv(channels, out, 1)) if channels != out or down else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.conv_2(F.relu(self.conv_1(maps if self.pixels else F.relu(maps))))
        total: Tensor = inner + self.shortcut(maps)  # the mean of a sum is the sum of the means
        return F.avg_pool2d(total, 2) if self.down else total


class ProjectionDiscriminator(nn.Module):
    """f(x, y) = <e_y, phi(x)> + psi(phi(x)), every weight divided by its spectral norm."""

    def __init__(self, classes: int, size: int, width: int) -> None:
        super().__init__()
        halvings = (size // LAST).bit_length() - 1
        outs = [width] * (halvings - 2) + [2 * width] * 4
        self.blocks = nn.Sequential(
            *(
                DiscriminatorBlock(before, after, down=index < halvings, pixels=index == 0)
                for index, (before, after) in enumerate(pairwise([3, *outs]))
            )
        )
        linear, classes_of = nn.Linear(outs[-1], 1), nn.Embedding(classes, outs[-1])
        nn.init.orthogonal_(linear.weight)
        nn.init.orthogonal_(classes_of.weight)
        self.linear, self.classes_of = spectral_norm(linear), spectral_norm(classes_of)

    def forward(
        self, images: Float[Tensor, "batch 3 side side"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """How real images in [-1, 1] look as images of their class: larger is more."""
        features = F.relu(self.blocks(images)).sum(dim=(2, 3))
        logits: Tensor = self.linear(features)[:, 0] + (self.classes_of(labels) * features).sum(1)
        return logits


def _conv(channels: int, out: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
    nn.init.orthogonal_(conv.weight)
    return conv
