"""What an audit found, in words for a terminal and a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_percent(rate: float) -> str:
    """A rate in [0, 1] with three digits: `0.5 %`."""
    return f"{100 * rate:.3g} %"


def share_of(found: Mapping[str, Any]) -> str:
    """A `shares.Share` as JSON data with its interval: `2.4 % [1.3, 4.1]`."""
    value, low, high = (f"{100 * x:.1f}" for x in (found["count"] / found["n"], found["low"], found["high"]))
    return f"{value} % [{low}, {high}]"


def sentence(record: Mapping[str, Any]) -> str:
    """An audit's record in one sentence, without its full stop."""
    copies = record["copies"]
    return (
        f"{copies['count']:,} of {copies['n']:,} synthetic images are nearer to a training image than images that copy "
        f"nothing: {share_of(copies)}, where {as_percent(record['rate'])} would be by chance"
    )


def redrawn_sentence(redrawn: Mapping[str, Any]) -> str:
    """What became of what an audit flags with `--copies redraw`: `redrawn` of run.json, with its full stop."""
    left = f"the other {redrawn['left']:,} are left out" if redrawn["left"] else "none is left out"
    return f"Drawn again, five times at most, {redrawn['passed']:,} of {redrawn['flagged']:,} passed; {left}."


def table(record: Mapping[str, Any]) -> str:
    """An audit's record (`found.CopyAudit.record`) as lines for a terminal."""
    views = record["views"]
    width = max(map(len, [*views, "view"]))
    lines = [f"{record['generated']['name']} beside {record['real']['name']}: {sentence(record)}."]
    if (sources := record["by_source"]) is not None:
        own, count = sources["of_their_own_source"], record["copies"]["count"]
        of_own = "" if own is None else f"; {own:,} of the {count:,} images are nearest to their own source"
        lines.append(f"Sources with such an image: {share_of(sources['sources'])}{of_own}.")
    lines.append(f"By chance, with 95 % confidence: at most {as_percent(record['rate_at_most'])}.")
    lines.append(f"{'view':{width}}  threshold  flagged")
    for name, seen in views.items():
        lines.append(f"{name:{width}}  {seen['threshold']:9.3f}  {seen['flagged']:7,}")
    if record["recall"]:
        levels = next(iter(record["recall"].values()))
        first = max(map(len, [*levels, "planted copies found"]))
        lines.append(f"{'planted copies found':{first}}  " + "  ".join(f"{name:>10}" for name in record["recall"]))
        for level in levels:
            found = [f"{one[level]['count']} of {one[level]['n']}" for one in record["recall"].values()]
            lines.append(f"{level:{first}}  " + "  ".join(f"{text:>10}" for text in found))
    return "\n".join([*lines, *(f"Note: {note}" for note in record["notes"])])
