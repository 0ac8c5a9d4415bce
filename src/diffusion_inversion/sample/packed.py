"""A unit of synthetic images as one Parquet file: each image a row, the bytes of its PNG and all that is known of it.

`datasets` opens the files as they are. The bytes of an image are those that it has as a file of its own. A unit is
several batches, so that a million images are some hundred to some thousand files; each is committed and listed as any
other unit is, and written anew as a whole.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.tables import class_label_metadata
from ..engine.hashing import sha256_of
from ..engine.manifest import Record
from ..engine.untrusted import inside
from ..errors import DataError
from .columns import COLUMNS, EARLIER

if TYPE_CHECKING:
    import pyarrow as pa

BATCHES = 10  # of a unit, at most
BYTES = 32 << 20  # of the images of a unit of more than one batch
_AT_ONCE = 64  # images that a reader holds
_NAME = re.compile(r"(?!\.{1,2}/)[^/\\\x00-\x1f]+/[^/\\\x00-\x1f]+\.png")  # of an image, which exports give a file
_NEEDED = ("image", "label", "file_name", "source_id", "variant", "sha256")
_INTEGERS = (
    "label", "variant", "inversion_step", "inference_steps", "group_size", "resolution", "partner_label", "rival_label"
)  # fmt: skip
_NUMBERS = (
    "interpolation", "noise_strength", "guidance_scale", "label_weight", "eta", "confidence", "shared_noise",
    "rival_weight",
)  # fmt: skip
_NUMBERS_EACH = ("guidance_interval", "answers", "mixture_weights")
_TEXTS_EACH, _INTEGERS_EACH = ("further_ids", "further_versions"), ("timesteps",)


def batches_of(batch_size: int, side: int) -> int:
    """How many batches of images of `side` px a unit has: 10, as far as they take 32 MB, and at least one."""
    return max(1, min(BATCHES, BYTES // (batch_size * (3 * side**2 + 1024))))


def is_packed(record: Record) -> bool:
    """Whether the commit record is of such a unit: what is known of its images is not in the record."""
    return "columns" not in record


def unit_file(unit: str) -> str:
    """The name of its file."""
    return f"unit-{unit}.parquet"


def encode(pngs: Mapping[str, bytes], rows: Sequence[dict[str, Any]], class_names: tuple[str, ...]) -> bytes:
    """The file of a unit; `pngs` by name, and the row of each in their order.

    Columns: image (bytes and path), label, the other `COLUMNS` and what else the rows have, and sha256 of the bytes.
    """
    import pyarrow as pa

    types = _types()
    known = [
        EARLIER | row | {"file_name": name, "class_name": class_names[row["label"]]}
        for name, row in zip(pngs, rows, strict=True)
    ]
    names = dict.fromkeys(["label", *COLUMNS, *(name for row in known for name in row)])
    columns = {"image": pa.array([{"bytes": data, "path": name} for name, data in pngs.items()], types["image"])}
    columns |= {name: pa.array([one[name] for one in known], types.get(name)) for name in names}
    columns["sha256"] = pa.array([hashlib.sha256(data).hexdigest() for data in pngs.values()])
    return _written(pa.table(columns).replace_schema_metadata(class_label_metadata(class_names, image="Image")))


def _types() -> dict[str, Any]:
    """Arrow types of columns; any integer is a seed, and what is drawn again has further columns."""
    import pyarrow as pa

    types = {name: pa.string() for name in (*COLUMNS, "sha256") if name != "seed"}
    types |= dict.fromkeys(_INTEGERS, pa.int64()) | dict.fromkeys(_NUMBERS, pa.float64())
    types |= dict.fromkeys(_NUMBERS_EACH, pa.list_(pa.float64())) | dict.fromkeys(_TEXTS_EACH, pa.list_(pa.string()))
    types |= dict.fromkeys(_INTEGERS_EACH, pa.list_(pa.int64()))
    return types | {"image": pa.struct([("bytes", pa.binary()), ("path", pa.string())])}


def _written(table: pa.Table) -> bytes:
    """The images lie in it as they are, so that a damaged byte is one image's."""
    import pyarrow.parquet as pq

    others = [name for name in table.column_names if name != "image"]
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, row_group_size=len(table), use_dictionary=others, compression=dict.fromkeys(others, "zstd")
    )  # fmt: skip
    return buffer.getvalue()


def columns_of(folder: Path, record: Record, names: Sequence[str]) -> pa.Table:
    """Columns of the images of a unit, in their order; what rows of earlier versions lack is as it was then.

    Raises DataError where the file is missing, or is not what was written.
    """
    import pyarrow as pa

    file = _opened(folder, record)
    there = [name for name in names if name in file.schema_arrow.names]
    table = file.read(there)
    for name in names:
        if name not in there:
            table = table.append_column(name, pa.array([EARLIER[name]] * len(table)))
    return table.select(list(names)).replace_schema_metadata(None)


def pngs_of(folder: Path, record: Record, place_of: Mapping[str, int]) -> Iterator[tuple[int, str, bytes]]:
    """(place, name, PNG) of the images of a unit whose names have a place, in the unit's order. Raises DataError."""
    if place_of.keys().isdisjoint(columns_of(folder, record, ["file_name"])["file_name"].to_pylist()):
        return
    for batch in _opened(folder, record).iter_batches(_AT_ONCE, columns=["file_name", "image"]):
        images = batch["image"].field("bytes")
        for row, name in enumerate(batch["file_name"].to_pylist()):
            if (place := place_of.get(name)) is not None:
                yield place, name, images[row].as_py()


def without(folder: Path, record: Record, gone: set[str]) -> bytes:
    """The file of a unit without the images of these names. Raises DataError."""
    table = _opened(folder, record).read()
    return _written(table.filter([name not in gone for name in table["file_name"].to_pylist()]))


def damaged(path: Path) -> list[str]:
    """Names of the images in a damaged file whose bytes are not those that they were written with, where they are read.

    Never raises.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[str] = []
    try:
        for batch in pq.ParquetFile(path).iter_batches(_AT_ONCE, columns=["file_name", "image", "sha256"]):
            rows = zip(batch["file_name"], batch["image"].field("bytes"), batch["sha256"], strict=True)
            found += [str(name) for name, data, digest in rows if _differs(data.as_py(), digest.as_py())]
    except (pa.ArrowException, OSError, KeyError):
        pass
    return found


def _differs(data: bytes | None, digest: str | None) -> bool:
    return data is None or hashlib.sha256(data).hexdigest() != digest


def _opened(folder: Path, record: Record) -> Any:
    """The file of a unit, a `ParquetFile`, once its hash is known to be the recorded one. Raises DataError."""
    import pyarrow.parquet as pq

    remedy = f"`dinv repair {folder.parent}` draws its images again."
    if len(record["files"]) != 1:
        raise DataError(f"{folder}: unit {record['unit']}: {len(record['files'])} files instead of one. {remedy}")
    ((name, digest),) = record["files"].items()
    path = inside(folder, name)
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{path}: listed in the manifest but missing. {remedy}") from error
    if not _is_whole(path, digest, len(record["ids"]), status.st_size, status.st_mtime_ns):
        raise DataError(f"{path}: changed since it was written. {remedy}")
    return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)


@lru_cache(maxsize=1 << 16)
def _is_whole(path: Path, digest: str, count: int, size: int, modified: int) -> bool:
    """Whether a file of this size and time of change is what was written, and what a unit can be; read once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if sha256_of(path) != digest:
        return False
    try:
        file = pq.ParquetFile(path)
        names = file.read(["file_name"])["file_name"].to_pylist()
        kinds = {field.name: field.type for field in file.schema_arrow}
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{path}: no table of images ({error}). Restore it from a copy.") from error
    named = len(names) == count and all(isinstance(name, str) and _NAME.fullmatch(name) for name in names)
    return (
        named and kinds.keys() >= {*_NEEDED} and all(kinds.get(name, kind) == kind for name, kind in _types().items())
    )
