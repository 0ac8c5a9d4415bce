"""The images of cells that are drawn around vectors: how many, what is lacking, drawn where others asked for some."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config.sampling import SampleSettings
from ..config.settings import DataSettings, InvertSettings
from ..data.datasets import Splits
from ..generator.generator import Generator
from ..invert.embeddings import EmbeddingStore, read_embeddings
from ..run.balancing import values_to_balance
from ..run.room import png_bytes, vector_bytes
from ..run.strengths import is_auto, strengths_for
from ..sample.balance import counts_of, uneven
from ..sample.sampling import draw_variants, storage_of
from ..sample.synthetic import SyntheticStore
from .loaded import Trained


def counts(vectors: Path, sample: SampleSettings, data: DataSettings) -> dict[str, int]:
    """How many variants each source gets that has a vector in this folder."""
    store = EmbeddingStore(vectors)
    without = store.failed()
    labels = {image_id: label for image_id, (_, label) in store.images().items() if image_id not in without}
    return counts_of(labels, sample, values_to_balance(data, sample))


def draw(
    vectors: Path,
    home: Path,
    sample: SampleSettings,
    data: DataSettings,
    generator: Generator,
    splits: Callable[[DataSettings], Splits],
) -> dict[str, Any]:
    """Draw what the folder lacks. What cells with other counts of images have asked for lies there too, and stays.

    `splits` loads the images that were inverted, where they say how much noise each vector bears.
    """
    embeddings = read_embeddings(vectors)
    found = {"images": sample.variants * len(embeddings)}
    store = SyntheticStore(home, embeddings.class_names)
    if sample.balance == "none":  # another experiment may have drawn more
        sample = sample.model_copy(update={"variants": max(sample.variants, store.complete())})
    value_of = values_to_balance(data, sample)
    labels = dict(zip(embeddings.ids, embeddings.labels.tolist(), strict=True))
    if (left := uneven(labels, sample, value_of)) is not None:
        print(f"note: {left}", file=sys.stderr, flush=True)
    count = sum(counts_of(labels, sample, value_of).values())
    sample = sample.model_copy(update={"storage": storage_of(store, sample, count)})  # what both of these freeze
    strengths = strengths_for(home, embeddings, generator, sample, splits(data).train if is_auto(sample) else None)
    draw_variants(embeddings, generator, home, sample, value_of, strengths)
    return found


def vectors_lacking(folder: Path, trained: Trained, generator: Generator, settings: InvertSettings) -> int:
    """Bytes of the vectors that this folder lacks of the training images."""
    return (len(trained.images) - len(EmbeddingStore(folder).images())) * vector_bytes(generator, settings)


def images_lacking(folder: Path, count: int, side: int) -> int:
    """Bytes of the images that this folder lacks, of `count` of `side` px."""
    return max(count - SyntheticStore(folder, ()).count, 0) * png_bytes(side)
