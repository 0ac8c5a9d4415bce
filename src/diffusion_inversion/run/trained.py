"""The classifiers of a run that are put to use: those of one arm, all its seeds, trained on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config.training import ARMS
from ..engine.hashing import sha256_of
from ..engine.ledger import Ledger
from ..engine.untrusted import inside
from ..errors import DataError, UsageError
from ..train.classifiers import Classifier
from ..train.evaluation import BASELINE, OWN_SIZE
from ..train.store import ClassifierStore
from .layout import RUN_FILE
from .methods import INVERSION, method_of
from .report.record import VerdictRecord


@dataclass(frozen=True)
class Trained:
    """The classifiers of one arm, which have the same classes and side."""

    arm: str  # as the report calls it
    why: str  # why this arm, half a sentence
    by_seed: dict[int, Classifier]  # on the CPU, in eval mode


def trained(run: Path, arm: str | None = None) -> Trained:
    """Load the classifiers of an arm of a run, by default of the one that `recommended` names.

    Where the images were others before, and classifiers were trained on these too, those of the images that training
    was last finished with count, as in the report. Replicates have classifiers of their own, which are not among these.

    Raises UsageError for an arm that was not trained or where training did not finish, DataError for a file that is
    missing or changed.
    """
    store, shown = ClassifierStore(run), arms_trained(run)
    beside, complete = method_of(run).images, store.manifest.last("complete")
    assert complete is not None
    why = "as asked for"
    if arm is None:
        arm, why = recommended(_verdict(run), tuple(shown), f"{BASELINE}+{beside}")
    if arm not in shown:
        raise UsageError(f"--arm {arm}: not trained in {run}; it has {', '.join(shown)}.")
    files = {seed: next(iter(one["files"].items())) for seed, one in store.current(shown[arm]).items()}
    if missing := [seed for seed in complete["seeds"] if seed not in files]:
        raise UsageError(
            f"{run}: of arm {arm} the classifiers of seeds {', '.join(map(str, missing))} are not there, or of other "
            f"images. Run `dinv train {run}` first."
        )
    return Trained(arm, why, {seed: _load(run, store.folder, *files[seed]) for seed in complete["seeds"]})


def arms_trained(run: Path) -> dict[str, str]:
    """The arms of a run that were trained, as the report calls them => as they are stored; UsageError for none."""
    complete = ClassifierStore(run).manifest.last("complete")
    if complete is None:
        raise UsageError(f"{run}: no classifiers, or not all of them. Run `dinv train {run}` first.")
    beside = method_of(run).images
    shown: dict[str, str] = {name.replace(INVERSION.images, beside): name for name in ARMS if name in complete["arms"]}
    return shown | ({OWN_SIZE: OWN_SIZE} if complete.get("own_size") else {})


def recommended(verdict: VerdictRecord | None, arms: tuple[str, ...], mixed: str) -> tuple[str, str]:
    """The arm to use, of those that were trained, and why: what the verdict says, where it says something.

    "helps": the arm that it rests on. "harms", "does not help": the baseline, since the synthetic images are not worth
    their while. Else `mixed`, real images with the others, or the first arm where that was not trained.
    """
    outcome = None if verdict is None else verdict["outcome"]
    if verdict is not None and outcome == "helps" and verdict.get("arm") in arms:
        return verdict["arm"], "the verdict is that it helps"
    if verdict is not None and outcome in ("harms", "does not help"):
        baseline = next((one["baseline"] for one in verdict["comparisons"] if "baseline" in one), BASELINE)
        if baseline in arms:
            others = "harm" if outcome == "harms" else "do not help"
            return baseline, f"the verdict is that the other images {others}"
    named = "there is no verdict yet" if verdict is None else "the verdict names none"
    return (mixed if mixed in arms else arms[0]), named


def _verdict(run: Path) -> VerdictRecord | None:
    record = Ledger(run).read_json(RUN_FILE)
    return None if record is None else record["verdict"]


def _load(run: Path, folder: Path, name: str, digest: str) -> Classifier:
    path = inside(folder, name)
    remedy = f"`dinv repair {run}` trains it again."
    if not path.is_file():
        raise DataError(f"{path}: listed in the manifest but missing. {remedy}")
    if sha256_of(path) != digest:
        raise DataError(f"{path}: changed since it was written. {remedy}")
    return Classifier.load(path)
