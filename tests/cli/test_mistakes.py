"""What a new user types wrong, and what a command that goes on says was there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import dinv
from cuts import stop_once
from harness import Bench

from diffusion_inversion.engine import faults, state
from diffusion_inversion.run.place import default_folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.build(tmp_path_factory.mktemp("bench"))


def small(bench: Bench) -> list[object]:
    return [
        "--generator", bench.checkpoint, "--dtype", "float32", "--init", "random", "--steps", 2, "--variants", 2,
        "--inference-steps", 2, "--train-steps", 3, "--train-batch-size", 4, "--seeds", "0,1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["run", "digits", "--setps", "3"], "No such option: --setps"),
        (["run"], "Missing argument"),
        (["bench", "real-siez"], "No such command 'real-siez'"),
    ],
)
def test_what_cannot_be_read_is_said_in_json_too(arguments: list[str], said: str) -> None:
    done = dinv(*arguments, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == found["exit_code"] == 2 and found["ok"] is False and said in found["error"]
    plain = dinv(*arguments)
    assert plain.exit_code == 2 and plain.stdout == "" and said in plain.stderr


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["rnu"], "Did you mean 'run'?"),
        (["run", "digits", "--setps", "3"], "--steps"),
        (["run", "digits", "--preset", "papre"], "did you mean paper?"),
        (["run", "digits", "--scheduler", "dmp++"], "did you mean dpm++?"),
        (["run", "digits", "--architecture", "resnet21"], "did you mean resnet20?"),
        (["run", "digit"], "Did you mean digits?"),
    ],
)
def test_the_nearest_name_is_named(arguments: list[str], near: str) -> None:
    done = dinv(*arguments)
    assert done.exit_code == 2 and near in done.output


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("digits", "digits"),
        ("pets/train", "pets"),
        ("pets/images/Train", "pets"),
        ("pets/train.parquet", "pets"),
        ("pets.parquet", "pets"),
        ("hf:someone/pets", "pets"),
        ("/train", "run"),
        ("training-cats", "training-cats"),
    ],
)
def test_a_run_is_called_after_the_data_set_not_its_part(data: str, name: str) -> None:
    assert default_folder(data) == Path("runs") / name


def test_no_run_is_written_among_images_or_files_of_others(bench: Bench, tmp_path: Path) -> None:
    data = shutil.copytree(bench.data, tmp_path / "data")
    for command in ("run", "invert"):
        inside = dinv(command, data, "--out", data / "train" / "run")
        assert inside.exit_code == 2 and "lies inside the images of" in inside.stderr
        foreign = dinv(command, data, "--out", tmp_path)
        assert foreign.exit_code == 2 and "holds files of others (data) and no run" in foreign.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    assert sorted(path.name for path in (data / "train").iterdir()) == ["cat", "dog"]


RUN_COMMANDS: list[list[object]] = [
    ["sample"], ["train"], ["verify"], ["repair"], ["status"], ["strips"], ["grow", "--images", 3], ["membership"],
    ["forget", "--changed"], ["export", "--to", "parquet", "--out", "x"], ["push", "me/x", "--out", "x"],
]  # fmt: skip


@pytest.mark.parametrize("command", RUN_COMMANDS, ids=lambda command: command[0])
def test_a_folder_of_images_is_no_run_and_nothing_is_written_there(
    bench: Bench, tmp_path: Path, command: list[object]
) -> None:
    data = shutil.copytree(bench.data, tmp_path / "data")
    done = dinv(command[0], data, *command[1:])
    assert done.exit_code == 2 and "holds files of others (test, train) and no run; give the --out of" in done.output
    assert {path.name for path in data.iterdir()} == {"train", "test"}


@pytest.mark.parametrize("option", ["DATA", "--test"])
def test_a_run_is_no_folder_of_images(bench: Bench, tmp_path: Path, option: str) -> None:
    run = tmp_path / "runs" / "mine"
    (run / "synthetic").mkdir(parents=True)
    (run / "data.json").write_text("{}")
    data = [run] if option == "DATA" else [bench.data, "--test", run]
    for command in (["run"], ["run", "--out", tmp_path / "new"], ["inspect"]):
        done = dinv(command[0], *data, *command[1:])
        assert done.exit_code == 2, done.output
        assert f"{run}: a run folder, no images; give {run / 'synthetic'} for those that it drew" in done.stderr


def test_a_test_folder_without_images_is_named(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = dinv("run", bench.data, "--test", tmp_path / "empty", "--out", tmp_path / "run")
    assert done.exit_code == 4 and "empty: no test images; give --test a folder of class folders" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--generator", "my-sd/"], "generator 'my-sd/': no such folder, and not a hub id"),
        (["--device", "gpu"], "--device gpu: no such device; give auto, cpu or cuda"),
        (["--store", "bucket/mine"], "--store bucket/mine: no URL; give s3://BUCKET/PREFIX"),
        (["--store", "nosuch://mine"], "for s3:// in a clone: pip install '.[s3]'"),
    ],
)
def test_an_option_of_a_run_that_cannot_be_used(bench: Bench, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = dinv("run", bench.data, *arguments, "--out", tmp_path / "run")
    assert done.exit_code == 2 and said in done.stderr
    assert not list(tmp_path.glob("run/[!.]*"))


def test_nothing_is_exported_into_the_run(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert dinv("invert", bench.data, *small(bench)[:8], "--out", run).exit_code == 0
    for command in (["export", run, "--to", "parquet"], ["push", run, "me/x", "--dry-run"]):
        done = dinv(*command, "--out", run / "exported")
        assert done.exit_code == 2 and f"lies inside the run {run}; name a folder outside" in done.stderr
    assert dinv("grow", run).stderr.strip().endswith("no end was given; give --images, --target-gain or --time-limit")


def test_the_run_of_another_data_set_is_refused_in_one_line(bench: Bench, tmp_path: Path) -> None:
    """Equal names of files do not make two data sets one; the same images in another place are the same."""
    run = tmp_path / "run"
    assert dinv("invert", bench.data, *small(bench)[:8], "--out", run).exit_code == 0
    other = shutil.copytree(bench.data, tmp_path / "other")
    moved = dinv("invert", other, *small(bench)[:8], "--out", run)
    assert moved.exit_code == 0 and "invert: 12 of 12 vectors were there" in moved.stderr
    from PIL import Image, ImageOps

    for path in other.rglob("*.png"):
        ImageOps.invert(Image.open(path)).save(path)
    refused = dinv("invert", other, *small(bench)[:8], "--out", run)
    assert refused.exit_code == 5 and "`dinv forget" in refused.stderr, "other pixels at the same place have changed"
    third = other.rename(tmp_path / "third")
    refused = dinv("invert", third, *small(bench)[:8], "--out", run)
    assert refused.exit_code == 5 and len(refused.stderr.strip().splitlines()) == 1
    assert f"{run}: this folder belongs to another data set, {other}" in refused.stderr


def test_a_run_that_had_test_images_of_its_own_asks_for_them_again(bench: Bench, tmp_path: Path) -> None:
    train, test, run = bench.data / "train", bench.data / "test", tmp_path / "run"
    assert dinv("invert", train, "--test", test, *small(bench)[:8], "--out", run).exit_code == 0
    again = dinv("invert", train, *small(bench)[:8], "--out", run)
    assert again.exit_code == 5 and f"{run}: was begun with --test {test}; give it again" in again.stderr


def test_a_command_that_goes_on_says_what_was_there(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert dinv("run", bench.data, *small(bench), "--out", run).exit_code == 0
    again = dinv("run", bench.data, *small(bench), "--out", run)
    lines = again.stderr.splitlines()
    assert "invert: 12 of 12 vectors were there" in lines and "sample: 24 of 24 images were there" in lines
    assert "train: 6 of 6 classifiers were there" in lines and not [line for line in lines if "0/0" in line]
    assert again.stdout.splitlines()[-2].endswith(f": dinv export {run} --to imagefolder --out run-images")
    assert any(line.startswith("train: 18/18 steps") and "done after" in line for line in lines)


def test_a_training_that_goes_on_counts_what_it_had(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a classifier: the count of the next call ends full."""
    run = tmp_path / "run"
    options = [*small(bench)[:-6], "--train-steps", 6, "--train-batch-size", 4, "--seeds", "0,1"]
    monkeypatch.setattr(state, "EVERY", 0.0)
    # The seam of faults: Ctrl-C at a point where the state of a training is on disk.
    monkeypatch.setattr(faults, "on_point", stop_once(lambda: list(run.glob("classifiers/state-*"))))
    assert dinv("run", bench.data, *options, "--out", run).exit_code == 130
    assert list(run.glob("classifiers/state-*")), "a training was saved in its middle"
    monkeypatch.setattr(faults, "on_point", None)
    again = dinv("run", bench.data, *options, "--out", run)
    assert any(line.startswith("train: 36/36 steps") and "done after" in line for line in again.stderr.splitlines())
