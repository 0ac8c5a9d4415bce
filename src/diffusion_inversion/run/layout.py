"""Every file and folder of a run folder, once: its name, the stage that makes it, and what kind of file it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ..data.forgotten import FORGOTTEN_FILE
from ..data.naming import DATA_FILE as DATA_FILE
from ..data.naming import METADATA
from ..engine.frozen_settings import settings_file
from ..engine.lock import CLAIMS, LOCK_NAME
from ..engine.manifest import NAME as MANIFEST
from ..engine.state import STATE_FILE
from ..engine.store import PARTIAL_PREFIX
from ..invert.embeddings import FOLDER as EMBEDDINGS
from ..sample.synthetic import FOLDER as SYNTHETIC
from ..train.choosing import FOLDER as TUNING
from ..train.choosing import SAMPLE_FILE, SCRATCH, TRAIN_FILE
from ..train.store import FOLDER as CLASSIFIERS

# Names that files below have in the room that writes them stay there; these are written here, in run/.
GENERATOR_FILE = "generator.json"
RECONSTRUCTIONS_FILE, LIKENESS_FILE = "reconstructions.safetensors", "likeness.json"
ATTRIBUTES_FILE = "attributes.json"  # the attribute that subgroups are shown of, and what it says of the images
BALANCE_FILE = "balance.json"  # counts of real and synthetic images where stage 2 evens them
COARSENESS_FILE = "coarseness.json"
STRENGTHS = "strengths"  # how much noise each vector bears (run/strengths.py)
GROWTH_FILE, GROWTH, GROWN = "growth.json", "growth", "grown"  # rounds, candidates, images (run/grow.py)
ONLINE = "online"  # what is drawn while classifiers train (online.py)
STRIPS_PICTURE = "strips.png"  # what more interpolation, and more noise, make of some vectors
FIDELITY_FILE, REDRAWN = "fidelity.json", "redrawn"  # what a judge says of the images; a folder of what was drawn again
TIME_LIMIT_FILE = "time-limit.json"  # what was asked for, and what was cut of it (plan/time_limit.py)
RETRIEVAL_FILE = "retrieval.json"  # what was found in a pool, and what was left out
ADOPTION_FILE = "adoption.json"  # what was adopted, for which images, and what was left out
AUDIT_FILE, AUDIT_PICTURE = "audit.json", "audit.png"  # copies of training images, and the pairs that are nearest
SALT_FILE = "export-salt.json"  # hashes ids of sources in what leaves the run; part of no export
LOG_FILE = "log.json"  # the id that the run's logs have too (run/logs.py)
MEMBERSHIP_FILE = "membership.json"  # how well the images that a run was made from are told from others
RUN_FILE, REPORT_FILE = "run.json", "report.html"
METADATA_FILE = f"{SYNTHETIC}/{METADATA}"
REPLICATES = "replicates"
_FRACTION_FILE = "real_fraction.json"  # what earlier versions chose, with accuracies of images in it

Stage = Literal["images", "invert", "sample", "train", "report", "forget", "every"]
ORDER: tuple[Stage, ...] = ("images", "invert", "sample", "train", "report")
# settings: what was asked for, which nothing can make again. choice: made once by a stage, and kept like a setting.
# derived: made again by its stage from what is there. These three lie in the ledger.
# manifest: the list of what is committed. unit: one file of a unit of work, listed by a manifest.
# state, partial: a unit or a file that is not done, which the next command goes on with or clears up.
# lock: who works here.
Kind = Literal["settings", "choice", "derived", "manifest", "unit", "state", "partial", "lock"]


@dataclass(frozen=True)
class File:
    """One file, by its name below the run folder, and the stage that makes it."""

    name: str
    stage: Stage
    kind: Kind


@dataclass(frozen=True)
class Store:
    """A folder whose manifest lists units of work, and the names that their files have in it."""

    folder: str
    stage: Stage
    units: re.Pattern[str]
    scratch: str = ""  # a folder in it whose files serve units that are not done

    @property
    def manifest(self) -> str:
        """The name of its manifest below the run folder."""
        return f"{self.folder}/{MANIFEST}"

    def kind_of(self, name: str) -> Kind | None:
        """What a name in the folder is; None where no stage gives it."""
        if name == MANIFEST:
            return "manifest"
        if STATE_FILE.fullmatch(name):
            return "state"
        if self.scratch and name.startswith(f"{self.scratch}/"):
            return "partial"
        return "unit" if self.units.fullmatch(name) else None


_IMAGES = re.compile(r"[^/]+/[^/]+-[0-9a-f]{8}-v\d{3,}\.png|unit-[0-9a-f]{16}\.parquet")
STORES = (
    Store(EMBEDDINGS, "invert", re.compile(r"shard-[0-9a-f]{16}\.safetensors")),
    Store(SYNTHETIC, "sample", _IMAGES),
    Store(STRENGTHS, "sample", re.compile(r"(?!)")),  # its units are records alone
    Store(GROWTH, "sample", re.compile(r"(?!)")),
    Store(GROWN, "sample", _IMAGES),
    Store(REDRAWN, "train", _IMAGES),
    Store(ONLINE, "train", _IMAGES),
    Store(CLASSIFIERS, "train", re.compile(r"[a-z+-]+-seed-?\d+-[0-9a-f]{8}\.safetensors")),
    Store(TUNING, "train", re.compile(r"(?!)"), SCRATCH),  # so are its
)
# The ledger's files. In a stage the settings come last: a kill while it is taken back leaves nothing that others fit.
LEDGER = (
    File(ATTRIBUTES_FILE, "images", "derived"),
    File(DATA_FILE, "images", "settings"),
    File(FORGOTTEN_FILE, "forget", "settings"),
    File(TIME_LIMIT_FILE, "images", "settings"),
    File(SALT_FILE, "images", "settings"),
    File(LOG_FILE, "images", "settings"),
    File(COARSENESS_FILE, "invert", "derived"),
    File(GENERATOR_FILE, "invert", "settings"),
    File(settings_file("invert"), "invert", "settings"),
    File(METADATA_FILE, "sample", "derived"),
    File(RECONSTRUCTIONS_FILE, "sample", "derived"),
    File(LIKENESS_FILE, "sample", "derived"),
    File(STRIPS_PICTURE, "sample", "derived"),
    File(RETRIEVAL_FILE, "sample", "derived"),
    File(ADOPTION_FILE, "sample", "derived"),
    File(AUDIT_FILE, "sample", "derived"),
    File(AUDIT_PICTURE, "sample", "derived"),
    File(BALANCE_FILE, "sample", "derived"),
    File(GROWTH_FILE, "sample", "choice"),
    File(SAMPLE_FILE, "sample", "choice"),
    File(settings_file("grow"), "sample", "settings"),
    File(settings_file("sample"), "sample", "settings"),
    File(_FRACTION_FILE, "train", "choice"),
    File(TRAIN_FILE, "train", "choice"),
    File(FIDELITY_FILE, "train", "derived"),
    File(MEMBERSHIP_FILE, "train", "derived"),
    File(settings_file("filter"), "train", "settings"),
    File(settings_file("copies"), "train", "settings"),
    File(settings_file("train"), "train", "settings"),
    File(RUN_FILE, "report", "derived"),
    File(REPORT_FILE, "report", "derived"),
)
_FILES = {file.name: file for file in (*LEDGER, File(MANIFEST, "every", "manifest"), File(LOCK_NAME, "every", "lock"))}
_STORES = {store.folder: store for store in STORES}


def stages_from(stage: Stage) -> tuple[Stage, ...]:
    """A stage and those that work on what it made, in order."""
    return ORDER[ORDER.index(stage) :]


def stores_of(stage: Stage) -> tuple[Store, ...]:
    """The folders of units that a stage fills."""
    return tuple(one for one in STORES if one.stage == stage)


def ledger_files(*kinds: Kind, stage: Stage | None = None) -> tuple[str, ...]:
    """The ledger's files of these kinds, of all by default, in the order of the stages; of one stage where given."""
    return tuple(
        file.name for file in LEDGER if (not kinds or file.kind in kinds) and (stage is None or file.stage == stage)
    )


def identify(name: str) -> File | None:
    """What a file of a run folder is, by its name below it; None for a file that no stage makes.

    A replicate is a run folder below the run: its files are what they are in a run.
    """
    folder, _, rest = name.partition("/")
    if folder == REPLICATES:
        number, _, below = rest.partition("/")
        found = identify(below) if number.isdecimal() else None
        return None if found is None else File(name, found.stage, found.kind)
    if name in _FILES:
        return _FILES[name]
    if folder == CLAIMS:
        return File(name, "every", "lock")
    if name.rpartition("/")[2].startswith(PARTIAL_PREFIX):
        return File(name, "every", "partial")
    kind = _STORES[folder].kind_of(rest) if folder in _STORES else None
    return None if kind is None else File(name, _STORES[folder].stage, kind)
