"""`dinv membership`: what a run gives away of which images it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .command import hold
from .given import Given
from .options import Run

if TYPE_CHECKING:
    from ..config.commands import MembershipSettings


def membership(*, run: Run, asking: Given[MembershipSettings]) -> dict[str, Any]:
    """Say how well the training images of RUN are told from held-out ones, by its vectors, images and classifiers."""
    from ..run.layout import MEMBERSHIP_FILE
    from ..run.membership import membership_run
    from ..run.reporting import report_command

    settings = asking.settings()
    with hold(run):
        record = membership_run(run, settings)
    return {
        **record,
        "text": f"{table(record)}\nKept in {run / MEMBERSHIP_FILE}; `{report_command(run)}` shows it in the report.",
    }


def table(record: Mapping[str, Any]) -> str:
    """The record of `membership_run` as lines for a terminal."""
    rows = [record["control"], *record["figures"]]
    names = [f"{one['of']}: {one['by']}" for one in rows]
    width = max(map(len, names))
    lines = [
        f"{record['members']} training images against {record['held_out']} held-out ones. AUC: 0.5 is chance.",
        f"{'an adversary has':{width}}  {'AUC':18}  true positives, at a rate of false ones",
    ]
    for name, one in zip(names, rows, strict=True):
        area = f"{one['auc']:.2f} [{one['auc_low']:.2f}, {one['auc_high']:.2f}]"
        share = [f"{100 * one[key]:.1f}" for key in ("true_positives", "true_low", "true_high")]
        rate = f"{100 * one['false_positives']:.2g}"
        lines.append(f"{name:{width}}  {area:18}  {share[0]} % [{share[1]}, {share[2]}] at {rate} %")
    return "\n".join([*lines, *(f"Note: {note}" for note in record["notes"])])
