"""Hashes of files, read a part at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_PART = 1 << 20  # bytes


def sha256_of(path: Path) -> str:
    """sha256 hex of a file. Raises OSError."""
    digest = hashlib.sha256()
    _add(digest, path)
    return digest.hexdigest()


def sha256_of_all(files: Iterable[tuple[str, Path]]) -> str:
    """sha256 hex over the names and contents of files, in their order. Raises OSError."""
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0".encode())
        _add(digest, path)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
