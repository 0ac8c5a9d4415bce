"""Do again what is missing in the stages of a run that had been finished (`dinv repair`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.settings import InvertSettings
from ..config.training import TrainSettings
from ..data.datasets import Splits
from ..engine.ledger import Ledger
from ..engine.lock import run_lock
from ..sample.sampling import stale_files
from ..sample.synthetic import SyntheticStore
from ..train.arms import ArmResults
from ..train.evaluation import OWN_SIZE
from ..train.replicated import Replicated
from ..train.store import ClassifierStore
from .attributes import attributes_of
from .coarseness import again as coarseness_again
from .copies import audit_again
from .drawn_with import generator_of, recorded_sampling
from .fidelity.stage import recorded_filter
from .forget import follow
from .growth import grown_again
from .images import open_splits
from .layout import GENERATOR_FILE, RECONSTRUCTIONS_FILE, RUN_FILE
from .membership import membership_again
from .methods import is_whole, method_of
from .replicates import replicate_folders
from .reporting import read_config, replicated, report_stage
from .stages import invert_stage, sample_stage, train_stage
from .strengths import strengths_of


@dataclass(frozen=True)
class Redone:
    """A run whose stages are whole again, and the note of its last report."""

    splits: Splits
    results: ArmResults
    settings: TrainSettings
    note: dict[str, Any]

    def report(self, run: Path, others: Sequence[Replicated] = ()) -> None:
        """Write the report as it was last asked for, of as many replicates, less those that have not all its arms."""
        arms = self.results.accuracies().keys() - {OWN_SIZE}
        beside = [
            one for one in others[: self.note.get("replicates", 1) - 1] if one.results.accuracies().keys() >= arms
        ]
        attributes = attributes_of(run, self.splits, None)
        report_stage(run, self.splits, self.results, self.settings, self.note["command"], beside, attributes)


def resume(run: Path, device: str = "auto") -> list[str]:
    """Do again what is missing in every stage that had been finished; return the stages that had not been.

    So it is in every replicate. Settings, data and generator are those that the run recorded. Images from prompts or
    a pool cannot be made again here: their prompts, or the pool, are not on record as a whole.
    """
    if method_of(run).again is not None:
        if not is_whole(run):
            return ["sample"]
        trained = ClassifierStore(run).manifest.records() or Ledger(run).note(RUN_FILE)
        unfinished, whole = _train_again(run, open_splits(run)) if trained else ([], None)
    else:
        unfinished, whole = _resume(run, device)
    others = []
    for folder in replicate_folders(run)[1:]:
        with run_lock(folder):
            follow(run, folder)
            left, found = _resume(folder, device)
            unfinished += [f"{stage} of replicate {folder.name}" for stage in left]
            if found is not None:
                found.report(folder)
                others.append(replicated(folder, found.splits, found.results))
    if whole is not None:
        whole.report(run, others)
    return unfinished


def _resume(run: Path, device: str) -> tuple[list[str], Redone | None]:
    """`resume` for one folder, without its report."""
    ledger = Ledger(run)
    if ledger.read_json(GENERATOR_FILE) is None:  # written when stage 1 had ended
        return ["invert"], None
    generator = generator_of(run, device)
    splits = open_splits(run)
    coarseness_again(run, splits.train, generator)
    vectors = invert_stage(run, splits, generator, InvertSettings(**read_config(run, "invert")["settings"]))
    # That a stage had ended is on record in its own manifest and in the ledger: one of them may be the damaged one.
    store = SyntheticStore(run, splits.train.class_names)
    drawn = store.manifest
    sampled = drawn.last("complete") or ledger.note(RECONSTRUCTIONS_FILE)
    if stale := stale_files(vectors, store):  # of vectors that were not learned again to the same bits
        store.remove(stale)
    if sampled is None:
        return (["sample"] if drawn.units() or drawn.dropped() or strengths_of(run) else []), None
    recorded = recorded_sampling(run)
    assert recorded is not None  # it had ended
    amounts = {key: value for key, value in sampled.items() if key in ("variants", "balance")}
    sample_stage(run, generator, recorded.model_copy(update=amounts), sources=splits.train)
    grown_again(run, splits, vectors, generator)
    return _train_again(run, splits)


def _train_again(run: Path, splits: Splits) -> tuple[list[str], Redone | None]:
    """Train again what is missing of the classifiers; as `_resume`."""
    ledger = Ledger(run)
    audit_again(run, splits)
    classifiers = ClassifierStore(run).manifest
    reported = ledger.note(RUN_FILE)
    trained = classifiers.last("complete") or reported
    if trained is None:
        return (["train"] if classifiers.units() or classifiers.dropped() else []), None
    recorded = read_config(run, "train")
    training = TrainSettings(
        **recorded["settings"], architecture=recorded["architecture"], arms=trained["arms"], seeds=trained["seeds"]
    )
    results = train_stage(
        run, splits, training, recorded["device"], own_size=trained.get("own_size", False),
        filtering=recorded_filter(run),
    )  # fmt: skip
    membership_again(run, splits)
    return [], Redone(splits, results, training, reported or {"command": f"dinv repair {run}"})
