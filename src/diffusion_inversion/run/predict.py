"""Put the classifiers of a run to use: probabilities for images, in a table."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config.commands import PredictSettings
from ..data.images import content_hash, resize, square
from ..data.listed import Source
from ..data.loose import NO_LABEL, open_loose
from ..data.problems import Problem, csv_cell
from ..data.reading import read_pixels
from ..data.sources import default_root
from ..engine.disk import require_room
from ..engine.progress import track
from ..engine.store import commit_bytes
from ..errors import DataError, UsageError
from ..generator.device import resolve_device
from ..train.classifiers import Classifier
from ..train.ensemble import probabilities
from .images import read_record
from .trained import Trained, trained

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".jsonl", ".parquet")
_DIGITS = 6  # decimal places of a probability
_ROW_BYTES, _CELL_BYTES = 200, 12  # of the file, roughly: a row without probabilities, and each of these


@dataclass(frozen=True)
class Predictions:
    """What the classifiers of one arm say of N images.

    Attributes:
        trained: The classifiers, whose mean it is.
        class_names: In the order of the probabilities.
        files: Where the images lie below what was given.
        probabilities: (N, classes) float64 in [0, 1], rows add up to 1.
        labels: (N,) int64: the class that an image's folder or row names, NO_LABEL where that is none of these.
        abstained: (N,) bool: the largest probability is too small.
        learned: How many of the images have exactly the pixels of one that the run trained on.
        tested: The same of the images that it was tested on, by which the arm may have been chosen.
        problems: Images that could not be read (`fatal`), and remarks on those that could.
    """

    trained: Trained
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    probabilities: Tensor
    labels: Tensor
    abstained: Tensor
    learned: int
    tested: int
    problems: tuple[Problem, ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def unreadable(self) -> tuple[Problem, ...]:
        """The images that have no prediction, with cause and remedy."""
        return tuple(problem for problem in self.problems if problem.fatal)

    @property
    def labelled(self) -> int:
        """Images that have a label."""
        return int((self.labels != NO_LABEL).sum())

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled images that are recognised, in [0, 1]; None without labels."""
        return self._accuracy(self.labels != NO_LABEL)

    @property
    def accuracy_kept(self) -> float | None:
        """The same of those that are not abstained from."""
        return self._accuracy((self.labels != NO_LABEL) & ~self.abstained)

    def _accuracy(self, rows: Tensor) -> float | None:
        hits = (self.probabilities.argmax(1) == self.labels)[rows]
        return float(hits.double().mean()) if len(hits) else None

    def table(self) -> pa.Table:
        """One row an image: file, predicted, confidence, probability_<class> of each class, abstained."""
        import pyarrow as pa

        rounded = self.probabilities.round(decimals=_DIGITS)
        columns: dict[str, Any] = {
            "file": list(self.files),
            "predicted": [self.class_names[label] for label in self.probabilities.argmax(1).tolist()],
            "confidence": rounded.amax(1).numpy(),
        }
        columns |= {f"probability_{name}": rounded[:, label].numpy() for label, name in enumerate(self.class_names)}
        return pa.table(columns | {"abstained": self.abstained.numpy()})


def predict_images(run: Path, settings: PredictSettings) -> Predictions:
    """Predict images by the classifiers of a run, and write the table to `settings.out`.

    Images go the way of the test images: central square, the side at which the run loaded its images, then the
    classifiers' (antialiased bicubic). Those that cannot be read are left out and listed. The file is whole or absent.

    Raises UsageError (nothing of that name, an output that exists, no classifiers), DataError (no image can be read,
    damaged classifiers), DiskError.
    """
    _check_output(settings.out, settings.overwrite)
    found = trained(run, settings.arm)
    recorded = read_record(run)
    if recorded is None:
        raise UsageError(f"{run}: not a run folder, it has no data.json. Name one that `dinv run` made.")
    device = resolve_device(settings.device)
    classifiers = [classifier.to(device) for classifier in found.by_seed.values()]
    root = default_root(settings.root)
    source = open_loose(settings.images, classifiers[0].class_names, root)
    columns = len(source.class_names)
    require_room(settings.out, len(source.ids) * (_ROW_BYTES + _CELL_BYTES * columns), "the predictions")
    problems = list(source.problems)
    parts = list(_by_parts(source, classifiers, recorded["size"], settings.batch_size, problems))
    rows = [row for part in parts for row in part.rows]
    if not rows:
        first = next((f"{one.file}: {one.cause}; {one.remedy}" for one in problems if one.fatal), "it is empty")
        raise DataError(f"IMAGES {settings.images}: no image can be used. {first}.")
    every = torch.cat([part.probabilities for part in parts])
    hashes = [digest for part in parts for digest in part.hashes]
    known = {part: set(recorded[part]["hashes"]) for part in ("train", "test")}
    done = Predictions(
        found,
        source.class_names,
        tuple(source.ids[row] for row in rows),
        every,
        torch.tensor([source.labels[row] for row in rows], dtype=torch.int64),
        every.amax(1) < settings.abstain_below,
        sum(digest in known["train"] for digest in hashes),
        sum(digest in known["test"] for digest in hashes),
        tuple(problems),
    )
    commit_bytes(settings.out, _encoded(done.table(), settings.out.suffix.lower()))
    return done


def _check_output(out: Path, overwrite: bool) -> None:
    """Raise UsageError for a file that has another suffix, or is there and not to be replaced."""
    if out.suffix.lower() not in SUFFIXES:
        known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise UsageError(f"--out {out}: the suffix says the format; give a name that ends in {known}.")
    if out.is_dir() or (out.exists() and not overwrite):
        raise UsageError(f"--out {out}: exists already; give another name, or --overwrite to replace a file.")


@dataclass(frozen=True)
class _Part:
    """Some rows of the source that could be read, with their probabilities and the hashes of their pixels."""

    rows: list[int]
    probabilities: Tensor
    hashes: list[str]


def _by_parts(
    source: Source, classifiers: Sequence[Classifier], loaded_at: int, batch_size: int, problems: list[Problem]
) -> Iterator[_Part]:
    """A batch of images in memory at a time, and of these one at its own size."""
    every = range(len(source.ids))
    with track("predict", len(every)) as advance:
        for start in every[::batch_size]:
            wanted = every[start : start + batch_size]
            read = [
                (wanted[place], square(pixels, loaded_at), content_hash(pixels))
                for place, pixels in read_pixels(source, wanted, problems)
            ]
            if read:
                rows, images, hashes = map(list, zip(*read, strict=True))
                side = classifiers[0].image_size
                batch = torch.stack(images)
                batch = batch if side == loaded_at else resize(batch, side)
                yield _Part(rows, probabilities(classifiers, batch), hashes)
            advance(len(wanted))


def _encoded(table: pa.Table, suffix: str) -> bytes:
    """The table as .csv, .jsonl or .parquet. In CSV no cell is a formula: such text begins with an apostrophe."""
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()
    rows = table.to_pylist()
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    import csv

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(csv_cell, table.column_names))
    for row in rows:
        writer.writerow(csv_cell(cell) if isinstance(cell, str) else _plain(cell) for cell in row.values())
    return text.getvalue().encode()


def _plain(cell: float | bool) -> str:
    return str(cell).lower() if isinstance(cell, bool) else f"{cell:.{_DIGITS}f}"
