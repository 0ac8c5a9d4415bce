"""TOML files that people write: settings and experiments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_BYTES = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a file. Raises UsageError, which names it, where it cannot be read, is too large or no TOML."""
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UsageError(f"{path}: {size:,} bytes, more than a file of settings has; name another file.")
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Name a TOML file.") from error
    except ValueError as error:  # not UTF-8 and not TOML
        raise UsageError(f"{path}: not a readable TOML file ({error}). Correct it there.") from error
    return content
