"""Images of cells that no vectors are learned for: found in a pool, or kept by CLIP from those of many sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..data.datasets import Splits
from ..data.pools import Pool, open_pool
from ..errors import UsageError
from ..generator.device import resolve_device
from ..generator.generator import Generator
from ..measure.extractors.catalog import open_extractor
from ..run.lecf.sentences import T5_SENTENCES, Language, sentences_of_frames
from ..run.lecf.stage import lecf, to_keep
from ..run.retrieval import check as check_pool
from ..run.retrieval import retrieve
from ..sample.prompting import check as check_prompts
from ..train.few_shot.clip import Clip
from ..train.few_shot.prompts import check_classes
from ..train.mixing import refuse_unjudged
from .plan import Cell


def check_cell(cell: Cell, splits: Splits | None, folder: Path, generator: Generator, device: str) -> None:
    """Raise what can be said of a cell's pool, or of its CLIP, classes and sentences, before all work: UsageError."""
    refuse_unjudged(cell.train)
    if cell.lecf is not None and cell.train.mixing == "curriculum" and "real+synthetic" in cell.train.arms:
        raise UsageError(
            "mixing=curriculum: no real image is the source of those that sentences give. Give another mixing."
        )
    if cell.retrieve is not None:
        check_pool({cell.retrieve.k[0]: folder}, _pool(cell))
    if cell.lecf is not None and splits is not None:
        names, filtering, drawing = splits.train.class_names, cell.lecf.filtering, cell.lecf.drawing
        check_classes(_clip(cell, device), names, filtering.templates)
        check_prompts(generator, drawing, folder)
        if _language(filtering.language) is None:
            prompts = sentences_of_frames(names, filtering.sentences, drawing.seed)
            sentences = dict(Counter(prompt.class_name for prompt in prompts))
        else:  # which may repeat itself, and then says fewer
            sentences = dict.fromkeys(names, filtering.sentences or T5_SENTENCES)
        to_keep(splits.train, filtering, drawing, sentences)


def fill(home: Path, cell: Cell, splits: Splits, side: int, generator: Generator, device: str) -> dict[str, Any]:
    """Put a cell's images of `side` px into its folder: `home`, or of its threshold one in there."""
    features = cell.root / "features"
    if cell.retrieve is not None:
        settings, k = cell.retrieve, cell.retrieve.k[0]
        network = open_extractor(settings.extractor, resolve_device(device), settings.weights)
        found = retrieve(
            {k: home}, splits, _pool(cell), network, settings.model_copy(update={"image_size": side}),
            cache=features, drop_test_images=cell.data.drop_test_duplicates,
        )  # fmt: skip
        return {"images": found[k]["images"]}
    assert cell.lecf is not None
    filtering, drawing = cell.lecf.filtering, cell.lecf.drawing.model_copy(update={"image_size": side})
    language = _language(filtering.language)
    kept = lecf(home, splits.train, filtering, drawing, generator, _clip(cell, device), language, cache=features)
    return {"images": kept[filtering.thresholds[0]]["images"]}


def filtered_by(cells: Sequence[Cell], device: str) -> str:
    """What a page says of the CLIPs that kept images of its cells; empty where none did."""
    used = {clip.hash: clip.name for cell in cells if cell.lecf is not None for clip in [_clip(cell, device)]}
    return "".join(f"; LECF by CLIP {name}, files {digest[:12]}" for digest, name in used.items())


def _pool(cell: Cell) -> Pool:
    assert cell.retrieve is not None
    return open_pool(cell.retrieve.pool, cell.root)


def _clip(cell: Cell, device: str) -> Clip:
    assert cell.lecf is not None
    return _load(cell.lecf.filtering.clip, device, cell.lecf.filtering.clip_revision)


@cache
def _load(clip: str, device: str, revision: str | None) -> Clip:
    return Clip.load(clip, resolve_device(device), revision)


@cache
def _language(source: str | None) -> Language | None:
    return None if source is None else Language.load(source)
