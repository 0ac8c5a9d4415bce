"""What `--with` names: synthetic images of a run, or any labelled images, that learners get beside the shots."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...data.datasets import load_images
from ...data.duplicates import Part, find_duplicates
from ...data.images import LabelledImages, content_hash
from ...data.naming import class_folder
from ...data.near_duplicates import thumbnail
from ...data.soft_labels import SoftLabels
from ...engine.manifest import NAME as MANIFEST
from ...engine.untrusted import shown
from ...errors import DataError, UsageError
from ...sample.synthetic import FOLDER, Row, SyntheticStore
from ..fidelity.copies_record import without_copies
from ..fidelity.redraw import redrawn_store
from ..forget import AVERAGING, begun_at_means, is_averaged
from ..gathered import joined, read_table
from ..images import read_record
from ..methods import ADOPTED, GAN, GAN_INVERSION, INVERSION, METHODS, RETRIEVAL, images_store, method_of

if TYPE_CHECKING:
    import pyarrow as pa

NONE = "none"
_PLACES = ("{shots}", "{seed}")


@dataclass(frozen=True)
class Addition:
    """One value of `--with`: its name, and the run or DATA, in which {shots} and {seed} stand for those of a training.

    No source: nothing is added.
    """

    name: str
    source: str | None

    def at(self, shots: int, seed: int) -> str | None:
        """The run or DATA of one training."""
        if self.source is None:
            return None
        return self.source.replace("{shots}", str(shots)).replace("{seed}", str(seed))


@dataclass(frozen=True, eq=False)
class Extra:
    """Images that may be added; classes are numbered as those of DATA.

    made_from: by image, content hashes of the real images that it was made from; None where nobody knows.
    basis: content hashes of all training images of the run; none where it is no run.
    """

    source: str
    identities: tuple[str, ...]  # by image: content and labels
    made_from: tuple[frozenset[str], ...] | None
    basis: frozenset[str]
    read: Callable[[], LabelledImages]  # with the classes of its own
    label_of: tuple[int, ...]  # by class of its own: its number in DATA
    found: bool = False  # in a pool: real images, which may test, though it is known what they were found for

    def rows(self, shots: Collection[str]) -> tuple[int, ...]:
        """Those that these shots, by content hash, allow: made from them alone, or nobody knows from what."""
        allowed = set(shots)
        if self.made_from is None or self.basis <= allowed:
            return tuple(range(len(self.identities)))
        return tuple(row for row, sources in enumerate(self.made_from) if sources <= allowed)

    def digest(self, rows: Sequence[int]) -> str:
        """sha256 hex of what these rows are."""
        return hashlib.sha256("\n".join(self.identities[row] for row in rows).encode()).hexdigest()

    def targets(self, images: LabelledImages, classes: int) -> Tensor:
        """(N, classes) float32 of the images that `read` returned, over the classes of DATA."""
        number = torch.tensor(self.label_of)
        soft = images.soft or SoftLabels.hard(images.labels)
        return soft.renumbered(number, classes).targets(number[images.labels], classes)


def parse_additions(given: Sequence[str]) -> tuple[Addition, ...]:
    """The values of `--with`: `none`, a run or DATA, or NAME=run or DATA. Raises UsageError."""
    found: list[Addition] = []
    for text in given:
        name, equals, source = text.partition("=")
        if text == NONE:
            found.append(Addition(NONE, None))
            continue
        if not equals or Path(text).exists():
            name, source = Path(text).name or text, text
        if any(place in name for place in _PLACES) or not name or not source or name == NONE:
            raise UsageError(f"--with {shown(text)}: name it: --with NAME={shown(source or text)}.")
        found.append(Addition(name, source))
    names = [addition.name for addition in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--with: {twice[0]} twice; tell them apart by NAME=SOURCE.")
    return tuple(found)


def open_extra(source: str, class_names: Sequence[str], root: str | Path | None) -> Extra:
    """Open a run (or the folder of one) by its records, or DATA by decoding it.

    Raises UsageError where it is not there, is not finished, or has a class that DATA has not; DataError as
    `load_images`.
    """
    folder = Path(source)
    run = next((f for f in (folder, folder.parent) if (f / FOLDER / MANIFEST).is_file()), None)
    if run is not None and folder not in (run, run / FOLDER):
        run = None
    if run is not None:
        SyntheticStore(run, ()).variants()  # or refused
    if run is not None and (record := read_record(run)) is not None:
        store = images_store(run, tuple(record["class_names"]))
        parts = _without_copies(run, store)
        rows = [row for _, table in parts for row in table.to_pylist()]
        if not rows:
            raise UsageError(f"--with {shown(source)}: every image copies a training image; nothing is left to add.")
        content = dict(zip(record["train"]["ids"], record["train"]["hashes"], strict=True))
        averaging, method = begun_at_means(run), method_of(run)
        # A GAN may have learned more images than the run has; of what was adopted nobody knows.
        unknown = method.name in (GAN, GAN_INVERSION, ADOPTED)
        made_from = None if unknown else tuple(_sources(row, content, averaging) for row in rows)
        basis = frozenset(content.values())
        identities = tuple(
            f"{row['sha256']} {row['label']} {row['partner_label']} {row['label_weight']:g}"
            + (f" {row['answers']}" if row["answers"] else "")
            for row in rows
        )
        label_of, found = _numbers(source, store.class_names, class_names), method == METHODS[RETRIEVAL]
        return Extra(
            source, identities, made_from, basis, lambda: joined([*starmap(read_table, parts)]), label_of, found
        )
    images = load_images(source if run is None else run / FOLDER, root=root)
    label_of = _numbers(source, images.class_names, class_names)
    identities = tuple(f"{name} {label}" for name, label in zip(images.hashes, images.labels.tolist(), strict=True))
    return Extra(source, identities, None, frozenset(), lambda: images, label_of)


def _without_copies(run: Path, store: SyntheticStore) -> list[tuple[SyntheticStore, pa.Table]]:
    """What stage 2 drew, without what copies a training image (`without_copies`), by the store that holds it."""
    table, again = without_copies(run, store, store.asked_for(store.table()))
    redrawn = [name in again for name in table["file_name"].to_pylist()]
    first, later = table.filter([not one for one in redrawn]), table.filter(redrawn)
    parts = [(store, first), (redrawn_store(run, store.class_names), later)]
    return [(where, rows) for where, rows in parts if len(rows)]


def _sources(row: Row, content: Mapping[str, str], averaging: bool) -> frozenset[str]:
    """Content hashes of the images that a synthetic one was made from, by those of the run's own; none of a prompt.

    All of the run's where a mean of vectors went into it, as every vector does where `averaging` (`forget`). A source
    that is none of the run's stays what it is, which no shot is equal to.
    """
    if row["method"] == INVERSION.name and (averaging or is_averaged(*(row[name] for name in AVERAGING))):
        return frozenset(content.values())
    sources = {row["source_id"], row["partner_id"], *(row["further_ids"] or ())}
    if str(row["source_id"]).startswith(f"{row['class_name']}: "):  # its partner is itself or a real image
        sources.discard(row["source_id"])
    return frozenset(str(content.get(one, one)) for one in sources)


def _numbers(source: str, own: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    known = {class_folder(name): label for label, name in enumerate(class_names)}  # as a name may be on disk
    if unknown := [name for name in own if class_folder(name) not in known]:
        raise UsageError(
            f"--with {shown(source)}: class {shown(repr(unknown[0]))} is none of DATA's ({', '.join(class_names)}); "
            "give images of the same classes."
        )
    return tuple(known[class_folder(name)] for name in own)


def refuse_test_images(extra: Extra, test: LabelledImages, *, allow_near: bool) -> None:
    """Raise DataError where images of unknown origin, or of a pool, hold a test image, if need be nearly."""
    if extra.made_from is not None and not extra.found:
        return
    images = extra.read()
    hashes = [images.hashes, test.hashes]
    if extra.basis:  # of a run: its hashes are those of PNG files
        side = min(images.size, test.size)
        hashes = [_pixel_hashes(part.resized(side)) for part in (images, test)]
    given, tested = (
        Part(part.ids, of_part, [0] * len(part), torch.cat([thumbnail(p) for p in part.images.split(256)]))
        for part, of_part in zip((images, test), hashes, strict=True)
    )
    found = find_duplicates(given, tested, ("image",)).shared
    shared = [one for one in found if not (one.near and allow_near)]
    if shared:
        one = shared[0]
        how, keep = ("nearly", ", or --allow-near-duplicates") if one.near else ("exactly", "")
        raise DataError(
            f"--with {shown(extra.source)}: holds {len(shared)} test image(s): {shown(one.twin)} is {how} "
            f"{shown(test.ids[one.row])}; take them out{keep}."
        )


def _pixel_hashes(images: LabelledImages) -> tuple[str, ...]:
    """Hashes of the pixels as they are in memory."""
    return tuple(content_hash(image.permute(1, 2, 0).numpy()) for image in images.images)
