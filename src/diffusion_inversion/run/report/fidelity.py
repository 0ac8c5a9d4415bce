"""The report's section on labels: which synthetic images show another class than their label, and what became of them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from torch import Tensor

from ...sample.png import encode_png
from .figures import ReportImages

_SIDE = 96  # px at which a picture is shown, at least
_KEPT = {
    "drop": "{left} were left out; others of their source, or of their class, were trained on twice in their place.",
    "redraw": "They were drawn again, up to five times: {passed} then passed. {left} were left out; others of their "
    "source, or of their class, were trained on twice in their place.",
    "soft": "They were trained on with the judge's answer as their label.",
}


def fidelity_section(run: Mapping[str, Any], images: ReportImages) -> str:
    """HTML of the section; "" where labels were not judged. All that `run` holds is text, never markup."""
    found = run.get("fidelity")
    if found is None:
        return ""
    judge = found["judge"]
    classes = [[one["class_name"], str(one["judged"]), str(one["failed"]), _share(one)] for one in found["classes"]]
    sources = [
        [one["file"], one["class_name"], f"{one['failed']} of {one['judged']}", _share(one)] for one in found["sources"]
    ]
    parts = [
        "<h2>Do synthetic images show their class?</h2>",
        f"<p><strong>{found['failed']} of {found['judged']} ({_share(found)}) show another class</strong>, "
        f"by a judge that never saw their source. Of {judge['images']} real images, judged in the same way, "
        f"{_percent(judge['failed'])} do; the judge recognises {_percent(judge['accuracy'])} of them. "
        f"{escape(_became(found))}</p>",
    ]
    if found["judged"] < found["images"]:
        parts.append(
            f'<p class="note">{found["images"] - found["judged"]} of the {found["images"]} images were not judged and '
            "stay: their class has too few training images.</p>"
        )
    parts.append(_table(("Class", "Judged", "Show another", "Share"), classes))
    if sources:
        parts += ["<h3>Training images whose variants fail most often</h3>"]
        parts.append(_table(("Training image", "Class", "Fail", "Share"), sources))
        parts += ["<h3>The clearest failures</h3>", _pictures(found["examples"], images)]
    parts.append(
        '<p class="note">The judge: linear classifiers on features of EfficientNet-Lite0, each learned without the fold of '
        "the source, their confidence calibrated on training images that they never saw (calibration error "
        f"{_percent(judge['calibration_error'])}). An image fails where the class that it is most likely to show, among "
        "those that reach the mean confidence of their own training images (confident learning), is another than its "
        "label, by more than all but 5 % of the training images. Test images played no part.</p>"
    )
    return "\n".join(parts)


def _became(found: Mapping[str, Any]) -> str:
    """What became of those that failed."""
    if not found["failed"]:
        return "All were trained on."
    return _KEPT[found["filter"]].format(left=found["left"], passed=found["failed"] - found["left"])


def _pictures(examples: list[dict[str, Any]], images: ReportImages) -> str:
    rows = []
    for example, (real, drawn, again) in zip(examples, images.failed, strict=True):
        name = escape(example["class_name"])
        shows = f"{escape(example['shows'])} {_percent(example['rival_confidence'])}"
        last = "" if again is None else _picture(again, f"the same variant, drawn again: {name}")
        if again is not None:
            last += "<br>passes" if example["passed_again"] else "<br>fails again"
        rows.append(
            f"<tr><td>{_picture(real, f'training image of {name}')}</td>"
            f"<td>{_picture(drawn, f'synthetic image for {name} that shows {escape(example["shows"])}')}</td>"
            f"<td>{last}</td><td>{name} {_percent(example['confidence'])},<br>{shows}</td>"
            f"<td><code>{escape(example['file'])}</code></td></tr>"
        )
    head = _head(("Training image", "Synthetic", "Drawn again", "By the judge", "File"))
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _picture(image: Tensor, alt: str) -> str:
    """An image uint8 (3, S, S) as markup; `alt` is markup already."""
    from .html import data_uri

    factor = -(-_SIDE // image.shape[-1])
    side = factor * image.shape[-1]
    return (
        f'<img src="{data_uri(encode_png(image))}" alt="{alt}" width="{side}" height="{side}" '
        'style="image-rendering: pixelated; padding: 0">'
    )


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{_head(head)}{cells}</table></div>'


def _head(names: tuple[str, ...]) -> str:
    return f"<tr>{''.join(f'<th scope="col">{name}</th>' for name in names)}</tr>"


def _share(part: Mapping[str, Any]) -> str:
    return _percent(part["failed"] / part["judged"]) if part["judged"] else "none judged"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
