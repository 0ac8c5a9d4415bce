"""Stage `latents`: what the UNet stage reads of every image, computed once: latents, plain and mirrored; profile."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..engine.progress import track
from ..engine.store import commit_file
from ..engine.untrusted import TensorSpec, read_header, read_tensors
from ..errors import DataError
from ..features import PROFILE_DIM, flip_profile, load_lite0, profile
from ..images import to_model_range
from .corpus import Corpus

MAX_CACHE = 2**36  # bytes; 100,000 images of 32 px have 1e9


@dataclass(frozen=True)
class LatentCache:
    """latents (2, N, 2C, H, W) float16: [plain, mirrored] x [mean, log-variance]; profiles (N, PROFILE_DIM) float16."""

    latents: Tensor
    profiles: Tensor
    labels: Tensor

    def batch(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sampled latents (B, C, H, W) and profiles (B, PROFILE_DIM), float32, mirrored together half of the time."""
        mirrored = torch.rand(len(rows), generator=generator) < 0.5
        mean, logvar = self.latents[mirrored.long(), rows].float().chunk(2, dim=1)
        latents = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=generator)
        profiles = self.profiles[rows].float()
        profiles[mirrored] = flip_profile(profiles[mirrored])
        return latents, profiles


@torch.no_grad()
def cache_latents(vae: nn.Module, corpus: Corpus, path: Path, batch_size: int = 100) -> LatentCache:
    """Compute the cache of `corpus` with a normalised VAE, or read it from `path` where it was made from the same."""
    made_from = _origin(vae, corpus)
    if not _is_from(path, made_from):
        lite0 = load_lite0()
        plain: list[Tensor] = []
        mirrored: list[Tensor] = []
        profiles: list[Tensor] = []
        with track(f"latents {path.stem}", len(corpus.images)) as advance:
            for chunk in corpus.images.split(batch_size):
                images = to_model_range(chunk)
                for found, view in ((plain, images), (mirrored, images.flip(-1))):
                    with torch.autocast("cpu", torch.bfloat16):
                        latent_dist = vae.encode(view).latent_dist  # type: ignore[operator]
                    found.append(torch.cat([latent_dist.mean, latent_dist.logvar], dim=1).half())
                profiles.append(profile(lite0, images).half())
                advance(len(chunk))
        latents = torch.stack([torch.cat(plain), torch.cat(mirrored)]).contiguous()
        tensors = {"latents": latents, "profiles": torch.cat(profiles), "labels": corpus.labels}
        commit_file(path, lambda partial: save_file(tensors, partial, metadata=made_from))
    count = len(corpus.images)
    specs = {
        "latents": TensorSpec(torch.float16, (2, count, None, None, None)),
        "profiles": TensorSpec(torch.float16, (count, PROFILE_DIM)),
        "labels": TensorSpec(torch.int64, (count,)),
    }
    return LatentCache(**read_tensors(path, specs, max_bytes=MAX_CACHE)[0])


def _origin(vae: nn.Module, corpus: Corpus) -> dict[str, str]:
    """What a cache is made from: hashes of the autoencoder's weights and of the corpus."""
    weights = hashlib.sha256()
    for value in vae.state_dict().values():
        weights.update(value.contiguous().numpy().data)
    images = hashlib.sha256(corpus.images.contiguous().numpy().data)
    return {"vae": weights.hexdigest(), "corpus": images.hexdigest()}


def _is_from(path: Path, made_from: dict[str, str]) -> bool:
    """Whether the cache can be used; one that cannot be read is made again."""
    try:
        return read_header(path, max_bytes=MAX_CACHE)[1] == made_from
    except DataError:
        return False
