"""The sections of the report, in their order: each is a function of the run's record and its images.

A section of your own: a function in a file of its own, and one line in SECTIONS. It returns HTML that begins with a
heading `<h2>`, "" where the run has nothing of it, and escapes what it shows, as `fill` does for a template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .cards import cards
from .changed_settings import changed
from .confusion import MOST_CLASSES, most_confused, normalised
from .copies import copies_section
from .fidelity import fidelity
from .pictures import ReportImages, data_uri
from .plots import accuracies, arm_colours, differences, losses
from .problem_groups import MOST_PROBLEMS, grouped
from .strengths import strengths
from .templates import fill

Section = Callable[[Mapping[str, Any], ReportImages], str]


def _verdict(run: Mapping[str, Any], _: ReportImages) -> str:
    """The heading of the page, the verdict in a sentence, and the differences that it rests on."""
    return fill("parts/verdict.html", run=run, plot=differences(arm_colours(run), run["verdict"]["comparisons"]))


def _accuracy(run: Mapping[str, Any], _: ReportImages) -> str:
    beside = [run["verdict"]["shrinking"], *run["verdict"]["beside"]] if "beside" in run["verdict"] else []
    return fill("parts/accuracy.html", run=run, plot=accuracies(run), beside=differences(arm_colours(run), beside))


def _classes(run: Mapping[str, Any], _: ReportImages) -> str:
    found, names = found_of_class(run), run["data"]["class_names"]
    confusion = run.get("confusion", {})
    few = len(names) <= MOST_CLASSES
    if not found and not confusion:
        return ""
    return fill(
        "parts/classes.html",
        run=run,
        colours=arm_colours(run),
        found=found,
        left_out=not few,
        shares={arm: normalised(counts, names).tolist() for arm, counts in confusion.items()} if few else {},
        confused={} if few else {arm: most_confused(counts, names) for arm, counts in confusion.items()},
    )


def _copies(run: Mapping[str, Any], images: ReportImages) -> str:
    return copies_section(run, images.copies, images.redrawn)


def _membership(run: Mapping[str, Any], _: ReportImages) -> str:
    return fill("parts/membership.html", run=run) if "membership" in run else ""


def _chosen(run: Mapping[str, Any], _: ReportImages) -> str:
    if "chosen" not in run:
        return ""
    by_both = any(one.get("arm") != "real" for one in run["chosen"])
    return fill("parts/chosen.html", run=run, by_both=by_both)


def _growth(run: Mapping[str, Any], _: ReportImages) -> str:
    return fill("parts/growth.html", run=run, found=run["growth"]) if "growth" in run else ""


def _subgroups(run: Mapping[str, Any], _: ReportImages) -> str:
    return fill("parts/subgroups.html", run=run) if "subgroups" in run else ""


def _balance(run: Mapping[str, Any], _: ReportImages) -> str:
    if "balance" not in run:
        return ""
    train, found = run["settings"]["train"], run["balance"]
    return fill("parts/balance.html", run=run, found=found, shares=shares_of_parts(found["parts"], train))


def _images(run: Mapping[str, Any], images: ReportImages) -> str:
    return fill("parts/images.html", run=run, images=images, cards=cards(images, run["data"]["class_names"]))


def _strips(_: Mapping[str, Any], images: ReportImages) -> str:
    return fill("parts/strips.html", picture=data_uri(images.strips)) if images.strips is not None else ""


def _inversion(run: Mapping[str, Any], _: ReportImages) -> str:
    return fill("parts/inversion.html", run=run, plot=losses(run)) if "inversion_curve" in run else ""


def _made(run: Mapping[str, Any], _: ReportImages) -> str:
    return fill("parts/made.html", run=run, changed=changed(run["settings"]))


def _data(run: Mapping[str, Any], _: ReportImages) -> str:
    return fill("parts/data.html", run=run, groups=grouped(run["data"]["problems"]), most=MOST_PROBLEMS)


def _glossary(run: Mapping[str, Any], _: ReportImages) -> str:
    return fill("parts/glossary.html", run=run)


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


def shares_of_parts(parts: Sequence[Mapping[str, Any]], train: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Of what real+synthetic sees, the share that each part has, before and after: of real images alone, and of both.

    Where batches hold a share of real images, that share has their proportions, and the rest those of synthetic ones.
    """
    real, made = (sum(part[kind] for part in parts) for kind in ("real", "synthetic"))
    fraction = real / (real + made) if train["mixing"] == "concatenate" else train["real_fraction"]
    return [
        (
            part["real"] / real,
            fraction * part["real"] / real + ((1 - fraction) * part["synthetic"] / made if made else 0.0),
        )
        for part in parts
    ]


SECTIONS: tuple[Section, ...] = (
    _verdict,
    _accuracy,
    _classes,
    _subgroups,
    _balance,
    _images,
    _strips,
    fidelity,
    strengths,
    _copies,
    _membership,
    _chosen,
    _made,
    _data,
    _inversion,
    _growth,
    _glossary,
)
