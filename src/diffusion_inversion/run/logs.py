"""What a run logs as it goes: losses, accuracies, pictures and settings, to whoever shows them (`trackers.py`)."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from ..config.planning import LogSettings
from ..engine.ledger import Ledger
from ..engine.untrusted import check_record
from ..invert.embeddings import Embeddings
from ..train.arms import ArmRun
from .layout import LOG_FILE, STORES, Stage, stages_from
from .trackers import SETTINGS, Tracker, name_of_log, open_tracker

POINTS = 200  # of a training curve
_TAGS: dict[Stage, tuple[str, ...]] = {"invert": ("invert/",), "sample": ("images",), "train": ("train/", "test/")}


class Log:
    """Logs to several trackers, or to none. A tracker that fails is left out from then on: the run goes on.

    What an earlier call of the same run logged is not logged again: its numbers would be the same. But for tags that
    begin with one of `anew`, whose stage begins anew, and classifiers that are trained anew.
    """

    def __init__(self, trackers: Mapping[str, Tracker], anew: tuple[str, ...] = ()) -> None:
        self._trackers, self._prefix = dict(trackers), ""
        self._last: dict[str, Mapping[str, int]] = {}

        def resume(name: str, tracker: Tracker) -> None:
            last = tracker.last_steps()
            self._last[name] = {tag: step for tag, step in last.items() if not tag.startswith(anew)}

        for name in list(self._trackers):
            self._try(name, partial(resume, name))

    def of(self, number: int) -> Log:
        """The log of a replicate: tags have its number, of all but replicate 0."""
        found = Log({})
        found._trackers, found._last = self._trackers, self._last
        found._prefix = "" if number == 0 else f"replicate {number}/"
        return found

    def settings(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Log the settings of each stage."""
        for stage, values in settings.items():
            self._new(f"{SETTINGS}{stage}", 0, partial(_log_settings, values))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Log a number."""
        self._new(tag, step, lambda tracker, tag: tracker.scalar(tag, value, step))

    def picture(self, tag: str, png: Callable[[], bytes], step: int) -> None:
        """Log a picture, which is drawn where somebody wants it; one that cannot be drawn is left out."""
        whole = self._prefix + tag
        if all(step <= self._last.get(name, {}).get(whole, -1) for name in self._trackers):
            return
        try:
            made = png()
        except Exception as error:
            _warn(f"{whole}: not logged", error)
            return
        self._new(tag, step, lambda tracker, tag: tracker.picture(tag, made, step))

    def vectors(self, embeddings: Embeddings) -> None:
        """Log the losses of stage 1 over its steps: mean, 10th and 90th percentile of the images."""
        if not self._trackers:
            return
        for step, losses in zip(embeddings.curve_steps, embeddings.losses, strict=True):
            self.scalar("invert/loss mean", float(losses.mean()), step)
            for percent in (10, 90):
                self.scalar(f"invert/loss p{percent}", float(losses.quantile(percent / 100)), step)

    def step(self, arm: str, seed: int, step: int, loss: float, steps: int) -> None:
        """Log the loss of a training step, of some 200 steps of all."""
        if step % max(steps // POINTS, 1) == 0 or step == steps:
            self.scalar(f"train/loss {arm} seed {seed}", loss, step)

    def trained_anew(self, arm: str, seed: int) -> None:
        """Log a classifier once more that an earlier call logged: it is trained anew, since there are other images."""
        tags = (f"train/loss {arm} seed {seed}", f"test/accuracy {arm}", f"test/balanced accuracy {arm}")
        whole = {self._prefix + tag for tag in tags}
        for name, last in self._last.items():
            self._last[name] = {tag: step for tag, step in last.items() if tag not in whole}

    def classifier(self, run: ArmRun, number: int) -> None:
        """Log what a classifier does on the test images; `number` counts those of its arm."""
        self.scalar(f"test/accuracy {run.arm}", run.evaluation.accuracy, number)
        self.scalar(f"test/balanced accuracy {run.arm}", run.evaluation.balanced_accuracy, number)

    def close(self) -> None:
        """End what the trackers write."""
        for name in list(self._trackers):
            self._try(name, lambda tracker: tracker.close())

    def _new(self, tag: str, step: int, do: Callable[[Tracker, str], None]) -> None:
        tag = self._prefix + tag
        for name in list(self._trackers):
            if step > self._last.get(name, {}).get(tag, -1):
                self._try(name, lambda tracker: do(tracker, tag))

    def _try(self, name: str, do: Callable[[Tracker], None]) -> None:
        try:
            do(self._trackers[name])
        except Exception as error:  # a log is no reason to lose a run
            del self._trackers[name]
            _warn(f"{name}: no more is logged there", error)


def tags_from(stage: Stage | None) -> tuple[str, ...]:
    """What the tags begin with that a stage and those after it log; nothing for None."""
    later = () if stage is None else stages_from(stage)
    return tuple(tag for one in later for tag in (*_TAGS.get(one, ()), f"{SETTINGS}{one}"))


def _warn(what: str, error: Exception) -> None:
    cause = str(error).partition("\n")[0] or type(error).__name__
    print(f"warning: {what}: {cause}", file=sys.stderr, flush=True)


def _log_settings(values: Mapping[str, Any], tracker: Tracker, tag: str) -> None:
    tracker.settings(tag, values)


class LogId(TypedDict):
    """Content of the file that says which logs are of this run: they have the same id."""

    id: str


def _opened(run: Path, settings: LogSettings) -> dict[str, Tracker]:
    """The trackers of a run; one that cannot be opened is left out with a warning."""
    run, trackers = run.resolve(), dict[str, Tracker]()
    folder = settings.log_dir or run.parent / "logs"
    kept = Ledger(run).read_json(LOG_FILE)
    # A run of an earlier version has work and no id, as its log has none.
    begun = kept is not None or any((run / store.manifest).exists() for store in STORES)
    own = secrets.token_hex(16) if kept is None else check_record(kept, LogId, run / LOG_FILE)["id"]
    Ledger(run).commit_json(LOG_FILE, {"id": own}, copied=True)
    try:
        name = name_of_log(folder, run.name, own, begun=begun)
    except OSError as error:
        _warn(f"{folder}: nothing is logged there", error)
        return trackers
    if name != run.name:
        print(f"note: {folder}: {run.name} is the log of another run; this one is {name}", file=sys.stderr, flush=True)
    for program in settings.log_to:
        try:
            trackers[program] = open_tracker(program, folder, name)
        except Exception as error:  # of whichever program: a log is no reason to lose a run
            _warn(f"{program}: nothing is logged there", error)
    return trackers


SILENT = Log({})


@contextmanager
def logging_of(
    run: Path,
    settings: LogSettings | None,
    described: Mapping[str, Mapping[str, Any]],
    anew: Literal["sample", "train"] | None = None,
) -> Iterator[Log]:
    """The log of a run, with the settings of its stages, begun or gone on with; closed at the end, whatever that is.

    anew: a stage that begins anew, so that it and those after it are logged again.
    """
    if settings is None or not settings.log_to:
        yield SILENT
        return
    log = Log(_opened(run, settings), anew=tags_from(anew))
    log.settings(described)
    try:
        yield log
    finally:
        log.close()
