"""The licence that a generator's model card, README.md with a YAML header, names."""

from __future__ import annotations

from pathlib import Path

_LONGEST = 200  # characters of a licence that is kept
_LARGEST = 2**20  # bytes of a card


def card_licence(folder: Path) -> str:
    """The licence in the header of README.md: an id of the hub, or the name beside `other`; "" where there is none.

    Cards are written by others: one that cannot be read names none.
    """
    import yaml

    path = folder / "README.md"
    try:
        if path.stat().st_size > _LARGEST:
            return ""
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        header = yaml.safe_load("\n".join(lines[: lines.index("---")])) if first == "---" else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return ""
    if not isinstance(header, dict):
        return ""
    named = header.get("license_name") if header.get("license") in (None, "other") else None
    found = named or header.get("license")
    names = found if isinstance(found, list) else [found]
    return ", ".join(name for name in names if isinstance(name, str))[:_LONGEST]
