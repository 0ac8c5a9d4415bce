"""A run whose synthetic images are its training images."""

from __future__ import annotations

from pathlib import Path

import torch

from diffusion_inversion.run.images import open_splits
from diffusion_inversion.sample.columns import COLUMNS
from diffusion_inversion.sample.synthetic import SyntheticStore


def plant_copies(run: Path) -> None:
    """Put the sources in the place of their variants, with records that say so."""
    splits = open_splits(run)
    store = SyntheticStore(run, splits.train.class_names)
    pixels = dict(zip(splits.train.ids, splits.train.images, strict=True))
    rows = store.table(*COLUMNS).to_pylist()
    store.remove({row.pop("file_name") for row in rows})
    for row in rows:
        del row["class_name"]
    store.commit(torch.stack([pixels[row["source_id"]] for row in rows]), rows)
    store.finish(2)
