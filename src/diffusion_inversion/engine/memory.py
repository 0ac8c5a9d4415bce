"""Work that does not fit into memory is done in smaller parts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import UsageError

Result = TypeVar("Result")
# How allocators say it where they raise a plain RuntimeError: PyTorch's on the CPU, oneDNN's.
_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "could not create a primitive",
    "could not create a memory object",
)


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
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
