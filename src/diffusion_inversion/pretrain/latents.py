"""Stage `latents`: what the denoiser reads of every view of every image, computed once: latents and profile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..data.images import to_model_range
from ..engine.progress import track
from ..engine.store import commit_file
from ..engine.untrusted import TensorSpec, read_header, read_tensors
from ..errors import DataError
from ..generator.device import bfloat16_is_fast
from ..generator.features import PROFILE_DIM, load_lite0, profile
from .corpus import Corpus
from .views import Draw, near_view, seeded_draws, wide_view

MAX_CACHE = 2**36  # bytes; 100,000 images in 7 views have 4e9
# The views of a training image, and of a held-out one.
TRAINING_VIEWS = ("plain", "mirrored", "near", "near", "wide", "wide", "wide")
HELD_OUT_VIEWS = ("plain", "wide")
_VIEWS: dict[str, Callable[[Tensor, Draw], Tensor]] = {
    "plain": lambda images, draw: images,
    "mirrored": lambda images, draw: images.flip(-1),
    "near": near_view,
    "wide": wide_view,
}


@dataclass(frozen=True)
class LatentCache:
    """latents (V, N, 2C, H, W) float16: mean and log-variance of V views; profiles (V, N, PROFILE_DIM) float16."""

    latents: Tensor
    profiles: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> LatentCache:
        """The same on another device."""
        return LatentCache(self.latents.to(device), self.profiles.to(device), self.labels.to(device))


@torch.no_grad()
def cache_views(
    vae: nn.Module,
    corpus: Corpus,
    path: Path,
    views: tuple[str, ...],
    *,
    device: torch.device,
    seed: int = 0,
    batch_size: int | None = None,
) -> LatentCache:
    """Compute the cache of `corpus` with a normalised VAE, or read it from `path` where it was made from the same.

    Latents and profile are those of the same view. The views' draws are the same on every device.
    """
    batch_size = batch_size or (2_000 if device.type == "cuda" else 500)
    made_from = _origin(vae, corpus, views, seed)
    count = len(corpus.images)
    if not _is_from(path, made_from):
        lite0 = load_lite0().to(device)
        vae = vae.to(device)
        latents, profiles = [], []
        with track(f"views {path.stem}", count * len(views)) as advance:
            for number, view in enumerate(views):
                draw = seeded_draws(seed * 1_000_003 + number, device)
                of_view: list[tuple[Tensor, Tensor]] = []
                for chunk in corpus.images.split(batch_size):
                    images = _VIEWS[view](to_model_range(chunk.to(device)), draw)
                    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device)):
                        latent_dist = vae.encode(images).latent_dist  # type: ignore[operator]
                    both = torch.cat([latent_dist.mean, latent_dist.logvar], dim=1).half()
                    of_view.append((both, profile(lite0, images).half()))
                    advance(len(chunk))
                latents.append(torch.cat([row[0] for row in of_view]))
                profiles.append(torch.cat([row[1] for row in of_view]))
        tensors = {
            "latents": torch.stack(latents).cpu().contiguous(),
            "profiles": torch.stack(profiles).cpu().contiguous(),
            "labels": corpus.labels,
        }
        commit_file(path, lambda partial: save_file(tensors, partial, metadata=made_from))
        return LatentCache(**tensors)
    specs = {
        "latents": TensorSpec(torch.float16, (len(views), count, None, None, None)),
        "profiles": TensorSpec(torch.float16, (len(views), count, PROFILE_DIM)),
        "labels": TensorSpec(torch.int64, (count,)),
    }
    return LatentCache(**read_tensors(path, specs, max_bytes=MAX_CACHE)[0])


def _origin(vae: nn.Module, corpus: Corpus, views: tuple[str, ...], seed: int) -> dict[str, str]:
    """What a cache is made from: hashes of the autoencoder's weights and of the corpus, and the views."""
    weights = hashlib.sha256()
    for value in vae.state_dict().values():
        weights.update(value.cpu().contiguous().numpy().data)
    images = hashlib.sha256(corpus.images.contiguous().numpy().data)
    return {
        "vae": weights.hexdigest(),
        "corpus": images.hexdigest(),
        "views": " ".join(views),
        "seed": str(seed),
    }


def _is_from(path: Path, made_from: dict[str, str]) -> bool:
    """Whether the cache can be used; one that cannot be read is made again."""
    try:
        return read_header(path, max_bytes=MAX_CACHE)[1] == made_from
    except DataError:
        return False
