"""What a later cell's jobs would refuse is refused before the first job of an earlier one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import Bench
from image_files import class_folders
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sweeps import sweep, write_sweep

from diffusion_inversion.engine import disk
from diffusion_inversion.errors import DinvError, DiskError
from diffusion_inversion.run.room import png_bytes, vector_bytes
from diffusion_inversion.sweep import jobs, read_plan, run_sweep
from diffusion_inversion.sweep.plan import cells

ARMS = ("real", "real+synthetic")


def refused(bench: Bench, folder: Path, case: dict[str, Any], data: Path | None = None) -> str:
    """What a sweep says whose first cell is sound and whose second is this; nothing was computed then."""
    set_to = ", ".join(f'"{key}" = {json.dumps(value)}' for key, value in case.items())
    cases = f'[[cases]]\nname = "sound"\nset = {{}}\n[[cases]]\nname = "other"\nset = {{ {set_to} }}\n'
    plan = read_plan(write_sweep(folder / "early.toml", bench, cases, arms=ARMS, data=data))
    with pytest.raises(DinvError) as error:
        run_sweep(plan, folder / "out", bench.generator(), command="dinv sweep early.toml")
    assert not (folder / "out").exists()
    return str(error.value)


PROMPTS = {"prompts.prompts": "a photo of a {class}", "prompts.inference_steps": 1}


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ({"train.seeds": [0, 0]}, "a repeated seed"),
        ({"train.seeds": [0, 0], **PROMPTS}, "a repeated seed"),
        ({"train.architecture": "timm:densenet121"}, r"timm:densenet121: takes no images of 16 px"),
        ({"train.architecture": "timm:densenet121", **PROMPTS}, r"timm:densenet121: takes no images of 16 px"),
        ({"data.data": "nowhere"}, "nowhere"),
    ],
)
def test_settings_of_training_and_data_are_looked_at(
    bench: Bench, tmp_path: Path, case: dict[str, Any], said: str
) -> None:
    assert re.search(said, refused(bench, tmp_path, case))


@pytest.mark.parametrize("case", [{"sample.balance": "sex"}, {"run.tune": ["balance=sex"]}])
def test_what_is_to_be_evened_is_known(bench: Bench, tmp_path: Path, case: dict[str, Any]) -> None:
    assert "sex" in refused(bench, tmp_path, case)


def test_images_are_enough_to_choose_on(bench: Bench, tmp_path: Path) -> None:
    for part, count in (("train", 1), ("test", 3)):
        class_folders(tmp_path / "data" / part, {"cat": count, "dog": count})
    said = refused(bench, tmp_path, {"train.real_fraction": "auto"}, tmp_path / "data")
    assert "0 of 2 images to validate on" in said


def test_classifiers_of_an_earlier_version_are_refused_with_advice_that_works(bench: Bench, tmp_path: Path) -> None:
    """Files of earlier versions have no form (train/architectures.py)."""
    cases = '[[cases]]\nname = "old"\nset = { "autoencode.test" = 16, "train.architecture" = "shufflenetv2" }\n'
    file, out = write_sweep(tmp_path / "early.toml", bench, cases), tmp_path / "out"
    assert sweep(file, out).exit_code == 0
    before = json.loads((out / "early.json").read_text())["rows"]
    (path,) = out.glob("classifiers/*/classifiers/*.safetensors")
    with safe_open(path, "pt") as opened:
        header = json.loads(opened.metadata()["classifier"])
    assert header.pop("form") == 2
    save_file(load_file(path), path, metadata={"classifier": json.dumps(header)})
    file.write_text(file.read_text() + ('[[cases]]\nname = "new"\nset = { "sample.noise_strength" = 0.3 }\n'))
    refused = sweep(file, out)
    assert refused.exit_code == 5, refused.output
    assert "another form of shufflenetv2 at 16 px" in refused.stderr and "1 of" not in refused.stderr, "before any job"
    (said,) = re.findall(r"Delete (.+) in .+, whose vectors and images stay, or give another --out\.", refused.stderr)
    for name in said.split(" and "):
        shutil.rmtree(out / name)
    again = sweep(file, out)
    assert again.exit_code == 0 and "vectors:" not in again.stderr, again.output
    assert json.loads((out / "early.json").read_text())["rows"][0]["accuracies"] == before[0]["accuracies"]
    assert len(list((out / "results" / "tests").iterdir())) == 1


@pytest.mark.parametrize(
    ("grid", "images"), [('"sample.variants" = [1, 3]', 3 * 12), ('"sample.seed" = [0, 1]', 4 * 12)]
)
def test_room_for_all_vectors_and_images_is_there_before_the_first(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: str, images: int
) -> None:
    """The system's own call says how much is free. What is there already needs no room again."""
    file, out = write_sweep(tmp_path / "early.toml", bench, f"[grid]\n{grid}\n"), tmp_path / "out"
    (cell, _), spare = cells(read_plan(file)), jobs.SPARE_BYTES
    needed = 12 * vector_bytes(bench.generator(), cell.invert) + images * png_bytes(16)

    def free(size: int) -> None:
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))

    free(spare + needed - 1)
    refused = sweep(file, out)
    assert refused.exit_code == DiskError.exit_code, refused.output
    assert "the vectors, images and results of" in refused.stderr and not (out / "results").exists()
    monkeypatch.undo()
    assert sweep(file, out).exit_code == 0
    shutil.rmtree(out / "results" / "classifiers")
    free(spare)
    assert sweep(file, out).exit_code == 0
