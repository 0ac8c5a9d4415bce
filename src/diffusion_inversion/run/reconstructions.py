"""How much of each image its vector keeps: every source beside what is drawn from its vector, pictures of some."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..config.sampling import SampleSettings
from ..data.images import LabelledImages, resize, to_model_range
from ..engine import state
from ..engine.ledger import Ledger
from ..engine.lock import briefly
from ..errors import UsageError
from ..generator.features import load_lite0, profile
from ..generator.generator import Generator
from ..invert.embeddings import Embeddings
from ..sample.sampling import in_batches, reconstruct
from .layout import LIKENESS_FILE, RECONSTRUCTIONS_FILE
from .report.record import LikenessRecord

REPORT_ROWS, WORST_ROWS = 8, 4  # that are shown, and how many of them are the farthest from their sources
MOST_SOURCES = 500  # from which the mean distance between two different sources is taken: 124,750 pairs
_DIGITS = 5
_AT_ONCE = 100  # images whose profiles are computed together


@dataclass(frozen=True)
class Likeness:
    """Distance of every source to its reconstruction, in the profile of Lite0 (`features.profile`).

    In units of the mean distance between two different sources, as `dinv figures` measures it: 0 = the same, 1 = as far
    as any other image of the set.
    """

    distances: dict[str, float]  # by image id
    sources: int  # between how many of them the unit was measured

    @property
    def worst_first(self) -> list[str]:
        return sorted(self.distances, key=lambda image_id: (-self.distances[image_id], image_id))

    def record(self, listed: int = 10) -> LikenessRecord:
        """For run.json: how many, mean, median, 90th percentile, and the images that are farthest."""
        values = list(self.distances.values())
        return {
            "n": len(values),
            "mean": statistics.fmean(values),
            "median": statistics.median(values),
            "p90": float(torch.tensor(values, dtype=torch.float64).quantile(0.9)),
            "sources": self.sources,
            "worst": [{"file": i, "distance": self.distances[i]} for i in self.worst_first[:listed]],
        }


class _Profiles:
    """Profiles of images of any side, uint8, seen at one side; the network is loaded when it is first needed."""

    def __init__(self, side: int, device: torch.device) -> None:
        self.side, self.device = side, device

    @cached_property
    def _lite0(self) -> torch.nn.Module:
        return load_lite0().to(self.device)

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self._of(part) for part in images.split(_AT_ONCE)])

    def _of(self, images: Tensor) -> Tensor:
        same = images if images.shape[-1] == self.side else resize(images, self.side)
        return profile(self._lite0, to_model_range(same).to(self.device)).double().cpu()


def likeness_of(drawn: Tensor, sources: Tensor, device: torch.device) -> tuple[float, ...] | None:
    """Distance of every image to its source, both (N, 3, S, S) uint8, in the units of `Likeness`; None of one alone."""
    if len(sources) < 2:
        return None
    profiles = _Profiles(drawn.shape[-1], device)
    known = profiles(sources)
    unit = max(float(torch.pdist(known).mean()), 10.0**-_DIGITS)
    return tuple(((profiles(drawn) - known).norm(dim=1) / unit).tolist())


def draw_reconstructions(
    run: Path, embeddings: Embeddings, generator: Generator, settings: SampleSettings, sources: LabelledImages | None
) -> None:
    """Measure every image's likeness and draw the reconstructions that the report shows, unless both are there.

    Without `sources`, which hold every image that has a vector, nothing is measured. A killed call goes on: what was
    measured is kept with the version of its vectors. Processes that share a run wait for the one that does it.
    """
    with briefly(run, "reconstructions"):
        if sources is not None and set(embeddings.ids) <= set(sources.ids):
            _measure(run, embeddings, generator, settings, sources)
        rows = shown_rows(embeddings, read_likeness(run, embeddings))
        ids = [embeddings.ids[row] for row in rows]
        note = {"versions": [embeddings.versions[row] for row in rows], "variants": settings.variants}
        note |= {} if settings.balance == "none" else {"balance": settings.balance}
        ledger = Ledger(run)
        if ledger.holds(RECONSTRUCTIONS_FILE) and ledger.note(RECONSTRUCTIONS_FILE) == note:
            return
        images = reconstruct(embeddings, generator, settings, rows).contiguous()
        if ledger.note(RECONSTRUCTIONS_FILE) not in (None, note):
            ledger.drop(RECONSTRUCTIONS_FILE)  # a commit of the same pixels would keep the old note
        # The ids are in the file, which goes when an image is forgotten; in the note they would stay in the manifest.
        written = torch.tensor(list(json.dumps(ids).encode()), dtype=torch.uint8)
        ledger.commit(RECONSTRUCTIONS_FILE, save({"images": images, "ids": written}), note)


def _measure(
    run: Path, embeddings: Embeddings, generator: Generator, settings: SampleSettings, sources: LabelledImages
) -> None:
    ledger = Ledger(run)
    kept = ledger.read_json(LIKENESS_FILE) if ledger.holds(LIKENESS_FILE) else None
    known: dict[str, list[Any]] = dict(kept["images"]) if kept else {}  # id => [version of its vectors, distance]
    version = dict(zip(embeddings.ids, embeddings.versions, strict=True))
    known = {image_id: entry for image_id, entry in known.items() if version.get(image_id) == entry[0]}
    profiles = _Profiles(settings.resolution or embeddings.resolution, generator.device)

    def of_sources(ids: Sequence[str]) -> Tensor:
        return profiles(sources.images[[sources.row_of[i] for i in ids]])

    every = range(len(embeddings))
    few = min(len(every), MOST_SOURCES)
    chosen = [embeddings.ids[len(every) * k // few] for k in range(few)]
    between = kept["between"] if kept else None
    if between is None or between["of"] != chosen:
        apart = float(torch.pdist(of_sources(chosen)).mean()) if few > 1 else 1.0
        between = {"of": chosen, "distance": max(round(apart, _DIGITS), 10.0**-_DIGITS)}

    def keep() -> None:
        ordered = {i: known[i] for i in embeddings.ids if i in known}
        ledger.commit_json(LIKENESS_FILE, {"between": between, "images": ordered}, indent=1)

    # Whole batches, so that a call that goes on draws the ones that the killed one would have, to the same bits.
    size = settings.batch_size
    left = [every[start : start + size] for start in range(0, len(every), size)]
    left = [batch for batch in left if any(embeddings.ids[row] not in known for row in batch)]
    kept_at = time.monotonic()
    try:
        for batch, images in in_batches(embeddings, generator, settings, left):
            ids = [embeddings.ids[row] for row in batch]
            distances = (profiles(images) - of_sources(ids)).norm(dim=1).tolist()
            known |= {i: [version[i], round(d, _DIGITS)] for i, d in zip(ids, distances, strict=True)}
            if time.monotonic() - kept_at >= state.EVERY:  # the whole file: not after each batch
                keep()
                kept_at = time.monotonic()
    finally:
        keep()


def read_likeness(run: Path, embeddings: Embeddings) -> Likeness | None:
    """What was measured of all vectors; None where that is not so, as without the sources at hand.

    Raises DataError where the file was damaged.
    """
    kept = Ledger(run).read_json(LIKENESS_FILE)
    if kept is None:
        return None
    version = dict(zip(embeddings.ids, embeddings.versions, strict=True))
    if any(i not in kept["images"] or kept["images"][i][0] != version[i] for i in embeddings.ids):
        return None
    unit = kept["between"]["distance"]
    return Likeness({i: kept["images"][i][1] / unit for i in embeddings.ids}, len(kept["between"]["of"]))


def shown_rows(embeddings: Embeddings, likeness: Likeness | None) -> list[int]:
    """Rows of the vectors that the report shows: the worst, worst first, then some about the median.

    Where likeness was not measured, a few spread over the classes.
    """
    if likeness is None:
        return spread_over_classes(embeddings.labels.tolist(), REPORT_ROWS)
    ranked = likeness.worst_first
    middle = statistics.median(likeness.distances.values())
    typical = sorted(ranked[WORST_ROWS:], key=lambda i: (abs(likeness.distances[i] - middle), i))
    return [embeddings.row_of[i] for i in [*ranked[:WORST_ROWS], *typical[: REPORT_ROWS - WORST_ROWS]]]


def read_reconstructions(run: Path, embeddings: Embeddings) -> tuple[list[int], Tensor]:
    """The rows that are shown and their reconstructions, uint8 (rows, 3, R, R).

    Raises UsageError where stage 2 was cut short before it drew them, DataError where the file was damaged.
    """
    ledger = Ledger(run)
    content, note = ledger.read(RECONSTRUCTIONS_FILE), ledger.note(RECONSTRUCTIONS_FILE)
    found = {} if content is None else load(content)
    row_of = embeddings.row_of
    written = json.loads(bytes(found["ids"].tolist())) if found else []
    rows = [row_of[image_id] for image_id in written if image_id in row_of]
    if content is None or note is None or note.get("versions") != [embeddings.versions[row] for row in rows]:
        raise UsageError(
            f"{run}: stage 2 ended before it drew the reconstructions that the report shows. Run the same "
            "`dinv sample` command again first."
        )
    return rows, found["images"]


def spread_over_classes(labels: list[int], count: int) -> list[int]:
    """At most `count` rows, the first of every class before the second of any, in the order of their classes."""
    seen: dict[int, int] = {}
    ranked = []
    for row, label in enumerate(labels):
        ranked.append((seen.get(label, 0), label, row))
        seen[label] = seen.get(label, 0) + 1
    return [row for _, _, row in sorted(sorted(ranked)[:count], key=lambda entry: entry[1:])]
