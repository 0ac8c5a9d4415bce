"""The doctor says what is there, what is missing, and never what a token is."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from diffusion_inversion.run import doctor
from diffusion_inversion.run.doctor import Check, examine, table


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    return found


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINV_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_a_healthy_machine(apart: Path) -> None:
    import torch

    checks = by_name(examine(apart / "runs" / "new"))
    assert checks["torch"].value == torch.__version__.split("+")[0] or checks["torch"].value == torch.__version__
    for name in ("python", "pillow", "device", "run folder: fsync", "run folder: flock", "data cache: fsync"):
        assert checks[name].ok, checks[name]
    assert "mini" in checks["generators"].value and checks["mini"].ok
    assert "does not exist yet" in checks["run folder"].value
    assert list(apart.iterdir()) == []  # nothing is left behind, nothing is made
    assert all(check.remedy for check in checks.values() if check.ok is False)


def test_what_is_missing_is_asked_for_by_its_own_name(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch, whose name begins that of torchvision; the extra `metrics`, which is torch-fidelity."""
    from importlib import metadata

    monkeypatch.setattr(doctor, "_installed", lambda package: None)
    monkeypatch.setattr(
        doctor, "requires", lambda name: ["torchvision>=0.22", "torch>=2.7", "timm>=1", "x; extra == 'y'"]
    )
    checks = by_name(list(doctor._versions()))
    assert checks["torch"].remedy == "pip install 'torch>=2.7'"
    assert checks["torchvision"].remedy == "pip install 'torchvision>=0.22'"
    needed = metadata.requires("diffusion-inversion") or []
    for extra, packages in doctor._EXTRAS.items():
        of_extra = [text for text in needed if f'extra == "{extra}"' in text.replace("'", '"')]
        for package in packages:
            assert any(text.startswith(package) for text in of_extra), (extra, package)


def test_tokens_are_never_shown(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_topsecret")
    monkeypatch.setenv("HF_ENDPOINT", "https://user:topsecret@mirror.invalid")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checks = examine(apart)
    assert by_name(checks)["$HF_TOKEN"].value == "set"
    assert by_name(checks)["$HF_HUB_OFFLINE"].value == "1"
    assert "topsecret" not in table(checks)
    monkeypatch.delenv("HF_TOKEN")
    assert by_name(examine(apart))["$HF_TOKEN"].value == "not set"


def test_a_disk_that_cannot_sync_or_lock_is_found(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        assert by_name(examine(apart))["run folder: fsync"].ok is False
    with monkeypatch.context() as patch:  # a file system whose locks do nothing
        patch.setattr(fcntl, "flock", lambda *arguments: None)
        check = by_name(examine(apart))["run folder: flock"]
    assert check.ok is False and "second lock" in check.value


def test_a_damaged_weight_file_is_found(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    copy = apart / "mini"
    shutil.copytree(doctor.MINI, copy)
    monkeypatch.setattr(doctor, "MINI", copy)
    weights = copy / "vae/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert by_name(examine(apart))["mini"].ok is False
    weights.unlink()
    assert "safetensors" in by_name(examine(apart))["mini"].value


def test_a_clip_that_is_not_what_its_card_says_is_found(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion_inversion.train.few_shot.clip_files import hash_files

    folder = apart / "mini-clip"
    monkeypatch.setattr(doctor, "MINI_CLIP", folder)
    assert by_name(examine(apart))["mini-clip"].ok is None
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes(name.encode())
    assert by_name(examine(apart))["mini-clip"].ok is False  # no card
    (folder / "README.md").write_text(f"sha256 of its files: `{hash_files(folder)}`")
    assert by_name(examine(apart))["mini-clip"].ok is True
    (folder / "config.json").write_bytes(b"another")
    check = by_name(examine(apart))["mini-clip"]
    assert check.ok is False and "not what its card says" in check.value


def test_missing_packages_are_named(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name in ("timm", "medmnist") else installed(name))
    checks = by_name(examine(apart))
    assert checks["timm"].ok is False and "pip install 'timm" in checks["timm"].remedy
    assert checks["extra medmnist"].ok is None and "[medmnist]" in checks["extra medmnist"].remedy


def test_table_marks_what_is_wrong() -> None:
    text = table([Check("a", True, "fine"), Check("b", False, "bad\x1b[1m", "mend it"), Check("c", None, "unknown")])
    assert text.splitlines() == ["ok  a  fine", r"!!  b  bad\x1b[1m  mend it", "--  c  unknown"]
