"""Files that somebody else may have made: checked in full before they are used, and never unpickled.

Whatever a file holds, a reader here returns what was asked for or raises DataError with one line.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from ..errors import DataError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Record = TypeVar("Record")

# Names of safetensors' dtypes: https://huggingface.co/docs/safetensors, "Format".
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_CAUSE, LFS_REMEDY = "a Git LFS pointer, not the file it stands for", "fetch that with `git lfs pull`"
MAX_HEADER = 4 * 2**20  # bytes; parsed it takes some twenty times as much
MAX_JSON = 2**20  # bytes
MAX_DEPTH = 32  # lists and objects inside one another
MAX_DIGITS = 40  # of a whole number: 128 bits have 39
_LONGEST = 120  # characters of a foreign value in a message
_LONGEST_PART = 255  # bytes of one part of a file name
_REMEDY = "restore it from a copy, or make it again"


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor must be: its dtype (or one of several) and shape, element by element.

    A string in `shape` names a size that must agree between the tensors of one file; None is any size from 1 up.
    Floats must be finite, and the 2-norm over the last dimension at most `max_norm`.
    """

    dtype: torch.dtype | tuple[torch.dtype, ...]
    shape: tuple[int | str | None, ...]
    max_norm: float | None = None


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor; it lies at bytes [begin, end) of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def specs_of(module: nn.Module, *, any_precision: bool = False) -> dict[str, TensorSpec]:
    """What the `state_dict` of a module is made of; with `any_precision` its floats may be of any width."""
    return {
        name: TensorSpec(FLOATS if any_precision and value.is_floating_point() else value.dtype, tuple(value.shape))
        for name, value in module.state_dict().items()
    }


def shown(value: object) -> str:
    """A foreign value for a message: one line, no control or direction characters, at most 120 characters."""
    text = str(value)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def read_header(path: Path, *, max_bytes: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and metadata that a safetensors file of at most `max_bytes` lists, without reading the tensors.

    The tensors fill the file without gap or overlap. Raises DataError.
    """
    with _open(path) as file:
        return _header(path, file, max_bytes)


def read_tensors(
    path: Path, specs: Mapping[str, TensorSpec], *, max_bytes: int, sha256: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and metadata of a safetensors file that holds exactly `specs`; raise DataError otherwise.

    With `sha256` (hex) it must also be the file that was committed. Nothing is allocated before size, header, names,
    dtypes and shapes are checked. Memory stays below the file's size and a constant that MAX_HEADER sets.
    """
    with _open(path) as file:
        if sha256 is not None:
            _check_digest(path, file, sha256, max_bytes)
        infos, metadata = _header(path, file, max_bytes)
        _check_specs(path, infos, specs)
        return {name: _read_tensor(path, file, name, infos[name], spec) for name, spec in specs.items()}, metadata


def check_tensors(path: Path, specs: Mapping[str, TensorSpec], *, max_bytes: int) -> None:
    """Raise the DataError that `read_tensors` raises by the header alone, without reading the tensors."""
    with _open(path) as file:
        _check_specs(path, _header(path, file, max_bytes)[0], specs)


def read_json(path: Path, *, max_bytes: int = MAX_JSON) -> Any:
    """The value in a JSON file of at most `max_bytes`, as strict as `parse_json`. Raises DataError."""
    with _open(path) as file:
        _size(path, file, max_bytes)
        data = _read(path, file, max_bytes + 1)
    if len(data) > max_bytes:
        raise _refused(path, f"more than {max_bytes:,} bytes", _REMEDY)
    if data.startswith(LFS_POINTER):
        raise _refused(path, LFS_CAUSE, LFS_REMEDY)
    return parse_json(data, path)


def parse_json(data: bytes, where: object) -> Any:
    """Parse UTF-8 JSON, `where` being its name in messages. Raises DataError.

    Refused beside what is no JSON: a key twice in one object, NaN and infinity (1e999 too), whole numbers of more
    than 40 digits, more than 32 levels, text that is not Unicode (half a surrogate pair).
    """
    try:
        text = data.decode()
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole
        )
        _check_depth(value)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise _refused(where, f"more than {MAX_DEPTH} levels deep", _REMEDY) from error
    except UnicodeError as error:
        raise _refused(where, "text that is not Unicode", _REMEDY) from error
    except ValueError as error:
        raise _refused(where, f"no valid JSON ({shown(error)})", _REMEDY) from error
    return value


def check_record(record: Any, kind: type[Record], where: object) -> Record:
    """Parsed JSON as `kind`, a pydantic model, dataclass or TypedDict, in strict mode (no "1" for 1).

    Raises DataError that names the first faults.
    """
    from pydantic import ValidationError

    try:
        adapter: TypeAdapter[Record] = _adapter(kind)  # type: ignore[arg-type]  # a type is hashable
        found: Record = adapter.validate_json(json.dumps(record), strict=True)
        return found
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}" for fault in error.errors()[:3]]
        more = "; ..." if error.error_count() > len(faults) else ""
        raise _refused(where, f"not a record of this kind ({'; '.join(map(shown, faults))}{more})", _REMEDY) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def inside(folder: Path, name: str) -> Path:
    """`folder / name` for a relative posix name out of a file; DataError where it could lead out of `folder`.

    Refused: empty, absolute, ".", "..", empty or too long parts, backslashes, drive letters, control characters,
    and a symbolic link that leads out.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    wrong = any(part in ("", ".", "..") for part in parts) or "\\" in name or re.match("[A-Za-z]:", name) is not None
    if not wrong:
        try:
            wrong = any(len(part.encode()) > _LONGEST_PART for part in parts) or min(name) < " "
        except UnicodeEncodeError:
            wrong = True
    path = folder if wrong else folder / name
    # Without a link on the way below it a path cannot lead out; to resolve all of it takes ten times as long.
    if not wrong and any(os.path.islink(os.path.join(folder, *parts[:n])) for n in range(1, len(parts) + 1)):
        root = os.path.realpath(folder)
        wrong = os.path.commonpath([root, os.path.realpath(path)]) != root
    if wrong:
        raise _refused(folder, f"lists a file {shown(repr(name))}, which is no name inside the folder", _REMEDY)
    return path


def _refused(where: object, cause: str, remedy: str) -> DataError:
    return DataError(f"{_one_line(where)}: {cause}; {remedy}.")


def _one_line(where: object) -> str:
    """A path in full: it is how the user finds the file."""
    text = str(where)
    return text if text.isprintable() else repr(text)[1:-1]


def _open(path: Path) -> BinaryIO:
    """Open a regular file; a pipe or device would block or never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _refused(path, "missing", _REMEDY) from error
    except (OSError, ValueError) as error:
        raise _refused(path, f"cannot be opened ({shown(error)})", "make it a readable file") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _refused(path, "not a regular file", _REMEDY)
    return os.fdopen(descriptor, "rb", buffering=0)


def _size(path: Path, file: BinaryIO, max_bytes: int) -> int:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise _refused(path, f"{size:,} bytes, more than the {max_bytes:,} that it may have", _REMEDY)
    return size


def _read(path: Path, file: BinaryIO, most: int) -> bytes:
    """The next `most` bytes, fewer at the end of the file."""
    chunks = []
    try:
        while most and (chunk := file.read(min(most, 2**20))):
            chunks.append(chunk)
            most -= len(chunk)
    except OSError as error:
        raise _refused(path, f"cannot be read ({shown(error.strerror)})", _REMEDY) from error
    return b"".join(chunks)


def _check_digest(path: Path, file: BinaryIO, sha256: str, max_bytes: int) -> None:
    digest, left = hashlib.sha256(), _size(path, file, max_bytes)
    while chunk := _read(path, file, min(left, 2**20)):
        digest.update(chunk)
        left -= len(chunk)
    if digest.hexdigest() != sha256:
        raise _refused(path, "changed since it was written (another SHA-256)", _REMEDY)
    file.seek(0)


def _header(path: Path, file: BinaryIO, max_bytes: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    size = _size(path, file, max_bytes)
    start = _read(path, file, 8)
    if start == LFS_POINTER[:8]:
        raise _refused(path, LFS_CAUSE, LFS_REMEDY)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
        raise _refused(path, f"not a safetensors file ({size:,} bytes, header of {length:,})", _REMEDY)
    data = _read(path, file, length)
    if data[:1] != b"{":
        raise _refused(path, "not a safetensors file (no header)", _REMEDY)
    try:
        entries = parse_json(data, "header")
    except DataError as error:
        raise _refused(path, f"not a safetensors file ({str(error).partition(';')[0]})", _REMEDY) from error
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refused(path, "its metadata is not text", _REMEDY)
    infos = {name: _info(path, name, entry, 8 + length) for name, entry in entries.items()}
    spans = sorted((info.begin, info.end) for info in infos.values())
    edges = [(8 + length, 8 + length), *spans, (size, size)]
    if any(before[1] != after[0] for before, after in pairwise(edges)):
        raise _refused(path, "its tensors overlap, leave gaps or do not end where the file ends", _REMEDY)
    return infos, metadata


def _info(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [begin, end], **others} if not others:
            numbers = (*shape, begin, end)
            if kind in DTYPES and all(type(number) is int and number >= 0 for number in numbers):
                dtype = DTYPES[kind]
                if 0 not in shape and end - begin == math.prod(shape) * dtype.itemsize:
                    return TensorInfo(dtype, tuple(shape), start + begin, start + end)
    raise _refused(path, f"tensor {shown(repr(name))} is described as {shown(repr(entry))}", _REMEDY)


def _check_specs(path: Path, infos: Mapping[str, TensorInfo], specs: Mapping[str, TensorSpec]) -> None:
    missing, unknown = [name for name in specs if name not in infos], [name for name in infos if name not in specs]
    if missing or unknown:
        parts = [
            f"{word} {', '.join(shown(repr(name)) for name in names[:3])}{', ...' if len(names) > 3 else ''}"
            for word, names in (("lacks", missing), ("has unknown", unknown))
            if names
        ]
        raise _refused(path, f"not the expected tensors ({' and '.join(parts)})", _REMEDY)
    sizes: dict[str, int] = {}
    for name, spec in specs.items():
        info = infos[name]
        dtypes = spec.dtype if isinstance(spec.dtype, tuple) else (spec.dtype,)
        fits = info.dtype in dtypes and len(info.shape) == len(spec.shape)
        wanted = [sizes.get(side, side) if isinstance(side, str) else side for side in spec.shape]
        if fits:
            for side, found in zip(wanted, info.shape, strict=True):
                if isinstance(side, str):
                    fits = fits and sizes.setdefault(side, found) == found
                else:
                    fits = fits and side in (None, found)
        if not fits:
            expected = f"{' or '.join(map(_dtype_name, dtypes))} ({', '.join(map(_side, wanted))})"
            found_as = f"{_dtype_name(info.dtype)} ({', '.join(map(str, info.shape))})"
            raise _refused(path, f"tensor {name!r} is {shown(found_as)}, expected {expected}", _REMEDY)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _side(side: int | str | None) -> str:
    return "any" if side is None else str(side)


def _read_tensor(path: Path, file: BinaryIO, name: str, info: TensorInfo, spec: TensorSpec) -> Tensor:
    try:
        raw = torch.empty(info.end - info.begin, dtype=torch.uint8)
    except (RuntimeError, MemoryError) as error:
        raise _refused(path, f"tensor {name!r} does not fit into memory", "use a machine with more") from error
    view = raw.numpy().data
    try:
        file.seek(info.begin)
        done = 0
        while done < len(view) and (count := file.readinto(view[done:])):  # type: ignore[attr-defined]
            done += count
    except OSError as error:
        raise _refused(path, f"cannot be read ({shown(error.strerror)})", _REMEDY) from error
    if done < len(view):
        raise _refused(path, f"ends within tensor {name!r}", _REMEDY)
    if info.dtype == torch.bool and int(raw.max()) > 1:
        raise _refused(path, f"tensor {name!r} holds bytes that are no booleans", _REMEDY)
    tensor = raw.view(info.dtype).reshape(info.shape)
    if tensor.is_floating_point():
        # The extremes are NaN where any element is; unlike isfinite they need no memory.
        low, high = tensor.aminmax()
        if not (math.isfinite(float(low)) and math.isfinite(float(high))):
            raise _refused(path, f"tensor {name!r} holds NaN or infinity", _REMEDY)
        if spec.max_norm is not None and tensor.ndim:
            norm = float(torch.linalg.vector_norm(tensor, dim=-1).max())
            if not norm <= spec.max_norm:
                raise _refused(path, f"tensor {name!r} has a row of norm {norm:g}, above {spec.max_norm:g}", _REMEDY)
    return tensor


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice in one object")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number that is too large")
    return number


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise RecursionError
