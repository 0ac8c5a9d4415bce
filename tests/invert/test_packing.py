"""Vectors in fewer bytes: near enough, the same bits however often they are rewritten, refused where mixed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import WIDTH, toy_images

from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.errors import ConfigMismatchError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import EmbeddingStore, Shard, read_embeddings
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.invert.packing import DTYPES, VectorDtype, pack, unpack

SETTINGS = InvertSettings(steps=2, keep_steps=(0,), init="random", batch_size=2, eval_draws=2)
finite = st.floats(-60000, 60000, width=32)


@given(st.lists(finite, min_size=6, max_size=6), st.sampled_from(DTYPES))
def test_what_is_read_packs_to_the_same_bits(numbers: list[float], dtype: VectorDtype) -> None:
    vectors = torch.tensor(numbers).view(2, 3)
    packed = pack(vectors, dtype)
    again = pack(unpack(packed), dtype)
    assert packed.keys() == again.keys() and all(torch.equal(packed[name], again[name]) for name in packed)


@given(st.lists(finite, min_size=6, max_size=6))
def test_int8_is_off_by_at_most_half_a_level_of_its_token(numbers: list[float]) -> None:
    vectors = torch.tensor(numbers).view(2, 3)
    off = (unpack(pack(vectors, "int8")) - vectors).abs().double()
    off = (off - torch.finfo(torch.float32).tiny).clamp_min(0)  # below it scales have no digits
    assert bool((off <= vectors.abs().amax(-1, keepdim=True).double() / 127).all())
    assert bool((off <= pack(vectors, "int8")["scales"][:, None].double() / 2).all())


def test_signs_and_zeros_stay() -> None:
    vectors = torch.tensor([[-2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    for dtype in DTYPES:
        torch.testing.assert_close(unpack(pack(vectors, dtype)), vectors, rtol=0, atol=2 / 127)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_run_keeps_what_it_learned_in_fewer_bytes(dtype: VectorDtype, generator: Generator, tmp_path: Path) -> None:
    """The vectors are those that float32 would have kept, packed; forgetting one leaves the others' bits."""
    images = toy_images(4)
    whole = invert(images, generator, tmp_path / "whole", SETTINGS)
    settings = SETTINGS.model_copy(update={"vector_dtype": dtype})
    found = invert(images, generator, tmp_path / "packed", settings)
    assert torch.equal(found.vectors, unpack(pack(whole.vectors, dtype))) and not torch.equal(
        found.vectors, whole.vectors
    )
    assert torch.equal(found.losses, whole.losses), "measured before they were packed"
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / name / "embeddings").glob("*.safetensors"))
        for name in ("whole", "packed")
    ]
    numbers = 2 * 4 * 5 * WIDTH
    assert sizes[0] - sizes[1] >= numbers * (2 if dtype == "float16" else 3) - 2 * 4 * 5 * 4 - 2 * 200
    store = EmbeddingStore(tmp_path / "packed")
    store.remove({found.ids[0]})
    assert read_embeddings(tmp_path / "packed").versions == found.versions[1:]
    with pytest.raises(ConfigMismatchError, match="vector_dtype"):
        invert(images, generator, tmp_path / "packed", SETTINGS)


def test_what_float16_cannot_hold_counts_as_failed(tmp_path: Path) -> None:
    images = toy_images(2)
    store = EmbeddingStore(tmp_path)
    store.begin({"class_names": list(images.class_names), "steps": [0], "curve_steps": [0], "generator_hash": "x",
                 "resolution": 16, "image_size": 16, "vector_dtype": "float16"})  # fmt: skip
    vectors = torch.ones(1, 2, 5, WIDTH)
    vectors[0, 1, 0, 0] = 70_000
    store.commit(Shard(images.ids, images.labels, vectors, torch.zeros(1, 2), torch.zeros(2)), images)
    assert list(store.failed()) == [images.ids[1]] and store.read().ids == (images.ids[0],)
    assert "not finite as it is stored; --vector-dtype float32" in store.failed()[images.ids[1]]
