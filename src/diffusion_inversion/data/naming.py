"""Names of files and folders that are made from names of others."""

from __future__ import annotations

import hashlib
import re

from ..engine.manifest import NAME as MANIFEST
from .scan import is_ignored

LONGEST_CLASS = 200  # bytes of a class name that a folder can carry
DATA_FILE = "data.json"  # of a run folder: which images it learned from, and their hashes
METADATA = "metadata.parquet"  # of a folder of class folders that `datasets` opens
UNIT_FILES = "unit-*.parquet"  # of stage 2, images in them (sample/packed.py)
_OURS = (MANIFEST, METADATA)  # files that lie beside the class folders


def class_folder(class_name: str) -> str:
    """The name of a class as a folder that reads back as the same class; changed only where no folder can have it."""
    plain = (
        class_name not in _OURS
        and 0 < len(class_name.encode()) <= LONGEST_CLASS
        and not re.search(r"[/\\\x00-\x1f]|^[A-Za-z]:", class_name)
        and not is_ignored(class_name)
    )
    if plain:
        return class_name
    name = safe_name(class_name)
    return safe_name(f"class {class_name}") if not name or is_ignored(name) else name


def safe_name(text: str) -> str:
    """`text` as a file name: letters, digits, dot, dash and underscore, at most 60 bytes, never hidden or empty.

    A name that had to be changed gets a hash of the original, so that two names never become one.
    """
    name = re.sub(r"[^\w.-]+", "_", text).strip("._").encode()[:60].decode(errors="ignore")
    return name if name and name == text else f"{name or 'x'}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
