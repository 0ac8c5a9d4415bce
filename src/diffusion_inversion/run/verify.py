"""Whether a run folder still holds what was written: every file and every record, down to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..engine.hashing import sha256_of
from ..engine.ledger import Ledger
from ..engine.lock import CLAIMS
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest, Record
from ..engine.untrusted import inside
from ..errors import DataError, UsageError
from ..sample.packed import damaged, is_packed
from .layout import REPLICATES, STORES, File, Store, identify
from .replicates import replicate_folders

Kind = Literal["damaged", "missing", "unlisted", "unfinished"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was written. `file` is relative to the run folder; `line` is of a manifest.

    damaged, missing: what was written is lost. unlisted: no record names the file, which a kill or lost records
    explain. unfinished: a kill cut the write or the deletion short; nothing that was committed is lost.
    images: those of a damaged Parquet file that are not as they were written, where they can still be read.
    """

    file: str
    kind: Kind
    line: int | None = None
    unit: str | None = None
    images: tuple[str, ...] = ()

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
    foreign: tuple[str, ...] = ()  # files, and folders with a slash, that no stage made: no business of ours

    @property
    def lost(self) -> bool:
        return any(finding.lost for finding in self.findings)


def verify(run: Path, on_file: Callable[[], None] = lambda: None) -> Verification:
    """Read every file of a run and its replicates and compare it with its record; `on_file()` follows the reading.

    Finds changed, missing, unlisted and unfinished files, and changed or torn records; names what is foreign to the
    run (`layout`). Changes nothing.
    Raises UsageError where the folder holds no run.
    """
    if not _holds_run(run):
        raise UsageError(f"{run}: holds no run. Name a folder that `dinv invert` or `dinv run` wrote.")
    files, size, findings, foreign = 0, 0, [], []
    for folder in filter(_holds_run, replicate_folders(run)):
        found = _verify(folder, on_file)
        below = "" if folder == run else f"{folder.relative_to(run).as_posix()}/"
        files, size = files + found.files, size + found.size
        findings += [replace(one, file=f"{below}{one.file}") for one in found.findings]
        foreign += [f"{below}{name}" for name in found.foreign]
    return Verification(files, size, tuple(findings), tuple(foreign))


def count_files(run: Path) -> int:
    """How many files `verify` reads; 0 where the folder holds no run."""
    found = 0
    for folder in filter(_holds_run, replicate_folders(run)):
        found += len({record["unit"] for record in Manifest(folder / MANIFEST).examine()[0]})
        for store in STORES:
            units = _committed(Manifest(folder / store.manifest).examine()[0])
            found += sum(len(record["files"]) for record in units.values())
    return found


def _committed(records: list[Record]) -> dict[str, Record]:
    """The commit record of every unit that is done."""
    units: dict[str, Record] = {}
    for record in records:
        if record["event"] in ("commit", "drop"):
            units.pop(record["unit"], None)
        if record["event"] == "commit":
            units[record["unit"]] = record
    return units


def _holds_run(run: Path) -> bool:
    return (run / MANIFEST).is_file() or any((run / store.folder).is_dir() for store in STORES)


class _Reader:
    """Reads a run folder once: every manifest, and every file that they list."""

    def __init__(self, run: Path, on_file: Callable[[], None]) -> None:
        self.run, self.on_file = run, on_file
        self.listed: set[str] = set()  # names that a record has
        self.findings: list[Finding] = []
        self.files = self.size = 0

    def records(self, manifest: str) -> list[Record]:
        """The good records of a manifest; what is damaged or torn is found."""
        good, damaged, torn = Manifest(self.run / manifest).examine()
        self.findings += [Finding(manifest, "damaged", line=line) for line in damaged]
        if torn:
            self.findings.append(Finding(manifest, "unfinished"))
        return good

    def digest(self, folder: str, name: str) -> str | None:
        """sha256 hex of a file that a record lists; None where it is missing."""
        self.listed.add(f"{folder}{name}")
        path, found = inside(self.run / folder, name), None
        try:
            found = sha256_of(path)
            self.size += path.stat().st_size
        except FileNotFoundError:
            pass
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the disk and the permissions") from error
        self.files += 1
        self.on_file()
        return found

    def ledger(self) -> None:
        """Compare the files of the ledger."""
        writes: dict[str, list[Record]] = {}
        for record in self.records(MANIFEST):
            writes.setdefault(record["unit"], []).append(record)
        for name, records in writes.items():
            self.findings += _ledger_findings(name, records, self.digest("", name))

    def store(self, store: Store) -> None:
        """Compare the files of all units that are done."""
        for unit, record in _committed(self.records(store.manifest)).items():
            for name, digest in record["files"].items():
                found = self.digest(f"{store.folder}/", name)
                if found != digest:
                    kind: Kind = "damaged" if found else "missing"
                    path = self.run / store.folder / name
                    images = damaged(path) if found and is_packed(record) and path.suffix == ".parquet" else []
                    self.findings.append(Finding(f"{store.folder}/{name}", kind, unit=unit, images=tuple(images)))


def _verify(run: Path, on_file: Callable[[], None]) -> Verification:
    reader = _Reader(run, on_file)
    reader.ledger()
    for store in STORES:
        reader.store(store)
    unlisted, foreign = _beside(run, reader.listed)
    return Verification(reader.files, reader.size, (*reader.findings, *unlisted), foreign)


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
    files = [(finding, identify(finding.file)) for finding in findings]
    for name in {finding.file for finding, file in files if file is not None and file.kind == "manifest"}:
        cut = Manifest(run / name)
        cut.rewrite(cut.examine()[0])
    for store in STORES:  # each manifest is read once, however many files of its units are lost
        lost = {f.unit for f in findings if f.unit is not None and f.file.startswith(f"{store.folder}/")}
        manifest = Manifest(run / store.manifest)
        for unit in [unit for unit in manifest.units() if unit in lost] if lost else ():
            manifest.append({"event": "drop", "unit": unit})
    for finding, file in files:
        if file is None or finding.unit is not None:
            continue
        if file.kind in ("settings", "choice", "derived"):
            _restore(ledger, finding, file)
        elif file.kind in ("unit", "state", "partial"):
            (run / finding.file).unlink(missing_ok=True)


def _restore(ledger: Ledger, finding: Finding, file: File) -> None:
    """Put a file of the ledger right: keep it, write it from the copy in its record, or drop it to be made again."""
    name = finding.file
    path, note, intended = ledger.run / name, ledger.note(name), ledger.intended(name)
    if note is not None and "copy" in note and (finding.kind != "unfinished" or not intended):
        ledger.commit(name, note["copy"].encode(), note)
    elif file.kind == "derived" or finding.lost or not _is_json(path):
        ledger.drop(name, lost=True)
    elif finding.kind == "unlisted" or sha256_of(path) in intended:
        ledger.adopt(name)
    else:  # a kill left it when it was dropped
        ledger.drop(name)


def _ledger_findings(name: str, records: list[dict[str, object]], digest: str | None) -> Iterator[Finding]:
    committed: object = None
    intended: list[object] = []
    for record in records:
        files = record.get("files")
        if record["event"] == "drop":
            committed = None  # a kill may leave the file itself
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


def _beside(run: Path, listed: set[str]) -> tuple[list[Finding], tuple[str, ...]]:
    """What no record names: findings for files of ours, and the names of files and folders that are others'."""
    findings: list[Finding] = []
    foreign: list[str] = []
    owned = {*(store.folder for store in STORES), CLAIMS, REPLICATES}
    for top in sorted(run.iterdir()):
        if top.is_dir() and top.name not in owned:
            if not (top / MANIFEST).is_file():  # a store of another command
                foreign.append(f"{top.name}/")
            continue
        if top.name in (CLAIMS, REPLICATES):
            continue
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            name = path.relative_to(run).as_posix()
            if path.is_dir() or name in listed:
                continue
            file = identify(name)
            if file is None:
                foreign.append(name)
            elif file.kind in ("state", "partial"):
                findings.append(Finding(name, "unfinished"))
            elif file.kind not in ("manifest", "lock"):
                findings.append(Finding(name, "unlisted"))
    return findings, tuple(foreign)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True
