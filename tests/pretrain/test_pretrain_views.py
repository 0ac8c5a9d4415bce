"""Views of the training images, and what the denoiser's rows see of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.generator.features import PROFILE_DIM, load_lite0, profile
from diffusion_inversion.generator.generator import initialise
from diffusion_inversion.pretrain import latents, networks, unet
from diffusion_inversion.pretrain.checkpoint import metadata_of
from diffusion_inversion.pretrain.corpus import Corpus
from diffusion_inversion.pretrain.views import mirrored_half, near_view, seeded_draws, wide_view

CPU = torch.device("cpu")


@pytest.mark.parametrize("view", [near_view, wide_view, mirrored_half])
def test_views_keep_shape_and_range_and_are_eight_bit_images(view: Callable[..., Tensor], corpus: Corpus) -> None:
    images = to_model_range(corpus.images.repeat(8, 1, 1, 1))
    seen = view(images, seeded_draws(0, CPU))
    assert seen.shape == images.shape
    assert float(seen.min()) >= -1 and float(seen.max()) <= 1
    steps = (seen + 1) * 127.5
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert not torch.equal(seen, view(images, seeded_draws(1, CPU)))
    assert torch.equal(seen, view(images, seeded_draws(0, CPU)))


def test_wide_views_are_grey_inverted_turned_and_zoomed_in_the_promised_shares() -> None:
    size, count = 16, 4000
    ramp = torch.linspace(-0.5, 0.5, size).expand(size, size)
    colour = torch.stack([ramp, 0.2 * ramp, -ramp]).expand(count, 3, size, size)
    seen = wide_view(colour, seeded_draws(0, CPU))
    spread = (seen - seen.mean(1, keepdim=True)).abs().amax(dim=(1, 2, 3))
    assert float((spread < 0.02).float().mean()) == pytest.approx(0.35 * 0.7, abs=0.03)  # grey and without a tint
    steep = seen.mean(1).diff(dim=-1).abs().mean((1, 2)) + seen.mean(1).diff(dim=-2).abs().mean((1, 2))
    assert float(steep.std()) > 0.1 * float(steep.mean())
    flat = torch.full((count, 3, size, size), 0.5)
    bright = wide_view(flat, seeded_draws(0, CPU)).mean((1, 2, 3))
    assert float((bright < -0.05).float().mean()) == pytest.approx(0.15, abs=0.03)  # inverted


def test_near_views_are_crops_that_never_leave_the_image() -> None:
    """On a ramp every crop is a ramp of 0.6 to 1 times the slope, between the image's ends."""
    ramp = torch.linspace(-1, 1, 32).expand(200, 3, 32, 32)
    seen = near_view(ramp, seeded_draws(0, CPU))
    slopes = (seen[:, 0, 16, -3] - seen[:, 0, 16, 2]) / (ramp[:, 0, 16, -3] - ramp[:, 0, 16, 2])
    assert float(slopes.abs().min()) > 0.55 and float(slopes.abs().max()) <= 1.02
    assert 0.35 < float((slopes < 0).float().mean()) < 0.65
    assert float(slopes.abs().std()) > 0.05


def test_a_profile_is_that_of_the_cached_view(corpus: Corpus, tmp_path: Path) -> None:
    vae = initialise(networks.ARCHITECTURES / "32", seed=0)["vae"].eval().requires_grad_(False)
    views = ("plain", "mirrored", "wide")
    cache = latents.cache_views(vae, corpus, tmp_path / "cache.safetensors", views, device=CPU)
    lite0, images = load_lite0(), to_model_range(corpus.images)
    wide = wide_view(images, seeded_draws(2, CPU))
    for number, seen in enumerate((images, images.flip(-1), wide)):
        torch.testing.assert_close(cache.profiles[number].float(), profile(lite0, seen), rtol=2e-2, atol=2e-2)
        mean = vae.encode(seen).latent_dist.mean
        torch.testing.assert_close(cache.latents[number, :, :8].float(), mean, rtol=5e-2, atol=5e-2)
    read = latents.cache_views(vae, corpus, tmp_path / "cache.safetensors", views, device=CPU)
    assert torch.equal(read.latents, cache.latents) and torch.equal(read.profiles, cache.profiles)
    other = latents.cache_views(vae, corpus, tmp_path / "cache.safetensors", ("plain",), device=CPU)
    assert len(other.latents) == 1  # another recipe's cache is not taken over


def test_views_do_not_depend_on_how_many_are_encoded_together(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA several blocks are: their views, so their profiles, are those of a CPU to rounding."""
    vae = initialise(networks.ARCHITECTURES / "32", seed=0)["vae"].eval().requires_grad_(False)
    monkeypatch.setattr(latents, "BLOCK", 3)

    def cache(name: str) -> latents.LatentCache:
        return latents.cache_views(vae, corpus, tmp_path / name, ("near", "wide"), device=CPU)

    apart = cache("apart")
    monkeypatch.setattr(latents, "BLOCKS_AT_ONCE", {"cpu": 4})
    together = cache("together")
    torch.testing.assert_close(together.latents, apart.latents, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(together.profiles, apart.profiles, rtol=2e-2, atol=2e-2)


def test_a_cache_of_an_earlier_version_is_taken_on_a_cpu(corpus: Corpus, tmp_path: Path) -> None:
    """It did not name its blocks, which were those of today on a CPU and others on CUDA."""
    vae = initialise(networks.ARCHITECTURES / "32", seed=0)["vae"].eval().requires_grad_(False)
    path = tmp_path / "cache.safetensors"
    latents.cache_views(vae, corpus, path, ("plain",), device=CPU)
    metadata = metadata_of(path)
    assert metadata is not None and metadata.pop("block") == "500"
    planted = load_file(path) | {"profiles": torch.ones(1, 16, PROFILE_DIM).half()}
    for said, taken in ((metadata, True), (metadata | {"block": "2000"}, False)):
        save_file(planted, path, metadata=said)
        again = latents.cache_views(vae, corpus, path, ("plain",), device=CPU)
        assert torch.equal(again.profiles, planted["profiles"]) == taken


def test_rows_see_the_views_that_they_may(corpus: Corpus, tmp_path: Path) -> None:
    """Adapter rows: 35 % plain or mirrored, 25 % near, 40 % wide; all others plain or mirrored."""
    task = unet.DenoiserTask.__new__(unet.DenoiserTask)
    task.batch_size, task.device = 20_000, CPU
    torch.manual_seed(0)
    view = task._views(12_000)
    shares = torch.bincount(view[:12_000], minlength=7) / 12_000
    torch.testing.assert_close(shares, torch.tensor([0.175, 0.175, *[0.125] * 2, *[0.4 / 3] * 3]), rtol=0, atol=0.02)
    assert set(view[12_000:].tolist()) == {0, 1}
    assert latents.TRAINING_VIEWS == ("plain", "mirrored", "near", "near", "wide", "wide", "wide")
