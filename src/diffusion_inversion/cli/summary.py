"""What a finished run says on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command import notes_on

if TYPE_CHECKING:
    from ..run.report import RunRecord
    from ..run.report.image_records import FidelityRecord
    from ..run.report.record import SubgroupsRecord

MOST_CLASSES = 10  # whose recall is listed


def summarise(folder: Path, record: RunRecord, data: str | None = None, test: str | None = None) -> dict[str, Any]:
    """The summary of a finished run; `data` and `test` as they were given, to say where notes are listed."""
    from ..engine.text import shown
    from ..measure.copies.said import redrawn_sentence, sentence
    from ..run.balancing import line as counts_line
    from ..run.layout import REPORT_FILE

    verdict, report = record["verdict"], folder / REPORT_FILE
    summary: dict[str, Any] = {"run": str(folder), "report": str(report), "arms": record["arms"], "verdict": verdict}
    lines = [*_arms(record)]
    if "replicates" in record:
        summary |= {"replicates": record["replicates"], "components": record["components"]}
        lines += _replicates(record)
    of_one = "replicate 0: " if "replicates" in record else ""  # labels and copies are looked for in each by itself
    if "subgroups" in record:
        summary["subgroups"] = record["subgroups"]
        lines += _subgroups(record["subgroups"])
    if "balance" in record:
        summary["balance"] = record["balance"]
        lines.append(of_one + counts_line(record["balance"]))
    lines.append(f"verdict: {verdict.get('headline', verdict['outcome'])} ({verdict['sentence']})")
    lines += [verdict["scope"]] if "scope" in verdict else []
    if "chosen" in record:
        summary["chosen"] = record["chosen"]
        lines += [f"chosen on training images: {choice['sentence']}" for choice in record["chosen"]]
    if "fidelity" in record:
        summary["fidelity"] = record["fidelity"]
        lines.append(of_one + _fidelity(record["fidelity"]))
    if "time_limit" in record:
        summary["time_limit"] = record["time_limit"]
        lines += [f"cut for the time limit: {', '.join(record['time_limit']['cut']) or 'nothing'}"]
    lines += [*_shrunk(record), *_coarse(record), *_doubts(record)]
    if "copies" in record:
        summary["copies"] = record["copies"]["copies"]
        redrawn = record["copies"].get("redrawn")
        then = f" {redrawn_sentence(redrawn)}" if redrawn is not None and redrawn["flagged"] else ""
        lines.append(f"{of_one}{sentence(record['copies'])}.{then}")
    lines += [verdict["too_few"]] if "too_few" in verdict else []
    summary["notes"] = len(record["data"]["problems"])
    lines += notes_on(summary["notes"], data, test) if data is not None else []
    if record["arms"].keys() != {"real"}:
        lines.append(f"the images for other programs: dinv export {folder} --to imagefolder --out {folder.name}-images")
    return summary | {"text": "\n".join([shown(line) for line in lines] + [f"report: {report}"])}


def _arms(record: RunRecord) -> Iterator[str]:
    verdict, class_names = record["verdict"], record["data"]["class_names"]
    balanced = verdict.get("measure") == "balanced accuracy"
    for arm, result in record["arms"].items():
        row = f"{arm:>15}  {_percent(result['mean'], result['std'])} (n={result['n']})"
        if balanced:
            row += f", balanced {_percent(result['balanced_accuracy']['mean'], result['balanced_accuracy']['std'])}"
        if "auroc" in result:
            row += f", area under the ROC curve {result['auroc']['mean']:.3f}"
        yield row
    if (line := verdict.get("majority")) is not None:
        also = f", balanced {_percent(line['balanced_accuracy'], None)}" if balanced else ""
        yield f"{'nothing':>15}  {_percent(line['accuracy'], None)}{also}: always answering {line['class_name']}"
    if len(class_names) <= MOST_CLASSES and all("recall" in result for result in record["arms"].values()):
        yield "of each class found:"
        for arm, result in record["arms"].items():
            rates = zip(class_names, result["recall"], strict=True)
            parts = (f"{name} {'no test images' if rate is None else _percent(rate, None)}" for name, rate in rates)
            yield f"{arm:>15}  {', '.join(parts)}"


def _subgroups(found: SubgroupsRecord) -> Iterator[str]:
    yield f"of each {found['attribute']} found:"
    for part in found["parts"]:
        rates = ", ".join(f"{arm} {_percent(one['mean'], None)}" for arm, one in part["accuracy"].items())
        worst = ", the worst" if part["value"] == found["worst"] else ""
        yield f"{part['value']:>15}  {rates} ({part['images']} test images{worst})"


def _shrunk(record: RunRecord) -> Iterator[str]:
    """That the real images were shrunk, and what that costs."""
    sides, shrinking = record.get("sides"), record["verdict"].get("shrinking")
    if sides is None or sides["native"] <= sides["used"]:
        return
    native, used, own = sides["native"], sides["used"], sides["own"]
    if shrinking is None or own is None:
        yield f"The real images have {native} px, shrunk to {used} px: what more px would give was not measured."
        return
    low, high = shrinking["low"], shrinking["high"]
    interval = "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    cost = f"real images alone at {own} px give {100 * shrinking['difference']:+.1f} points{interval} over {used} px"
    if record["verdict"].get("too_coarse"):
        drawn_at = record["generator"]["resolution"] if "generator" in record else used + 1
        coarse = "The generator is" if drawn_at <= used else f"{used} px are"
        yield f"{coarse} too coarse for this task: {cost}."
    else:
        yield f"The real images have {native} px: {cost}."


def _fidelity(found: FidelityRecord) -> str:
    """How many synthetic images show another class, beside how many real ones do."""
    share = f" ({_percent(found['failed'] / found['judged'], None)})" if found["judged"] else ""
    passed = f", {found['failed'] - found['left']} pass when drawn again" if found["drawn_again"] else ""
    return (
        f"labels: {found['failed']} of {found['judged']} synthetic images{share} show another class{passed}; of real "
        f"images {_percent(found['judge']['failed'], None)} fail so (--filter {found['filter']})"
    )


def _coarse(record: RunRecord) -> Iterator[str]:
    found = record["verdict"].get("coarseness")
    if found is not None and found["too_coarse"]:
        yield f"{found['generator']} keeps too little of these images: {found['sentence']}."


def _doubts(record: RunRecord) -> Iterator[str]:
    data = record["data"]
    if near := data.get("near_duplicates", 0):
        yield f"Of {data['n_test']} test images, near-duplicates of training images: {near}. They test memory too."
    if conflicts := data.get("conflicting_labels", 0):
        yield f"Images with a label that an equal or nearly equal image contradicts: {conflicts}."


def _percent(mean: float, std: float | None) -> str:
    return f"{100 * mean:.1f}{'' if std is None else f' ± {100 * std:.1f}'} %"


def _replicates(record: RunRecord) -> Iterator[str]:
    yield "of each replicate, one number a classifier seed:"
    for one in record["replicates"]:
        found = [f"{arm} {', '.join(f'{100 * a:.1f}' for a in values)}" for arm, values in one["arms"].items()]
        yield f"{one['number']:>15}  {'; '.join(found)}"
    yield "standard deviation between replicates (apart from seeds), between seeds, in points:"
    for name, part in record["components"].items():
        both = ("not measured" if v is None else f"{100 * v:.1f}" for v in (part["between"], part["within"]))
        yield f"{name:>21}  {', '.join(both)}"
