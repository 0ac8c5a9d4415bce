"""The report's section on copies of training images: the share, the distances, the worst pairs, what would be found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ...measure.copies.found import BIN
from ...measure.copies.said import as_percent, redrawn_sentence, sentence, share_of
from .pictures import data_uri

_WIDTH, _HEIGHT, _LEFT, _BASE = 640, 130, 10, 100  # px of a plot; the left and the lower end of its axis
_KINDS = {"null": "images that copy nothing", "planted": "planted copies", "generated": "synthetic images"}
_COLOURS = {"null": "#808080", "planted": "#d55e00", "generated": "#0072b2"}
_MOST_CLASSES, _MOST_SOURCES = 20, 20
_OF_ONE = (
    '<p class="note">These are images of replicate 0; the report in the folder of each other replicate has its own.'
    "</p>\n"
)


def copies_section(run: Mapping[str, Any], picture: bytes | None, redrawn: bytes | None = None) -> str:
    """HTML that begins with a heading, "" where the run was not audited.

    run: content of run.json, whose `copies` is an audit's record (`found.CopyAudit.record`). picture: PNG of the
    flagged pairs, None where there are none. redrawn: PNG of some of them with what was drawn in their place.
    """
    found = run.get("copies")
    if found is None:
        return ""
    parts = [
        Markup("<h2>Copies of training images</h2>\n<p>{}{}.</p>\n").format(
            sentence(found)[0].upper(), sentence(found)[1:]
        ),
        _verdict(found),
        *([Markup(_OF_ONE)] if "replicates" in run else []),
        *(_plot(name, view) for name, view in found["views"].items()),
        *_pairs(found, picture),
        *_redrawn(found, redrawn),
        *_shares(found),
        *_recall(found),
        *(Markup('<p class="note">{}</p>\n').format(note) for note in found["notes"]),
    ]
    return str(Markup("").join(parts))


def _verdict(found: Mapping[str, Any]) -> Markup:
    said = "That is more than chance explains." if found["exceeds_chance"] else "Chance explains as many."
    null = found["null"]
    kind = "real test images" if null["kind"] == "test" else "training images, each left out in turn"
    return Markup(
        '<p class="note">{} Distances are in units of the mean distance of the training image to its {} nearest '
        "others. Images that copy nothing are {} {}; {} of such images may be flagged.</p>\n"
    ).format(said, found["neighbours"], null["images"], kind, as_percent(found["rate"]))


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


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> Markup:
    heads = tuple(heads)
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(one) for one in heads)
    lines = [
        Markup("<tr>{}</tr>\n").format(Markup("").join(Markup("<td>{}</td>").format(one) for one in row))
        for row in rows
    ]
    return Markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="Copies: {}">'
        "<table>\n<tr>{}</tr>\n{}</table></div>\n"
    ).format(", ".join(heads), head, Markup("").join(lines))


def _folded(summary: str, table: Markup) -> Markup:
    return Markup("<details><summary>{}</summary>\n{}</details>\n").format(summary, table)


def _pairs(found: Mapping[str, Any], picture: bytes | None) -> Iterable[Markup]:
    if picture is None:
        return
    yield Markup(
        '<h3>The nearest pairs</h3>\n<div class="scroll" tabindex="0" role="region" aria-label="The nearest pairs">'
        '<img src="{}" '
        'alt="Each flagged synthetic image above the training image that it is nearest to, nearest first"></div>\n'
    ).format(data_uri(picture))
    rows = [
        (one["file"], one["nearest"], one["source"] or "not known", one["view"], f"{one['score']:.3f}")
        for one in found["pairs"]
    ]
    yield _folded("Their files", _table(("Synthetic", "Nearest real", "Made from", "View", "Distance"), rows))


def _redrawn(found: Mapping[str, Any], picture: bytes | None) -> Iterable[Markup]:
    again = found.get("redrawn")
    if again is None or not again["flagged"]:
        return
    yield Markup(
        "<h3>What was drawn in their place</h3>\n<p>{} Others of their source, or else of their class, stand for what "
        "is left out. Passed at try {}.</p>\n"
    ).format(
        redrawn_sentence(again), ", ".join(f"{number}: {count}" for number, count in enumerate(again["tries"], start=1))
    )
    if picture is not None:
        yield Markup(
            '<div class="scroll" tabindex="0" role="region" aria-label="Images drawn in place of copies">'
            '<img src="{}" alt="Training images, below each the synthetic '
            'image that is flagged as its copy, and below that the last one drawn in its place"></div>\n'
        ).format(data_uri(picture))
    shown = [
        (
            one["file"], one["again"], "passes" if one["passed"] else "left out", one["try"],
            f"{one['noise_strength']:g}", f"{one['interpolation']:g}",
        )
        for one in again["examples"]
    ]  # fmt: skip
    heads = ("First drawing", "Last drawing", "", "Try", "Noise strength", "Interpolation")
    yield _folded("Their files", _table(heads, shown))
    rows = [(one["class_name"], one["flagged"], one["passed"], one["left"]) for one in again["classes"]]
    yield _folded("Drawn again, by class", _table(("Class", "Flagged", "Passed", "Left out"), rows[:_MOST_CLASSES]))


def _shares(found: Mapping[str, Any]) -> Iterable[Markup]:
    if (by_source := found["by_source"]) is not None:
        yield Markup(
            "<p>Sources with a flagged image: {}. {} of {} flagged images are nearest to the image they were made "
            "from.</p>\n"
        ).format(share_of(by_source["sources"]), by_source["of_their_own_source"], found["copies"]["count"])
        worst = list(by_source["flagged"].items())[:_MOST_SOURCES]
        if worst:
            yield _folded("By source: those with most", _table(("Training image", "Flagged"), worst))
    most = sorted(found["by_class"].items(), key=lambda one: -one[1]["count"] / one[1]["n"])[:_MOST_CLASSES]
    rows = [(name, f"{one['count']} of {one['n']}", share_of(one)) for name, one in most]
    yield _folded("By class", _table(("Class", "Flagged", "Share, 95 % interval"), rows))


def _recall(found: Mapping[str, Any]) -> Iterable[Markup]:
    recall = found["recall"]
    if not recall:
        return
    levels = next(iter(recall.values()))
    n = next(iter(levels.values()))["n"]
    rows = [(level, *(share_of(one[level]) for one in recall.values())) for level in levels]
    yield _folded(
        f"What would have been found: {n} training images copied on purpose, at each level",
        _table(("Copied by", *recall), rows),
    )
