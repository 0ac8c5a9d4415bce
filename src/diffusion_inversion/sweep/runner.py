"""Run a sweep: all its jobs, then its table, its figures and what became of its claims."""

from __future__ import annotations

from pathlib import Path

from ..engine.ledger import Ledger
from ..generator.generator import Generator
from .checks import require_forms
from .figure import draw
from .jobs import run_jobs
from .outcome import SweepResult, gather, require_answerable
from .page import page
from .pictures import look
from .plan import SweepPlan, cells, replicates
from .table import as_csv, as_json, as_markdown
from .work import Workshop


def run_sweep(plan: SweepPlan, folder: Path, generator: Generator, *, command: str) -> SweepResult:
    """Do what is left of a sweep in `folder` and write <name>.csv, .json, .md, .html and figures there.

    Every stage is done once for all cells that share it, those of other experiment files in the folder too: work is
    named after all that it depends on. A file that has grown adds what is new; results that no file asks for any more
    stay on disk unread. Call it inside `run_lock`. Raises what the stages raise; before anything is computed
    UsageError for settings or claims that cannot be, ConfigMismatchError for classifiers of another version's networks.
    """
    wanted = [replicates(plan, cell) for cell in cells(plan)]
    workshop = Workshop(plan, folder, generator, generator.device.type)
    added = iter(workshop.add([cell for drawn in wanted for cell in drawn]))
    jobs = [[next(added) for _ in drawn] for drawn in wanted]
    require_answerable(workshop, wanted, jobs)
    require_forms(folder, workshop.jobs)
    run_jobs(folder, workshop.jobs)
    found = gather(workshop, wanted, jobs)
    figures = draw(found)
    if (images := look(workshop, wanted, jobs)) is not None:
        figures[f"{plan.name}-images.png"] = images
    ledger = Ledger(folder)
    ledger.commit(f"{plan.name}.json", as_json(found, command).encode())
    ledger.commit(f"{plan.name}.csv", as_csv(found).encode())
    for name, image in figures.items():
        ledger.commit(name, image)
    ledger.commit(f"{plan.name}.md", as_markdown(found, command, list(figures)).encode())
    ledger.commit(f"{plan.name}.html", page(found, command, figures).encode())
    return found
