"""The plain-text training log (tab-separated, one line per record) from which the model card is written."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..engine.lock import say
from ..engine.store import commit_bytes, disk_errors
from ..errors import DataError

OF_EVERY_LOG = ("time", "step", "samples", "seconds", "device")


class TrainingLog:
    """Append records to `path` and, with `echo`, to stdout; the first line names the columns.

    `device` is what trains, in words. Records after `step`, from which training goes on, are dropped: a killed run
    logged them but did not save. Raises DataError as `read_log`, DiskError.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], step: int, device: str, *, echo: bool = True) -> None:
        self.path, self.columns, self.device, self.echo = path, (*OF_EVERY_LOG, *columns), device, echo
        kept = [record for record in read_log(path) if int(record["step"]) <= step] if path.exists() else []
        lines = ["\t".join(self.columns), *("\t".join(record.values()) for record in kept)]
        commit_bytes(path, ("\n".join(lines) + "\n").encode())

    def write(self, step: int, samples: int, seconds: float, **values: float) -> None:
        """Append a record, one value for each column; on disk when this returns, before a state of its step is."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        fields = [stamp, str(step), str(samples), f"{seconds:.0f}", self.device]
        line = "\t".join([*fields, *(f"{values[c]:.5f}" for c in self.columns[len(OF_EVERY_LOG) :])])
        with disk_errors(self.path), self.path.open("a") as handle:
            handle.write(line + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        say({"step": f"{self.path.stem}: step {step}, {samples} images, {samples / max(seconds, 1.0):.1f} images/s"})
        if self.echo:
            print(line, flush=True)


def read_log(path: Path) -> list[dict[str, str]]:
    """Every record of a log as a dict of column -> text.

    A last line that a kill or power cut tore is no record. Raises DataError for another that lacks fields.
    """
    header, *lines = path.read_text(errors="replace").split("\n")
    names = header.split("\t")
    records = [line.split("\t") for line in lines[:-1]]  # what follows the last line feed is nothing, or was torn
    if records and len(records[-1]) < len(names):
        records.pop()
    for number, record in enumerate(records, 2):
        if len(record) != len(names):
            raise DataError(
                f"{path}, line {number}: {len(record)} fields, not the {len(names)} that its first line names. Take "
                "the line out, or restore the file from a copy."
            )
    return [dict(zip(names, record, strict=True)) for record in records]
