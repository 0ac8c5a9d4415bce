"""Work that is cut short at a known place."""

from __future__ import annotations

from collections.abc import Callable

from diffusion_inversion.engine import faults


class Cut(Exception):
    """Nothing of ours handles it."""


def cut_after(calls: int) -> Callable[[int], None]:
    """`advance` that raises Cut when it was called so often."""
    left = iter(range(calls))

    def advance(count: int) -> None:
        if next(left, None) is None:
            raise Cut

    return advance


def stop_once(true: Callable[[], object]) -> Callable[[faults.Point], None]:
    """`faults.on_point` that stops the work, as Ctrl-C does, in the first commit at which something is true."""

    def on_point(name: faults.Point) -> None:
        if true():
            raise KeyboardInterrupt

    return on_point
