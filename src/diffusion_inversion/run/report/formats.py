"""How the report writes numbers, times and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def accuracy(mean: float, std: float | None, n: int) -> str:
    """Format accuracies in [0, 1] as `33.1 ± 2.9 % (n=3)`; one seed has no spread."""
    spread = "" if std is None or n < 2 else f" ± {100 * std:.1f}"
    return f"{100 * mean:.1f}{spread} % (n={n})"


def area(measure: Mapping[str, Any]) -> str:
    """Format an area under the ROC curve (`MeasureRecord`) as `0.713 ± 0.012`."""
    spread = "" if measure["std"] is None else f" ± {measure['std']:.3f}"
    return f"{measure['mean']:.3f}{spread}"


def points(difference: float | None) -> str:
    """Format a difference of accuracies as `+2.2 points`; None was not measured."""
    return "not measured" if difference is None else f"{100 * difference:+.1f} points"


def deviation(spread: float | None) -> str:
    """Format a standard deviation of accuracies as `1.3 points`; None was not measured."""
    return "not measured" if spread is None else f"{100 * spread:.1f} points"


def duration(seconds: float) -> str:
    """Format seconds as `4.2 s`, `3 min 07 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def setting(value: Any) -> str:
    """Show a setting as it is written in JSON, a string without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
