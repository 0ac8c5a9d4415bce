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
from ..engine.untrusted import TensorSpec, read_tensors
from ..generator.device import bfloat16_is_fast
from ..generator.features import PROFILE_DIM, load_lite0, profile
from .checkpoint import MAX_CACHE, metadata_of
from .corpus import Corpus
from .views import Draw, near_view, seeded_draws, wide_view

BLOCK = 500  # images whose view is made together: what a view is depends on it
BLOCKS_AT_ONCE = {"cuda": 4}  # that are encoded together; elsewhere 1
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
) -> LatentCache:
    """Compute the cache of `corpus` with a normalised VAE, or read it from `path` where it was made from the same.

    Latents and profile are those of the same view. The views' draws are the same on every device.
    """
    earlier = _origin(vae, corpus, views)
    made_from = earlier | {"block": str(BLOCK)}
    count = len(corpus.images)
    # Earlier versions made views in blocks of as many on a CPU, of 2,000 on CUDA, and did not say so.
    if metadata_of(path) not in ((made_from,) if device.type == "cuda" else (made_from, earlier)):
        lite0 = load_lite0().to(device)
        vae = vae.to(device)
        latents, profiles = [], []
        with track(f"views {path.stem}", count * len(views)) as advance:
            for number, view in enumerate(views):
                draw = seeded_draws(number, device)
                of_view: list[tuple[Tensor, Tensor]] = []
                for chunk in corpus.images.split(BLOCK * BLOCKS_AT_ONCE.get(device.type, 1)):
                    blocks = to_model_range(chunk.to(device)).split(BLOCK)
                    images = torch.cat([_VIEWS[view](block, draw) for block in blocks])
                    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device)):
                        latent_dist = vae.encode(images).latent_dist  # type: ignore[operator]
                    both = torch.cat([latent_dist.mean, latent_dist.logvar], dim=1).half()
                    of_view.append((both, profile(lite0, images).half()))
                    advance(len(images))
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


def _origin(vae: nn.Module, corpus: Corpus, views: tuple[str, ...]) -> dict[str, str]:
    """What a cache is made from: hashes of the autoencoder's weights and of the corpus, and the views."""
    images = hashlib.sha256(corpus.images.contiguous().numpy().data)
    return {
        "vae": vae_hash(vae),
        "corpus": images.hexdigest(),
        "views": " ".join(views),
        "seed": "0",  # of the views' draws, ever
    }


def vae_hash(vae: nn.Module) -> str:
    """SHA-256 of an autoencoder's weights, 64 hex digits."""
    weights = hashlib.sha256()
    for value in vae.state_dict().values():
        weights.update(value.cpu().contiguous().numpy().data)
    return weights.hexdigest()
