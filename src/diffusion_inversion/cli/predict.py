"""`dinv predict`: what a run's classifiers say of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import PartialError
from .command import hold
from .given import Given
from .options import Run

if TYPE_CHECKING:
    from ..config.commands import PredictSettings
    from ..run.predict import Predictions

SHOWN = 20  # unreadable images in the message; --json has all


def predict(*, run: Run, predicting: Given[PredictSettings]) -> dict[str, Any]:
    """Classify IMAGES with the classifiers of RUN, all seeds of one arm averaged, and write a table."""
    from ..run.predict import predict_images

    settings = predicting.settings()
    with hold(run):
        done = predict_images(run, settings)
    abstained = int(done.abstained.sum())
    summary = {
        "out": str(settings.out), "images": len(done), "arm": done.trained.arm, "why": done.trained.why,
        "seeds": list(done.trained.by_seed), "calibrated": False, "abstained": abstained, "labelled": done.labelled,
        "accuracy": done.accuracy, "accuracy_kept": done.accuracy_kept, "trained_on": done.learned,
        "tested_on": done.tested, "unreadable": [vars(problem) for problem in done.unreadable],
    }  # fmt: skip
    lines = [*_lines(done, settings.abstain_below, abstained), f"predictions: {settings.out}"]
    if done.unreadable:
        raise PartialError("\n".join([*_unreadable(done), *lines]), summary)
    return {**summary, "text": "\n".join(lines)}


def _lines(done: Predictions, abstain_below: float, abstained: int) -> list[str]:
    of = done.trained
    seeds = f"{len(of.by_seed)} classifiers" if len(of.by_seed) > 1 else "1 classifier"
    lines = [f"{len(done)} images by the mean of {seeds} of arm {of.arm} ({of.why}); confidences are not calibrated"]
    if abstain_below:
        lines.append(f"abstained from {abstained}, whose confidence is below {abstain_below:g}")
    if done.accuracy is not None:
        kept = "" if done.accuracy_kept is None else f", {100 * done.accuracy_kept:.1f} % of those not abstained from"
        said = f"accuracy on the {done.labelled} images that have a label: {100 * done.accuracy:.1f} %"
        lines.append(said + (kept if abstained else ""))
    if done.learned:
        lines.append(f"{done.learned} of the images are among those that the classifiers learned from")
    if done.tested:
        lines.append(f"{done.tested} of the images are among those that the run was tested on, which the verdict read")
    return lines


def _unreadable(done: Predictions) -> list[str]:
    from ..data.problems import aligned

    lost = done.unreadable
    rows = [("file", "cause", "remedy"), *((one.file, one.cause, one.remedy) for one in lost[:SHOWN])]
    lines = [f"{len(lost)} images have no prediction; the others have", *aligned(rows)]
    return [*lines, *([f"  and {len(lost) - SHOWN} more (--json lists all)"] if len(lost) > SHOWN else [])]
