"""Work that does not fit into memory is done in smaller parts, or refused before it begins."""

from __future__ import annotations

import gc
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DataError, UsageError
from .disk import human
from .store import disk_errors

Result = TypeVar("Result")
# How allocators say it where they raise a plain RuntimeError: PyTorch's on the CPU, oneDNN's.
_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "could not create a primitive",
    "could not create a memory object",
)


class Holder(Protocol):
    """Something that keeps memory of a device only to be quicker the next time."""

    def release(self) -> None: ...


_holders: WeakSet[Holder] = WeakSet()


def holds_memory(holder: Holder) -> None:
    """From now on let `holder` release what it keeps where memory does not suffice."""
    _holders.add(holder)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the device or of the machine, did not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def within_memory(do: Callable[[int], Result], size: int) -> tuple[Result, int]:
    """Call `do(size)`, with half the size as long as memory does not suffice; return what it gave, and the size.

    Raises UsageError where not even size 1 fits.
    """
    while True:
        try:
            return do(size), size
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise UsageError(
                    f"memory: not even one image fits ({str(error).partition(chr(10))[0]}). Use a smaller "
                    "--resolution (--sample-resolution in stage 2 and with prompts), --dtype bfloat16, "
                    "--gradient-checkpointing (stage 1), or a machine with more."
                ) from error
        size = -(-size // 2)  # here, where the traceback and the tensors that it held are gone
        for holder in tuple(_holders):
            holder.release()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


_V1 = tuple(f"memory/memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat"))


def memory(folder: Path = Path("/sys/fs/cgroup")) -> tuple[int, int | None]:
    """Bytes of memory, and those that are available; None where the system does not say.

    They are those of this machine, or of the container (cgroup v2 and v1), where that has less.
    """
    total, available = _machine()
    for limit, used, cache in (("memory.max", "memory.current", "memory.stat"), _V1):
        try:
            most, taken = (int((folder / name).read_text()) for name in (limit, used))
            lines = dict(line.split() for line in (folder / cache).read_text().splitlines())
        except (OSError, ValueError):  # "max" is no limit
            continue
        left = max(most - taken + int(lines.get("inactive_file", 0)), 0)  # of files the kernel lets go
        return min(total, most), left if available is None else min(available, left)
    return total, available


def _machine() -> tuple[int, int | None]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {key: int(rest.split()[0]) * 1024 for key, _, rest in (line.partition(":") for line in lines)}
        return sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Raise DataError where less than `needed` bytes are available; where that is not known, than there are."""
    total, available = memory()
    free = total if available is None else available
    if needed > free:
        raise DataError(f"{what} about {human(needed)} of memory and {human(free)} are free; {remedy}.")


def large_array(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array of bytes, zeros or not: in memory, or, where it takes more than half of what is free, in a file.

    The file has no name and lies in the folder of temporary files ($TMPDIR); the system keeps of it in memory what
    there is room for. Raises DiskError where it does not fit there.
    """
    total, available = memory()
    size = math.prod(shape)
    if size <= (total if available is None else available) // 2:
        return np.empty(shape, np.uint8)
    folder = Path(tempfile.gettempdir())
    with disk_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)  # a page that finds no room later would end the process
        return np.memmap(file, np.uint8, "r+", shape=shape)
