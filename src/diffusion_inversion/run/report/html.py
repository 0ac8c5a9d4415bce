"""The report's page: one self-contained HTML file without scripts."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...engine.text import visible_values
from .confusion import MOST_CLASSES, confusion_matrices, most_confused
from .copies import copies_section
from .figures import ReportImages, accuracy_bars, image_grid, loss_curve, png

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_PROBLEMS = 200  # rows of the table; the run's data.json lists all


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


def found_of_class(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[float | None, bool]]]]:
    """Class by class what each arm finds, in [0, 1], and whether that is fewer than the baseline beyond its interval.

    Of more than 20 classes those alone of which an arm finds fewer; none where an arm's recall was not measured.
    """
    arms = run["arms"]
    if not all("recall" in arm for arm in arms.values()):
        return []
    fewer = {(fall["class_name"], fall["arm"]) for fall in run["verdict"].get("falls", ())}
    rows = []
    for label, name in enumerate(run["data"]["class_names"]):
        rates = [(record["recall"][label], (name, arm) in fewer) for arm, record in arms.items()]
        rows.append((name, rates))
    if len(rows) > MOST_CLASSES:
        rows = [row for row in rows if any(lost for _, lost in row[1])]
    return rows


def data_uri(image: bytes) -> str:
    """PNG bytes as a URI that a page can hold."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def environment(package: str) -> Environment:
    """Templates of a package; what they show is text, never markup, and a field that is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_report(run: Mapping[str, Any], figures: ReportImages) -> str:
    """The page for `run`, the content of `run.json` (`RunRecord`), with its figures.

    The labels of `figures` are indices into the run's class names. Raises jinja2.UndefinedError, which names a field
    that `run` lacks.
    """
    pictures = {
        "bars": png(accuracy_bars(run["arms"], run["verdict"].get("majority"))),
        "grid": png(image_grid(figures, run["data"]["class_names"])),
    }
    if "inversion_curve" in run:
        pictures["curve"] = png(loss_curve(run["inversion_curve"], run["stages"]["invert"].get("null_loss")))
    confusion, class_names = run.get("confusion"), run["data"]["class_names"]
    if confusion and len(class_names) <= MOST_CLASSES:
        pictures["confusion"] = png(confusion_matrices(confusion, class_names))
    return render_page(run, pictures, figures.variants.shape[1], figures.copies)


def render_page(
    run: Mapping[str, Any], pictures: Mapping[str, bytes], variants: int, copies: bytes | None = None
) -> str:
    """The page for `run` with the PNG files bars, grid and perhaps curve and confusion; the grid has `variants` a row.

    Where there are too many classes for a picture of confusion, a table has the most confused pairs.
    Everything in `run` is text, never markup; the page has no script and its policy lets a browser load nothing.
    """
    templates = environment("diffusion_inversion.run.report")
    templates.filters |= {"points": points, "deviation": deviation, "duration": duration, "setting": setting}
    templates.globals |= {"accuracy": accuracy, "area": area}
    shown = visible_values(run)
    confused = {}
    if "confusion" not in pictures:
        confused = {
            arm: most_confused(counts, shown["data"]["class_names"])
            for arm, counts in shown.get("confusion", {}).items()
        }
    page: str = templates.get_template("template.html").render(
        run=shown,
        problems=shown["data"]["problems"][:MOST_PROBLEMS],
        variants=variants,
        confused=confused,
        found_of_class=found_of_class(shown),
        copies=copies_section(shown, copies),
        left_out=len(shown["data"]["class_names"]) > MOST_CLASSES,
        **{name: data_uri(image) for name, image in pictures.items()},
    )
    return page
