"""Whether a run folder still holds what was written: every file and every record, down to the bit."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..data.forgotten import FORGOTTEN_FILE
from ..engine.ledger import Ledger
from ..engine.lock import CLAIMS, LOCK_NAME
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest, Record
from ..engine.store import PARTIAL_PREFIX
from ..engine.untrusted import inside
from ..errors import DataError, UsageError
from ..invert.embeddings import FOLDER as EMBEDDINGS
from ..sample.synthetic import FOLDER as SYNTHETIC
from ..sample.synthetic import METADATA
from ..train.store import FOLDER as CLASSIFIERS
from .replicates import FOLDER as REPLICATES
from .replicates import replicate_folders

# Names that stages give to files of units: an unlisted one is what a kill left.
OURS = {
    EMBEDDINGS: re.compile(r"shard-[0-9a-f]{16}\.safetensors|state-[0-9a-f]{16}\.safetensors"),
    SYNTHETIC: re.compile(r"[^/]+/[^/]+-[0-9a-f]{8}-v\d{3,}\.png"),
    CLASSIFIERS: re.compile(r"[a-z+-]+-seed-?\d+-[0-9a-f]{8}\.safetensors|state-[0-9a-f]{16}\.safetensors"),
}
CONFIGS = (
    "invert.config.json",
    "sample.config.json",
    "train.config.json",
    "data.json",
    "generator.json",
    "real_fraction.json",
    FORGOTTEN_FILE,
)
# Files of the ledger: settings and choices, which cannot be made again, and what can.
MADE = ("run.json", "report.html", "reconstructions.safetensors", "likeness.json", "retrieval.json")
KNOWN = (*CONFIGS, *MADE, f"{SYNTHETIC}/{METADATA}")
Kind = Literal["damaged", "missing", "unlisted", "unfinished"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was written. `file` is relative to the run folder; `line` is of a manifest.

    damaged, missing: what was written is lost. unlisted: no record names the file, which a kill or lost records
    explain. unfinished: a kill cut the write short; nothing that was committed is lost.
    """

    file: str
    kind: Kind
    line: int | None = None
    unit: str | None = None

    @property
    def lost(self) -> bool:
        """Whether something that was committed is lost."""
        return self.kind in ("damaged", "missing")


@dataclass(frozen=True)
class Verification:
    """What `verify` looked at and found."""

    files: int
    size: int  # bytes
    findings: tuple[Finding, ...]

    @property
    def lost(self) -> bool:
        return any(finding.lost for finding in self.findings)


def verify(run: Path, on_file: Callable[[], None] = lambda: None) -> Verification:
    """Read every file of a run and its replicates and compare it with its record; `on_file()` follows the reading.

    Finds changed, missing, unlisted and unfinished files, and changed or torn records. Changes nothing.
    Raises UsageError where the folder holds no run.
    """
    if not _holds_run(run):
        raise UsageError(f"{run}: holds no run. Name a folder that `dinv invert` or `dinv run` wrote.")
    files, size, findings = 0, 0, []
    for folder in filter(_holds_run, replicate_folders(run)):
        found = _verify(folder, on_file)
        files, size = files + found.files, size + found.size
        findings += [replace(one, file=(folder / one.file).relative_to(run).as_posix()) for one in found.findings]
    return Verification(files, size, tuple(findings))


def _holds_run(run: Path) -> bool:
    return (run / MANIFEST).is_file() or any((run / folder).is_dir() for folder in OURS)


def _verify(run: Path, on_file: Callable[[], None]) -> Verification:
    ledger = Ledger(run)
    findings = list(_records(run, MANIFEST))
    listed = {MANIFEST, LOCK_NAME}
    files = size = 0
    good, _, _ = ledger.manifest.examine()
    for name in dict.fromkeys(record["unit"] for record in good):
        listed.add(name)
        found = _hash(inside(run, name))
        files, size = files + 1, size + found[1]
        on_file()
        findings += _ledger_findings(name, [record for record in good if record["unit"] == name], found[0])
    for folder in OURS:
        manifest = f"{folder}/{MANIFEST}"
        listed.add(manifest)
        findings += _records(run, manifest)
        live, _, _ = Manifest(run / manifest).examine()
        units: dict[str, Record] = {}
        for record in live:
            if record["event"] in ("commit", "drop"):
                units.pop(record["unit"], None)
            if record["event"] == "commit":
                units[record["unit"]] = record
        for unit, record in units.items():
            for name, digest in record["files"].items():
                listed.add(f"{folder}/{name}")
                found = _hash(inside(run / folder, name))
                files, size = files + 1, size + found[1]
                on_file()
                if found[0] != digest:
                    findings.append(Finding(f"{folder}/{name}", "damaged" if found[0] else "missing", unit=unit))
    findings += _unlisted(run, listed)
    return Verification(files, size, tuple(findings))


def discard(run: Path, found: Verification) -> None:
    """Take back what `verify` found damaged, so that the stages do it again; write copies of lost settings.

    Call it inside `run_lock`. Of the files that no record names, only those with names of ours are deleted.
    """
    for folder in replicate_folders(run):
        whole = [(run / finding.file, finding) for finding in found.findings]
        own = [(path, one) for path, one in whole if folder == _folder_of(run, one)]
        _discard(folder, [replace(one, file=path.relative_to(folder).as_posix()) for path, one in own])


def _folder_of(run: Path, finding: Finding) -> Path:
    first, number, *_ = (*finding.file.split("/"), "")
    return run / first / number if first == REPLICATES else run


def _discard(run: Path, findings: list[Finding]) -> None:
    ledger = Ledger(run)
    for damaged in {f.file for f in findings if f.file.endswith(MANIFEST)}:
        cut = Manifest(run / damaged)
        cut.rewrite(cut.examine()[0])
    for finding in findings:
        folder, _, name = finding.file.partition("/")
        path = run / finding.file
        if finding.file.endswith(MANIFEST):
            continue
        if finding.unit is not None:
            manifest = Manifest(run / folder / MANIFEST)
            if finding.unit in manifest.units():
                manifest.append({"event": "drop", "unit": finding.unit})
        elif finding.file in KNOWN:
            _restore(ledger, finding)
        elif path.name.startswith(PARTIAL_PREFIX) or (folder in OURS and OURS[folder].fullmatch(name)):
            path.unlink(missing_ok=True)


def _restore(ledger: Ledger, finding: Finding) -> None:
    """Put a file of the ledger right: keep it, write it from the copy in its record, or drop it to be made again."""
    name = finding.file
    note = ledger.note(name)
    if note is not None and "copy" in note and finding.kind != "unfinished":
        ledger.drop(name, lost=True)
        ledger.commit(name, note["copy"].encode(), note)
    elif name in CONFIGS and not finding.lost and _is_json(ledger.run / name):
        ledger.adopt(name)
    else:
        ledger.drop(name, lost=True)


def _ledger_findings(name: str, records: list[dict[str, object]], digest: str | None) -> Iterator[Finding]:
    committed: object = None
    intended: list[object] = []
    for record in records:
        files = record.get("files")
        if record["event"] == "drop":
            committed, intended = None, []
        elif isinstance(files, dict):
            intended.append(files[name])
            if record["event"] == "commit":
                committed, intended = files[name], [files[name]]
    if digest == committed:
        return
    if digest is None:
        yield Finding(name, "missing" if committed else "unfinished")
    else:
        yield Finding(name, "unfinished" if digest in intended else "damaged")


def _records(run: Path, manifest: str) -> Iterator[Finding]:
    _, damaged, torn = Manifest(run / manifest).examine()
    for line in damaged:
        yield Finding(manifest, "damaged", line=line)
    if torn:
        yield Finding(manifest, "unfinished")


def _unlisted(run: Path, listed: set[str]) -> Iterator[Finding]:
    """Files with names of ours that no record names. Other files are their owner's and no business of ours."""
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        folder, _, rest = name.partition("/")
        if path.is_dir() or name in listed or folder in (CLAIMS, REPLICATES):
            continue
        if path.name.startswith(PARTIAL_PREFIX) or (folder in OURS and rest.startswith("state-")):
            yield Finding(name, "unfinished")
        elif name in KNOWN or (folder in OURS and OURS[folder].fullmatch(rest)):
            yield Finding(name, "unlisted")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _hash(path: Path) -> tuple[str | None, int]:
    """sha256 hex and size of a file; (None, 0) where it is missing. Raises DataError where it cannot be read."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
    except FileNotFoundError:
        return None, 0
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the disk and the permissions") from error
    return digest.hexdigest(), size
