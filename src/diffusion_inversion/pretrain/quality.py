"""What a generator draws from class names, and how far that is from held-out images on Lite0 features."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import to_uint8
from ..engine.progress import track
from ..engine.store import commit_file
from ..engine.untrusted import TensorSpec, read_header, read_tensors
from ..errors import DataError, UsageError
from ..generator.generator import EMPTY_PROMPT, Generator, Latents
from ..measure.extractors.cache import cached_features
from ..measure.extractors.extractor import Extractor, extract
from ..measure.metrics.intervals import fid_error
from ..randomness import generator_for
from ..sample.denoising import denoise
from .likeness import at_size

PROMPT, PROMPT_GUIDANCE, INFERENCE_STEPS = "a photo of a {}", 2.0, 16
BLOCK = 500  # samples whose features are committed together
AT_ONCE = 100  # samples denoised side by side
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
_MAX_BLOCK = 2**27  # bytes of a file of features


def prompted(generator: Generator, names: Sequence[str], noise: Latents) -> Tensor:
    """One image per class name from standard normal `noise` (B, C, h, w): uint8 (B, 3, R, R), R the resolution."""
    tokens = generator.text_tokens([PROMPT.format(name) for name in names])
    scales = torch.full((len(tokens),), PROMPT_GUIDANCE)
    empty = generator.text_tokens([EMPTY_PROMPT]).expand_as(tokens)
    return to_uint8(generator.decode(denoise(generator, noise, tokens, empty, scales, "dpm++", INFERENCE_STEPS))).cpu()


def latent_shape(generator: Generator) -> tuple[int, int, int]:
    side = generator.resolution // generator.vae_factor
    return (generator.latent_channels, side, side)


def prompt_grid(generator: Generator, names: Sequence[str], rows: int = 5) -> Tensor:
    """`rows` draws of every name, one name a column, enlarged twice: uint8 (3, H, W)."""
    from torchvision.utils import make_grid

    columns = [name for _ in range(rows) for name in names]
    noise = torch.randn(len(columns), *latent_shape(generator), generator=torch.Generator().manual_seed(0))
    grid: Tensor = make_grid(prompted(generator, columns, noise), nrow=len(names), padding=2, pad_value=255)
    return grid.repeat_interleave(2, 1).repeat_interleave(2, 2)


def quality_figures(
    generator: Generator,
    heldout: Tensor,
    names: Sequence[str],
    samples: int,
    sizes: Sequence[int],
    folder: Path,
    extractor: Extractor,
) -> dict[str, Any]:
    """`fid_lite0` (not the standard FID) and KID of `samples` prompted images against `heldout` uint8 (N, 3, S, S).

    Both sets are resized to each of `sizes` px first, so that generators of different resolutions compare. Class
    names take turns. Features are kept below `folder`, those of the samples in blocks, so that a killed call goes on.
    """
    drawn = _sample_features(generator, names, samples, tuple(sizes), folder, extractor)
    found: dict[str, Any] = {"n": samples, "n_real": len(heldout), "dim": extractor.dim, "sizes": {}}
    for size, features in drawn.items():
        with track(f"held-out features at {size} px", len(heldout)) as advance:
            real = cached_features(extractor, at_size(heldout, size), folder / "held-out", advance=advance)
        found["sizes"][str(size)] = distances(real, features)
    return found


def distances(real: Tensor, generated: Tensor) -> dict[str, Any]:
    """FID and KID of features (N, D) and (M, D) by torchmetrics; KID as mean and standard deviation over subsets.

    fid_error: the jackknife's standard error (`metrics.intervals`), None where there are too few images. Raises
    UsageError without torchmetrics.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise UsageError("the quality of samples needs torchmetrics: pip install torchmetrics.") from error

    given = _Given(real.shape[1])
    size = min(KID_SUBSET_SIZE, len(real), len(generated))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # KID says that it keeps the features in memory
        torch.manual_seed(0)  # of KID's subsets
        fid = FrechetInceptionDistance(feature=given, normalize=False)
        kid = KernelInceptionDistance(feature=given, subsets=KID_SUBSETS, subset_size=size, normalize=False)
        for metric in (fid, kid):
            metric.update(real, real=True)
            metric.update(generated, real=False)
        mean, std = kid.compute()
        return {
            "fid_lite0": max(float(fid.compute()), 0.0),
            "fid_error": fid_error(real, generated, seed=0),
            "kid_lite0": float(mean),
            "kid_std": float(std),
            "kid_subsets": [KID_SUBSETS, size],
        }


class _Given(nn.Module):
    """torchmetrics' extractor for features that are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _sample_features(
    generator: Generator, names: Sequence[str], count: int, sizes: tuple[int, ...], folder: Path, extractor: Extractor
) -> dict[int, Tensor]:
    """Features (count, dim) of prompted samples at every size; sample i has the name i mod names and its own noise."""
    made_from = {
        "generator": generator.record,
        "names": list(names),
        "sampler": [PROMPT, PROMPT_GUIDANCE, INFERENCE_STEPS],
        "extractor": [extractor.name, extractor.weights_sha256, extractor.preprocessing],
        "sizes": sizes,
    }
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    found: dict[int, list[Tensor]] = {size: [] for size in sizes}
    with track(f"prompted samples of {generator.name}", count) as advance:
        for block in blocks:
            path = folder / f"prompted-{key[:12]}" / f"{block.start:06d}-{block.stop:06d}.safetensors"
            features = _read(path, key, len(block), extractor.dim, sizes)
            if features is None:
                drawn = []
                for start in range(block.start, block.stop, AT_ONCE):
                    rows = range(start, min(start + AT_ONCE, block.stop))
                    streams = [generator_for("prompted", row) for row in rows]
                    noise = torch.stack([torch.randn(latent_shape(generator), generator=s) for s in streams])
                    drawn.append(prompted(generator, [names[row % len(names)] for row in rows], noise))
                    advance(len(rows))
                images = torch.cat(drawn)
                features = {size: extract(extractor, at_size(images, size)) for size in sizes}
                _write(path, key, features)
            else:
                advance(len(block))
            for size in sizes:
                found[size].append(features[size])
    return {size: torch.cat(parts) for size, parts in found.items()}


def _write(path: Path, key: str, features: dict[int, Tensor]) -> None:
    from safetensors.torch import save_file

    tensors = {f"at-{size}": values.contiguous() for size, values in features.items()}
    commit_file(path, lambda partial: save_file(tensors, partial, metadata={"made_from": key}))


def _read(path: Path, key: str, count: int, dim: int, sizes: tuple[int, ...]) -> dict[int, Tensor] | None:
    """A block's features; None where it is not there, damaged or made otherwise."""
    specs = {f"at-{size}": TensorSpec(torch.float32, (count, dim)) for size in sizes}
    try:
        if read_header(path, max_bytes=_MAX_BLOCK)[1] != {"made_from": key}:
            return None
        tensors, _ = read_tensors(path, specs, max_bytes=_MAX_BLOCK)
    except DataError:
        return None
    return {size: tensors[f"at-{size}"] for size in sizes}
