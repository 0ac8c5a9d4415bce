"""Which images of a set are variants of one source, as their metadata or a file of groups says: resampled together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.images import LabelledImages
from ..data.listed import numbered
from ..data.naming import DATA_FILE, METADATA, UNIT_FILES
from ..data.tables import parquet_files
from ..engine.ledger import Ledger
from ..errors import DataError, UsageError

MOST_BYTES = 1 << 28  # of a file of groups


def recorded_sources(data: str | Path) -> dict[str, str]:
    """Id => source of the images in a folder that stage 2 wrote, by its Parquet files; empty for other DATA.

    Images that were drawn from prompts are left out: the prompts are chosen, not drawn, so each image stands alone. The
    source of one that began at a real image is that image.
    Raises DataError where the file has the columns of stage 2 but cannot be read.
    """
    if units := sorted(Path(data).glob(UNIT_FILES)):
        sources = parquet_files(units).columns()["source_id"]()
        return dict(zip(numbered("train", len(sources)), map(str, sources), strict=True))
    path = Path(data) / METADATA
    if not path.is_file():
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = ["file_name", "source_id", "partner_id", "class_name"]
    try:
        if not set(wanted) <= set(pq.read_schema(path).names):
            return {}
        table = pq.read_table(path, columns=wanted)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}), so nobody knows which images are of one source; "
            "`dinv repair` writes it again, or move it away"
        ) from error
    rows = zip(*(table.column(name).to_pylist() for name in wanted), strict=True)
    named = ((str(name), _source(*map(str, of))) for name, *of in rows)
    return {name: source for name, source in named if source is not None}


def _source(source: str, partner: str, class_name: str) -> str | None:
    """What an image is a variant of; None for a prompt, whose id begins with its class, and which is its own partner
    but where the image began at a real one.
    """
    if not source.startswith(f"{class_name}: "):
        return source
    return None if partner == source else partner


def named_as_real(
    sources: Sequence[str], real: LabelledImages, groups: Sequence[str] | None, data: str | Path
) -> list[str]:
    """Sources of the images in `data`, those that are real images by their ids there, or their `groups`, where given.

    Where `data` lies in a run folder, which knows the pixels of what it learned from, a source is the real image of its
    pixels, whatever its id; one whose id a real image has that is another picture is renamed. Elsewhere ids are
    believed. Raises DataError where the run's record of them was damaged.
    """
    record = Ledger(Path(data).parent).read_json(DATA_FILE) or {"train": {"ids": (), "hashes": ()}}
    learned = dict(zip(record["train"]["ids"], record["train"]["hashes"], strict=True))
    pixels_of = dict(zip(real.ids, real.hashes, strict=True))
    shows = {pixels: image_id for image_id, pixels in reversed(pixels_of.items())}
    group_of = dict(zip(real.ids, real.ids if groups is None else groups, strict=True))

    def named(source: str) -> str:
        if source in pixels_of and learned.get(source, pixels_of[source]) == pixels_of[source]:
            return group_of[source]
        if (image_id := shows.get(learned.get(source, ""))) is not None:
            return group_of[image_id]
        return f"source {source}" if source in pixels_of else source

    name_of = {source: named(source) for source in {*sources}}
    return [name_of[source] for source in sources]


def read_groups(path: str | Path, ids: Sequence[str] | None, count: int) -> list[str]:
    """The group of each image from a text file: a group a line in the images' order, or lines of id, tab and group.

    Raises UsageError where there is no file, DataError where it does not have every one of the `count` images.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file; give a text file with one group a line, or lines of id, tab and group")
    if Path(path).stat().st_size > MOST_BYTES:
        raise DataError(f"{path}: larger than {MOST_BYTES >> 20} MB; give a text file of groups")
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); give one group a line, or id, tab and group") from error
    if ids is not None and lines and all("\t" in line for line in lines):
        group_of = dict(line.split("\t", 1) for line in lines)
        if missing := [image_id for image_id in ids if image_id not in group_of]:
            raise DataError(f"{path}: has no group for {len(missing)} image(s), such as {missing[0]}; add them")
        return [group_of[image_id] for image_id in ids]
    if len(lines) != count:
        raise DataError(f"{path}: {len(lines)} groups for {count} images; give one a line, in the images' order")
    return lines
