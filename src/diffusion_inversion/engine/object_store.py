"""A run that machines without a common folder share, each in a folder of its own, through an object store.

Everything rests on one operation, an object that is made where none of its name is (fsspec's `mode="create"`):

- `files/<sha256>` what units made, by content, so that two writers never mix;
- `units/<folder>/<unit>` the commit record of a unit, the first of which wins;
- `claims/<folder>/<unit>/<number>` a lease. The highest number has the unit, and its owner writes the object anew as a
  sign of life; empty it is given back. Whoever sees no such sign for `EXPIRY` seconds of its own clock, the only one it
  trusts, makes the next number. No lease is deleted, so the one that lost it sees so;
- `settings/<name>` what all must agree on.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import ConfigMismatchError, DataError, DiskError, UsageError, how_to_install
from .lock import TakenOverError, briefly
from .manifest import Manifest, Record, line_of, parse_line
from .redaction import redact
from .store import commit_many, guarded
from .untrusted import inside, shown

BEAT, EXPIRY = 10.0, 60.0  # seconds between two signs of life; without one after which a lease is taken over
POLL = 2.0  # seconds between two looks at units that others hold
_TRIES, _PAUSE = 3, 0.2  # a store may refuse one of two writes at the same moment; seconds
_TRANSFERS = 8  # files at once


class ObjectStore:
    """Objects below an fsspec URL. Raises UsageError where it cannot be opened, or does not make objects only once."""

    def __init__(self, url: str) -> None:
        """Look whether the store does what is needed; it keeps one object of that, `probe`."""
        import fsspec
        from fsspec.core import url_to_fs

        self.url = shown(redact(url))
        if "://" not in url:
            raise UsageError(f"--store {self.url}: no URL; give s3://BUCKET/PREFIX, gs://... or az://...")
        try:
            # Others write here too, so what was listed once counts for nothing.
            self._files, root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"--store {self.url}: cannot be opened ({_cause(error)}); for s3:// "
                f"{how_to_install('s3')}, for gs:// pip install gcsfs, for az:// adlfs"
            ) from error
        self._root = root.rstrip("/")
        self._seen: dict[str, dict[str, Record]] = {}  # folder => unit => its record, which never changes
        self._watched: dict[str, tuple[bytes, float]] = {}  # lease => what it said, since when
        # fsspec's own way, for file systems without one, is to look first and then to write.
        looks_first = getattr(self._files.pipe_file, "__func__", None) is fsspec.AbstractFileSystem.pipe_file
        if not looks_first:
            self.create("probe", _sign_of_life())  # where there is none
        if looks_first or self.create("probe", _sign_of_life()):
            raise UsageError(
                f"--store {self.url}: does not refuse to write an object that is there (conditional put), so two "
                "workers could do the same. Choose a store that does, such as S3, GCS or Azure; a folder that all of "
                "them see is given as --out, with --join."
            )

    @contextmanager
    def _used(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each client has errors of its own
            raise DiskError(
                f"{self.url}: cannot be used ({_cause(error)}); what was committed here is kept. Look at the network "
                "and the credentials, then run the same command again."
            ) from error

    def create(self, key: str, data: bytes) -> bool:
        """Make an object unless there is one; return whether it now holds `data`. Raises DiskError."""
        for left in reversed(range(_TRIES)):
            try:
                self._files.pipe_file(f"{self._root}/{key}", data, mode="create")
                return True
            except Exception as error:  # FileExistsError, or whatever a client makes of the store's answer
                found = self.read(key)
                if found is not None:
                    return found == data  # ours, where the answer to an earlier try was lost
                if not left:
                    with self._used():
                        raise error
            time.sleep(_PAUSE)
        raise AssertionError

    def put(self, key: str, data: bytes) -> None:
        """Write an object, whatever was there. Raises DiskError."""
        with self._used():
            self._files.pipe_file(f"{self._root}/{key}", data)

    def read(self, key: str) -> bytes | None:
        """The content of an object; None where there is none. Raises DiskError."""
        with self._used():
            try:
                return bytes(self._files.cat_file(f"{self._root}/{key}"))
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        """Names of the objects in `folder`. Raises DiskError."""
        home = f"{self._root}/{folder}"
        with self._used():
            found = [path.rpartition("/") for path in self._files.find(home)]
        return [name for above, _, name in found if above == home]  # s3fs may find an empty folder in itself

    def records(self, folder: str, manifest: Manifest) -> dict[str, Record]:
        """The record of every unit that is done, by unit. Raises DataError for one that is damaged."""
        seen = self._seen.setdefault(folder, {})
        new = [name for name in self.names(f"units/{folder}") if name not in seen]
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            for unit, line in zip(new, pool.map(lambda name: self.read(f"units/{folder}/{name}"), new), strict=True):
                where = f"{self.url}/units/{folder}/{shown(unit)}"
                record = None if line is None else parse_line(line)
                if record is None or record.get("unit") != unit or record["event"] != "commit":
                    raise DataError(f"{where}: not a record of this unit. Choose another store, or an empty prefix.")
                manifest.check(record, where)
                seen[unit] = record
        return dict(seen)

    def publish(self, folder: str, manifest: Manifest, record: Record) -> None:
        """Give a unit that was committed here to the others: its files, then its record unless there is one."""
        home = manifest.path.parent

        def send(name: str, digest: str) -> None:
            data = inside(home, name).read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise DataError(f"{home / name}: changed since it was written. `dinv repair {home}` makes it again.")
            if not self.create(f"files/{digest}", data):
                raise DataError(
                    f"{self.url}/files/{digest}: damaged. Delete it there, then run the same command again."
                )

        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(lambda file: send(*file), record["files"].items()))
        self.create(f"units/{folder}/{record['unit']}", line_of(record))

    def fetch(self, manifest: Manifest, record: Record) -> None:
        """Commit here what others did. Raises DataError where a file of it is not what was written."""

        def receive(digest: str) -> bytes:
            data = self.read(f"files/{digest}")
            if data is None or hashlib.sha256(data).hexdigest() != digest:
                raise DataError(f"{self.url}/files/{shown(digest)}: missing or damaged. Choose an empty prefix.")
            return data

        home, files = manifest.path.parent, record["files"]
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            contents = list(pool.map(receive, files.values()))
        commit_many({inside(home, name): data for name, data in zip(files, contents, strict=True)})
        manifest.append(record)

    def take(self, claim: str) -> str | None:
        """Make the next lease of a unit and return its key; None where somebody has it who lives, or was faster."""
        last = max((int(name) for name in self.names(claim) if name.isdecimal()), default=0)
        if last:
            held, said = f"{claim}/{last}", self.read(f"{claim}/{last}") or b""
            before, since = self._watched.get(held, (b"", 0.0))
            if said and said != before:
                self._watched[held] = (said, time.monotonic())
                return None
            if said and time.monotonic() - since < EXPIRY:
                return None
        key = f"{claim}/{last + 1}"
        return key if self.create(key, _sign_of_life()) else None


_open: dict[Path, ObjectStore] = {}  # run folder => what it is shared through


@contextmanager
def shared_through(run: Path, store: ObjectStore | None) -> Iterator[None]:
    """Share the units of a run folder, and of folders inside it, through a store until the block ends."""
    if store is not None:
        _open[run.resolve()] = store
    try:
        yield
    finally:
        _open.pop(run.resolve(), None)


def _place(folder: Path) -> tuple[ObjectStore, str] | None:
    """The store that a folder is shared through, and the folder's name there."""
    whole = folder.resolve()
    run = next((one for one in (whole, *whole.parents) if one in _open), None)
    return None if run is None else (_open[run], ".".join(["run", *whole.relative_to(run).parts]))


def is_elsewhere(folder: Path) -> bool:
    """Whether others work on the run of a folder in folders of their own."""
    return _place(folder) is not None


def agreed(folder: Path, name: str, content: Mapping[str, Any]) -> Any:
    """What the first of all who share a run said of `name`, JSON data: `content`, where this is the first."""
    place = _place(folder)
    if place is None:
        return content
    store, home = place
    key, data = f"settings/{home}/{name}", json.dumps(content, allow_nan=False).encode()
    return content if store.create(key, data) else json.loads(store.read(key) or b"null")


@contextmanager
def lease(folder: Path, unit: str) -> Iterator[bool]:
    """Hold a unit of the manifest in `folder` against workers elsewhere; yield whether none of them has it.

    Where it is taken over in spite of signs of life that did not arrive, what the block commits from then on is refused
    by TakenOverError.
    """
    place = _place(folder)
    if place is None:
        yield True
        return
    store, home = place
    key = store.take(f"claims/{home}/{unit}")
    if key is None:
        yield False
        return
    claim, _, number = key.rpartition("/")

    def require() -> None:
        if store.read(f"{claim}/{int(number) + 1}") is not None:
            raise TakenOverError(
                f"{store.url}/{claim}: this lease was taken over, because no sign of life arrived for {EXPIRY:.0f} s. "
                "What was not committed of it is left to its new owner."
            )

    ended = threading.Event()

    def live() -> None:
        while not ended.wait(BEAT):
            with suppress(DiskError):
                store.put(key, _sign_of_life())

    beating = threading.Thread(target=live, daemon=True)
    beating.start()
    try:
        with guarded(require):
            yield True
    finally:
        ended.set()
        beating.join()
        with suppress(DiskError):
            store.put(key, b"")


def exchange(run: Path, manifest: Manifest, jobs: Sequence[str]) -> None:
    """Give to the store the units of these jobs that it lacks, and commit here those that it has.

    The record that came first counts: where a unit was done here with other bits, it is dropped and one line says so.
    Raises ConfigMismatchError where others cut the jobs into other units, DataError for what is damaged.
    """
    place = _place(manifest.path.parent)
    if place is None:
        return
    (store, home), wanted = place, set(jobs)
    with briefly(run, f"{home}-exchange"):
        theirs = store.records(home, manifest)
        mine = {unit: one for unit, one in manifest.units().items() if not wanted.isdisjoint(one["ids"])}
        for unit in mine.keys() - theirs.keys():
            store.publish(home, manifest, mine[unit])
        if mine.keys() - theirs.keys():
            theirs = store.records(home, manifest)
        for unit, record in theirs.items():
            if wanted.isdisjoint(record["ids"]) or (unit in mine and _facts(mine[unit]) == _facts(record)):
                continue
            others = {job for name, one in mine.items() if name != unit for job in one["ids"]}
            if not wanted.issuperset(record["ids"]) or not others.isdisjoint(record["ids"]):
                raise ConfigMismatchError(
                    f"{store.url}: others share this run with other images or batches. Give all of them the same "
                    "command, or choose another prefix."
                )
            if unit in mine:
                print(f"warning: unit {unit}: done elsewhere first with other bits; those are kept", file=sys.stderr)
                manifest.append({"event": "drop", "unit": unit})
            store.fetch(manifest, record)


def _facts(record: Record) -> bytes:
    """What two records of a unit have in common: all but the time, as JSON has it (a tuple is a list)."""
    return line_of({key: value for key, value in record.items() if key != "seconds"})


def _sign_of_life() -> bytes:
    """Never the same twice."""
    return secrets.token_hex(16).encode()


def _cause(error: BaseException) -> str:
    return shown(redact(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"))
