"""What this machine offers: versions, device, disk, locks, memory, caches, weights. Tokens are never shown."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from ..data.problems import aligned
from ..data.sources import default_root
from ..engine import threads
from ..engine.memory import memory
from ..errors import DinvError, how_to_install
from ..generator.checkpoints import MINI, available, check_parts, hash_weights
from ..generator.device import bfloat16_is_fast, resolve_device
from ..train.few_shot.clip_files import MINI_CLIP, WEIGHTS, hash_files

_PACKAGES = (
    *("diffusion-inversion", "torch", "torchvision", "diffusers", "transformers", "datasets", "safetensors"),
    *("numpy", "pillow", "pyarrow", "scipy", "scikit-learn", "timm"),
)
_EXTRAS = {"demo": ("elpv-dataset",), "medmnist": ("medmnist",), "metrics": ("torch-fidelity",)}
_PLACES = ("DINV_DATA", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES")
_SECRETS = ("HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
_MIN_FREE = 2e9  # bytes: a small run with its images and features
_MIN_MEMORY = 3e9  # bytes: the demo's peak with some room
_NETWORK = ("nfs", "cifs", "smb", "fuse", "9p", "lustre", "ceph", "glusterfs")


@dataclass(frozen=True)
class Check:
    """One finding. ok: True, False (something will fail or is slow), or None where there is nothing to judge."""

    name: str
    ok: bool | None
    value: str
    remedy: str = ""


def examine(folder: Path | None = None) -> list[Check]:
    """Examine this machine for a run in `folder` (default: the working folder). Writes and deletes one small file.

    Nothing is downloaded, and no error is raised for what is found: it is a check with ok=False.
    """
    return [
        *_versions(),
        *_device(),
        *_memory(),
        *_disk("run folder", folder or Path.cwd()),
        *_disk("data cache", default_root()),
        *_hub(),
        *_weights(),
        _clip(),
        *_environment(),
    ]


def table(checks: Sequence[Check]) -> str:
    """One aligned line for each check, for a terminal; remedies only where something is wrong."""
    marks = {True: "ok", False: "!!", None: "--"}
    return "\n".join(aligned([(marks[c.ok], c.name, c.value, "" if c.ok else c.remedy) for c in checks], indent=""))


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> Iterator[Check]:
    yield Check("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    texts = [text.split(";")[0].strip() for text in requires("diffusion-inversion") or () if "extra ==" not in text]
    needed = {re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0].lower(): text for text in texts}  # by the whole name
    for package in _PACKAGES:
        found = _installed(package)
        wanted = needed.get(package, package)
        yield Check(package, found is not None, found or "not installed", f"pip install '{wanted}'")
    for extra, packages in _EXTRAS.items():
        missing = [package for package in packages if _installed(package) is None]
        value = f"not installed: {', '.join(missing)}" if missing else "installed"
        yield Check(f"extra {extra}", None if missing else True, value, how_to_install(extra))


def _device() -> Iterator[Check]:
    import torch

    device = resolve_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "processor"
    yield Check("device", True, f"{device.type} ({name})")
    fits = torch.get_num_threads() <= threads.own_cores()
    more = "set OMP_NUM_THREADS to at most the number of cores, or not at all: the number then follows what is free"
    yield Check("threads", fits, threads.explain(), more)
    fast = bfloat16_is_fast(device)
    yield Check("bfloat16", None if not fast else True, "fast" if fast else "emulated: float32 is used")


def _memory() -> Iterator[Check]:
    total, free = memory()
    if free is None:
        yield Check("memory", total >= _MIN_MEMORY, f"{total / 1e9:.1f} GB", "take smaller batches (--batch-size)")
        return
    value = f"{free / 1e9:.1f} GB available of {total / 1e9:.1f}"
    yield Check("memory", free >= _MIN_MEMORY, value, "close other programs or take smaller batches (--batch-size)")


def _disk(name: str, folder: Path) -> Iterator[Check]:
    """Free space and file system, then whether a file can be made durable and locked where `folder` is or would be."""
    place = folder.expanduser().absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    missing = "" if place == folder.expanduser().absolute() else " (does not exist yet)"
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        yield Check(name, False, f"{folder}: {error.strerror}", "choose another folder")
        return
    kind = _file_system(place)
    value = f"{folder}{missing}: {free / 1e9:.1f} GB free, {kind}"
    yield Check(name, free >= _MIN_FREE, value, "free some space or choose another folder")
    if kind.startswith(_NETWORK):
        yield Check(f"{name}: kind", None, f"{kind} is a network file system", "prefer a local disk: locks are weaker")
    for what, trial in (("fsync", _sync), ("flock", _lock)):
        try:
            trial(place)
            yield Check(f"{name}: {what}", True, "works")
        except OSError as error:
            yield Check(
                f"{name}: {what}", False, f"fails: {error.strerror or error}", "choose a folder on another disk"
            )


def _sync(folder: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".dinv-doctor-") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> None:
    """Take a lock, and see that a second one on the same file is refused."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".dinv-doctor-") as first, open(first.name) as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise OSError("a second lock was given: two processes could work in one run folder")


def _file_system(place: Path) -> str:
    """Type of the file system that holds a folder: the deepest mount point above it."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "file system not known"
    real = place.resolve()
    above = [(len(Path(at).parts), kind) for at, kind in mounts if real.is_relative_to(at.replace("\\040", " "))]
    return max(above, default=(0, "file system not known"), key=lambda item: item[0])[1]


def _hub() -> Iterator[Check]:
    from huggingface_hub.constants import HF_HUB_CACHE

    yield from _disk("hub cache", Path(HF_HUB_CACHE))
    try:
        names = sorted(available())
    except (DinvError, OSError, ValueError) as error:
        yield Check("generators", False, f"the hub cache cannot be read: {error}", "hf cache scan")
        return
    yield Check("generators", True, ", ".join(names))


def _weights() -> Iterator[Check]:
    again = "install the package again, or run `dinv pretrain`"
    try:
        check_parts(MINI)
        found = hash_weights(MINI)
    except (DinvError, OSError, ValueError) as error:
        yield Check("mini", False, str(error), again)
        return
    try:
        measured = json.loads((MINI / "figures.json").read_text())["generators"]
        (stated,) = (generator["hash"] for generator in measured if generator["label"] == "mini")
    except (OSError, ValueError, KeyError, TypeError):
        yield Check("mini", None, f"weights {found[:16]}; its card states no hash to compare with")
        return
    value = f"weights {found[:16]}, its card says {stated[:16]}"
    yield Check("mini", found == stated, value, again)


def _clip() -> Check:
    if not (MINI_CLIP / WEIGHTS).is_file():
        return Check("mini-clip", None, "not in this package; --clip takes a folder or a hub id")
    try:
        found, card = hash_files(MINI_CLIP), (MINI_CLIP / "README.md").read_text()
    except (OSError, ValueError) as error:
        return Check("mini-clip", False, str(error), "install the package again")
    stated = found in card
    return Check(
        "mini-clip",
        stated,
        f"files {found[:16]}, {'as' if stated else 'not what'} its card says",
        "install the package again",
    )


def _environment() -> Iterator[Check]:
    for name in _PLACES:
        yield Check(f"${name}", None, os.environ.get(name, "not set"))
    for name in _SECRETS:
        yield Check(f"${name}", None, "set" if os.environ.get(name) else "not set")
