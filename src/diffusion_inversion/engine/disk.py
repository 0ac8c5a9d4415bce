"""Room on the disk, checked before the work that needs it."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import DiskError


def human(size: float) -> str:
    """Format bytes as `812 B`, `3.4 MB` or `1.2 GB`, by powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise DiskError where the file system of `folder`, which may not exist yet, has less than `needed` bytes."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DiskError(
            f"{folder}: {what} need about {human(needed)} and {human(free)} are free; nothing was computed. "
            "Free some space or choose another folder, then run the same command again."
        )
