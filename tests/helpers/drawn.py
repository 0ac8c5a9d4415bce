"""A run folder whose synthetic images are noise, of whatever classes, sources and columns a test asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.sample.synthetic import SyntheticStore


def drawn(run: Path, like: Path, sources: Sequence[tuple[str, str, dict[str, Any]]], variants: int = 2) -> Path:
    """Variants of each source in the new folder `run`, whose rows are else as those of the finished run `like`.

    sources: of each its class, its id and columns of its own. Returns `run`.
    """
    class_names = tuple(dict.fromkeys(name for name, *_ in sources))
    first = pq.read_table(like / "synthetic" / "metadata.parquet").to_pylist()[0]
    rows = []
    for class_name, source, own in sources:
        label = class_names.index(class_name)
        about = {"source_id": source, "partner_id": source, "label": label, "partner_label": label, **own}
        rows += [{**first, **about, "variant": variant} for variant in range(variants)]
    for row in rows:
        del row["file_name"], row["class_name"]
    pixels = torch.randint(0, 256, (len(rows), 3, 16, 16), generator=torch.Generator().manual_seed(0))
    run.mkdir()
    store = SyntheticStore(run, class_names)
    store.commit(pixels.to(torch.uint8), rows)
    store.finish(variants)
    record = json.loads((like / "data.json").read_text()) | {"class_names": list(class_names)}
    Ledger(run).commit_json("data.json", record, {"source": record["source"]}, indent=1)
    return run
