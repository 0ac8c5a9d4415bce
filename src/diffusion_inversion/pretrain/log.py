"""The plain-text training log (tab-separated, one line per record) from which the model card is written."""

from __future__ import annotations

import time
from pathlib import Path

from ..engine.lock import say
from ..engine.store import commit_bytes

OF_EVERY_LOG = ("time", "step", "samples", "seconds", "device")


class TrainingLog:
    """Append records to `path` and, with `echo`, to stdout; the first line names the columns.

    `device` is what trains, in words. Records after `step`, from which training goes on, are dropped: a killed run
    logged them but did not save.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], step: int, device: str, *, echo: bool = True) -> None:
        self.path, self.columns, self.device, self.echo = path, (*OF_EVERY_LOG, *columns), device, echo
        kept = [record for record in read_log(path) if int(record["step"]) <= step] if path.exists() else []
        lines = ["\t".join(self.columns), *("\t".join(record.values()) for record in kept)]
        commit_bytes(path, ("\n".join(lines) + "\n").encode())

    def write(self, step: int, samples: int, seconds: float, **values: float) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        fields = [stamp, str(step), str(samples), f"{seconds:.0f}", self.device]
        line = "\t".join([*fields, *(f"{values[c]:.5f}" for c in self.columns[len(OF_EVERY_LOG) :])])
        with self.path.open("a") as handle:
            handle.write(line + "\n")
        say({"step": f"{self.path.stem}: step {step}, {samples} images, {samples / max(seconds, 1.0):.1f} images/s"})
        if self.echo:
            print(line, flush=True)


def read_log(path: Path) -> list[dict[str, str]]:
    """Every record of a log as a dict of column -> text."""
    header, *lines = path.read_text().splitlines()
    names = header.split("\t")
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
