"""What a shell completes: names of data sets, generators, architectures and presets, and the choices of settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, get_origin

Complete = Callable[[str], list[str]]


def completion_of(field: str, kind: Any) -> Complete | None:
    """How the value of a settings field of a type is completed; None where the shell's own file names must do."""
    if field in _NAMES:
        return lambda incomplete: _beginning(_NAMES[field](), incomplete)
    if get_origin(kind) is Literal:
        return lambda incomplete: _beginning(map(str, get_args(kind)), incomplete)
    if get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Literal:
        return lambda incomplete: _in_list(get_args(get_args(kind)[0]), incomplete)
    return None


def presets(incomplete: str) -> list[str]:
    """Presets of the package; files are the shell's business."""
    return _beginning(("paper", "reference", "fast"), incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _in_list(names: Iterable[str], incomplete: str) -> list[str]:
    """Complete the last word of a list with commas by what it has not yet."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [f"{before}{comma}{name}" for name in names if name not in given and name.startswith(last)]


def _data_sets() -> Iterable[str]:
    from ..data.sources import BUILTINS

    return BUILTINS


def _architectures() -> Iterable[str]:
    from ..config.training import ARCHITECTURES

    return (*ARCHITECTURES, "auto", "timm:")


# Their modules take time to import, and a page of help needs none of them.
_NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "data": _data_sets,
    "test": _data_sets,
    "pool": _data_sets,
    "architecture": _architectures,
    "generator": lambda: ("mini",),
    "clip": lambda: ("mini-clip",),
    "device": lambda: ("auto", "cpu", "cuda"),
    "dtype": lambda: ("auto", "float32", "bfloat16", "float16"),
}
