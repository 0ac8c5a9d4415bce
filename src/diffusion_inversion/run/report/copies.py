"""The report's section on copies of training images: the share, the distances, the worst pairs, what would be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ...measure.copies.found import BIN
from ...measure.copies.said import as_percent, redrawn_sentence, sentence, share_of
from .pictures import data_uri
from .templates import fill

_WIDTH, _HEIGHT, _LEFT, _BASE = 640, 130, 10, 100  # px of a plot; the left and the lower end of its axis
_KINDS = {"null": "images that copy nothing", "planted": "planted copies", "generated": "synthetic images"}
_COLOURS = {"null": "#808080", "planted": "#d55e00", "generated": "#0072b2"}
_MOST = 20  # lines of a table of classes or sources


def copies_section(run: Mapping[str, Any], picture: bytes | None, redrawn: bytes | None = None) -> str:
    """HTML that begins with a heading, "" where the run was not audited.

    run: content of run.json, whose `copies` is an audit's record (`found.CopyAudit.record`). picture: PNG of the
    flagged pairs, None where there are none. redrawn: PNG of some of them with what was drawn in their place.
    """
    found = run.get("copies")
    if found is None:
        return ""
    said, again = sentence(found), found.get("redrawn")
    lost = [] if again is None else sorted(again["classes"], key=lambda one: (-one["left"], -one["flagged"]))
    return fill(
        "parts/copies.html",
        run=run,
        found=found,
        said=said[0].upper() + said[1:],
        plots=[_plot(name, view) for name, view in found["views"].items()],
        pairs=picture,
        again=again,
        again_classes=lost,
        redrawn=redrawn,
        classes=sorted(found["by_class"].items(), key=lambda one: -one[1]["count"] / one[1]["n"]),
        most=_MOST,
        as_percent=as_percent,
        share_of=share_of,
        redrawn_sentence=redrawn_sentence,
        data_uri=data_uri,
    )


def _plot(name: str, view: Mapping[str, Any]) -> Markup:
    """How many images of each kind lie at which distance, each kind in shares of its own, with the threshold."""
    scores = {kind: counts for kind, counts in view["scores"].items() if sum(counts)}
    shares = {kind: [count / sum(counts) for count in counts] for kind, counts in scores.items()}
    top = max(max(each) for each in shares.values())
    bins = len(next(iter(shares.values())))
    step = (_WIDTH - 2 * _LEFT) / bins
    lines = [
        Markup('<polyline fill="none" stroke="{}" stroke-width="2" points="{}"/>\n').format(
            _COLOURS[kind], _steps(each, step, top)
        )
        for kind, each in shares.items()
    ]
    place = _LEFT + step * min(view["threshold"] / BIN, bins)
    legend = [Markup('<tspan fill="{}">■</tspan> {}  ').format(_COLOURS[kind], _KINDS[kind]) for kind in shares]
    ticks = [
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(
            _LEFT + step * value / BIN, _BASE + 16, value
        )
        for value in (0, 0.5, 1, 1.5)
    ]
    title = f"{name}: distance to the nearest training image; {view['flagged']} lie left of the threshold"
    return Markup(
        '<svg viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}" style="max-width:100%;height:auto" '
        'font-size="12" fill="currentColor"><title>{}</title>\n<text x="{}" y="12">{}: {}</text>\n'
        '{}<line x1="{:.1f}" x2="{:.1f}" y1="18" y2="{}" stroke="currentColor" stroke-dasharray="4 3"/>\n'
        '<line x1="{}" x2="{}" y1="{}" y2="{}" stroke="currentColor"/>\n{}</svg>\n'
    ).format(
        _WIDTH, _HEIGHT, _WIDTH, title, title, _LEFT, name, Markup("").join(legend), Markup("").join(lines),
        place, place, _BASE, _LEFT, _WIDTH - _LEFT, _BASE, _BASE, Markup("").join(ticks),
    )  # fmt: skip


def _steps(shares: Sequence[float], step: float, top: float) -> str:
    """Points of a stepped line over the bins, the highest share of all at the top."""
    heights = [_BASE - (_BASE - 20) * one / top for one in shares]
    points = [(_LEFT + step * (place + end), height) for place, height in enumerate(heights) for end in (0, 1)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
