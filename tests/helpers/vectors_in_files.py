"""Whether any file below a folder holds numbers of learned vectors, however it keeps them."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

_NUMBERS = re.compile(rb"-?\d+\.\d+(?:e-?\d+)?")
_RUN = 4  # consecutive numbers that are no chance


def files_with_vectors(folder: Path, vectors: Tensor) -> list[str]:
    """Files that hold a token of vectors (N, tokens, width): as floats of 2, 4 or 8 bytes, in a table, or as text."""
    starts = vectors.reshape(-1, vectors.shape[-1])[:, :_RUN]
    binary = {
        row.numpy().tobytes() for kind in (torch.float16, torch.float32, torch.float64) for row in starts.to(kind)
    }
    texts = {f"{value:.3g}" for value in starts.flatten().tolist()}
    found = []
    for path in (one for one in folder.rglob("*") if one.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            sink = pa.BufferOutputStream()
            table = pq.read_table(path)
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            content = sink.getvalue().to_pybytes()
        numbers = {f"{float(one):.3g}" for one in _NUMBERS.findall(content)}
        if any(one in content for one in binary) or len(texts & numbers) >= len(texts) / 2:
            found.append(path.relative_to(folder).as_posix())
    return found
