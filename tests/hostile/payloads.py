"""Files that run code when a careless reader opens them: each makes the file `marker`, and nothing else."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Bomb:
    """Unpickling it opens `marker` for writing."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.marker, "w")


def _torch(bomb: Any, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(bomb, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _torch_tar(bomb: Any) -> bytes:
    """The format of torch before 0.1.10, which `torch.load` still reads."""
    members = {"sys_info": [{}], "storages": [0, []], "tensors": [0], "pickle": [bomb]}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, values in members.items():
            data = b"".join(pickle.dumps(value, 2) for value in values)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _numpy(bomb: Any, archive: bool) -> bytes:
    buffer = io.BytesIO()
    array = np.array([bomb], dtype=object)
    if archive:
        np.savez(buffer, train_images=array, train_labels=array, test_images=array, test_labels=array)
    else:
        np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _joblib(bomb: Any) -> bytes:
    import joblib

    buffer = io.BytesIO()
    joblib.dump({"model": bomb}, buffer, compress=3)
    return buffer.getvalue()


def _by_hand(marker: Path) -> bytes:
    """Protocol 0 without a class: the opcodes call builtins.open."""
    return f"cbuiltins\nopen\n(V{marker}\nVw\ntR.".encode()


def _instance(marker: Path) -> bytes:
    """The old INST opcode, which scanners for REDUCE overlook."""
    return f"(V{marker}\nVw\nibuiltins\nopen\n.".encode()


def _zipped(bomb: Any) -> bytes:
    """A zip archive whose only member is a pickle called data.pkl, at no place torch writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(bomb, 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def _joblib_load(data: bytes) -> Any:
    import joblib

    return joblib.load(io.BytesIO(data))


def _torch_load(data: bytes) -> Any:
    with tempfile.NamedTemporaryFile() as file:  # a tar archive is recognised in a real file alone
        file.write(data)
        file.flush()
        return torch.load(file.name, weights_only=False)


def _numpy_load(data: bytes) -> Any:
    loaded = np.load(io.BytesIO(data), allow_pickle=True)
    return loaded["train_images"] if isinstance(loaded, np.lib.npyio.NpzFile) else loaded


# name: (bytes for a marker, the careless reader that it is meant for)
PAYLOADS: dict[str, tuple[Callable[[Path], bytes], Callable[[bytes], Any]]] = {
    **{
        f"protocol-{version}": (lambda marker, v=version: pickle.dumps(Bomb(marker), v), pickle.loads)
        for version in range(6)
    },
    "opcodes": (_by_hand, pickle.loads),
    "inst": (_instance, pickle.loads),
    "gzip": (
        lambda marker: gzip.compress(pickle.dumps(Bomb(marker))),
        lambda data: pickle.loads(gzip.decompress(data)),
    ),
    "torch-zip": (lambda marker: _torch({"weight": Bomb(marker)}, True), _torch_load),
    "torch-legacy": (lambda marker: _torch({"weight": Bomb(marker)}, False), _torch_load),
    "torch-tar": (lambda marker: _torch_tar(Bomb(marker)), _torch_load),
    "zip": (lambda marker: _zipped(Bomb(marker)), _torch_load),
    "npy": (lambda marker: _numpy(Bomb(marker), False), _numpy_load),
    "npz": (lambda marker: _numpy(Bomb(marker), True), _numpy_load),
    "joblib": (lambda marker: _joblib(Bomb(marker)), _joblib_load),
}


def payload(name: str, marker: Path) -> bytes:
    return PAYLOADS[name][0](marker)
