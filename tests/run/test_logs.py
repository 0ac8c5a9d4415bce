"""What a run logs is what it measured, once each, whoever shows it; after a kill the same log goes on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import dinv
from harness import INVERT, SAMPLE, TRAIN, Bench
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.config.planning import LogSettings
from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import UsageError
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run import trackers
from diffusion_inversion.run.logs import Log, logging_of
from diffusion_inversion.run.stages import run_all
from diffusion_inversion.run.verify import verify

TO = LogSettings(log_to=("tensorboard",))


def run(bench: Bench, folder: Path, logs: LogSettings = TO, sample: SampleSettings = SAMPLE) -> dict[str, Any]:
    with run_lock(folder):
        return dict(
            run_all(
                folder, DataSettings(data=str(bench.data)), bench.generator(), invert=INVERT, sample=sample,
                train=TRAIN.model_copy(update={"steps": 4}), command="dinv run", logs=logs, own_size=False,
            )
        )  # fmt: skip


def events(folder: Path) -> Any:
    """TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def scalars(found: Any) -> dict[str, list[tuple[int, float]]]:
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_reads_what_the_run_measured_and_a_killed_run_goes_on(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(log: Log, *_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # after the first classifier was trained and before it is logged
        patched.setattr(Log, "classifier", killed)
        with pytest.raises(KeyboardInterrupt):
            run(bench, tmp_path / "run")
    record = run(bench, tmp_path / "run")
    run(bench, tmp_path / "run")
    found = events(tmp_path / "logs" / "run")
    logged = scalars(found)
    for arm, result in record["arms"].items():
        assert [step for step, _ in logged[f"test/accuracy {arm}"]] == [0, 1]
        values = [value for _, value in logged[f"test/accuracy {arm}"]]
        assert values == pytest.approx(result["accuracies"], abs=1e-6)
        for seed in TRAIN.seeds:
            assert [step for step, _ in logged[f"train/loss {arm} seed {seed}"]] == [1, 2, 3, 4], "each step once"
    losses = read_embeddings(tmp_path / "run").losses.mean(1).tolist()
    curve = record["inversion_curve"]["steps"]
    assert logged["invert/loss mean"] == [(s, pytest.approx(v, abs=1e-6)) for s, v in zip(curve, losses, strict=True)]
    (picture,) = found.Images("images")
    assert picture.encoded_image_string.startswith(b"\x89PNG") and picture.width > 400
    (settings,) = found.Tensors("settings/sample/text_summary")
    assert b'"variants": 2' in settings.tensor_proto.string_val[0]
    assert not verify(tmp_path / "run").foreign, "the log lies beside the run"


def test_single_stages_log_what_a_run_logs(bench: Bench, tmp_path: Path) -> None:
    """Stage by stage the same tags and numbers as at once; one that begins anew is logged again."""
    made = tmp_path / "single"
    to = ["--log-to", "tensorboard"]
    small = ["--generator", bench.checkpoint, "--dtype", "float32", "--steps", 2, "--init", "random"]
    assert dinv("invert", bench.data, "--out", made, *small, *to).exit_code == 0
    drawn = ["--variants", 2, "--inference-steps", 2, "--device", "cpu", "--dtype", "float32"]
    assert dinv("sample", made, *drawn, *to).exit_code == 0
    trained = ["--train-steps", 4, "--train-batch-size", 4, "--architecture", "resnet20", "--seeds", "0,1"]
    trained += ["--no-own-size", "--device", "cpu"]
    assert dinv("train", made, *trained, *to).exit_code == 0
    run(bench, tmp_path / "run")
    found, known = events(tmp_path / "logs" / "single"), events(tmp_path / "logs" / "run")
    single, whole = scalars(found), scalars(known)
    assert single.keys() == whole.keys() and {tag: len(one) for tag, one in single.items()} == {
        tag: len(one) for tag, one in whole.items()
    }
    losses = read_embeddings(made).losses.mean(1).tolist()
    assert [value for _, value in single["invert/loss mean"]] == pytest.approx(losses, abs=1e-6)
    assert found.Tags()["images"] == known.Tags()["images"] == ["images"]
    assert {*found.Tags()["tensors"]} == {*known.Tags()["tensors"]}, "the settings of each stage"
    again = dinv("train", made, *trained, "--restart", "--train-steps", 5, *to)
    assert again.exit_code == 0, again.output
    found = events(tmp_path / "logs" / "single")
    assert len(found.Scalars("train/loss real seed 0")) == 4 + 5 and len(found.Scalars("invert/loss mean")) == len(
        losses
    )
    assert b'"steps": 5' in found.Tensors("settings/train/text_summary")[-1].tensor_proto.string_val[0]
    for command in (["invert", bench.data, "--out", made, *small], ["sample", made], ["train", made]):
        refused = dinv(*command, *to, "--join")
        assert refused.exit_code == 2 and "--log-to --join, --store or --workers" in refused.stderr
    prompted = dinv("sample", tmp_path / "p", "--prompts", tmp_path / "words.csv", *to)
    assert prompted.exit_code == 2 and "--log-to: of learned vectors" in prompted.stderr


def test_classifiers_that_are_trained_anew_are_logged_anew(bench: Bench, tmp_path: Path) -> None:
    folder, more = tmp_path / "run", SAMPLE.model_copy(update={"variants": SAMPLE.variants + 1})
    records = [run(bench, folder), run(bench, folder, sample=more)]  # images are added: all arms are trained anew
    run(bench, folder, sample=more)  # and nothing is any more
    found = scalars(events(tmp_path / "logs" / "run"))
    for arm in records[0]["arms"]:
        values = [value for _, value in found[f"test/accuracy {arm}"]]
        measured = [one for record in records for one in record["arms"][arm]["accuracies"]]
        assert values == pytest.approx(measured, abs=1e-6)
    losses = [found[tag] for tag in found if tag.startswith("train/loss")]
    assert losses and all([step for step, _ in one] == [1, 2, 3, 4] * 2 for one in losses)


def test_a_program_that_is_not_installed_is_named_before_any_work(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    done = CliRunner().invoke(
        app, ["run", str(bench.data), "--out", str(tmp_path / "run"), "--log-to", "wandb,trackio"]
    )
    assert done.exit_code == 2 and "pip install '.[wandb,trackio]'" in done.stderr
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    joined = CliRunner().invoke(app, ["run", "digits", "--log-to", "tensorboard", "--join"])
    assert joined.exit_code == 2 and "--log-to --join" in joined.stderr
    with pytest.raises(UsageError, match="tensorbord"):
        trackers.require_trackers(("tensorbord",))


def logged_by(folder: Path, value: float) -> None:
    """A run with a number of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with logging_of(folder, LogSettings(log_to=("tensorboard",), log_dir=folder.parents[1] / "logs"), {}) as log:
        log.scalar("test/accuracy real", value, 0)


def test_another_run_of_the_same_name_has_a_log_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run is not its name: it was deleted and begun anew, or two share a folder of logs; each goes on in its own."""
    logs = tmp_path / "logs"

    def values(name: str) -> list[float]:
        return [value for _, value in scalars(events(logs / name))["test/accuracy real"]]

    logged_by(tmp_path / "a" / "photos", 0.25)
    logged_by(tmp_path / "b" / "photos", 0.5)
    shutil.rmtree(tmp_path / "a" / "photos")
    assert capsys.readouterr().err.count("photos is the log of another run; this one is photos-2\n") == 1
    logged_by(tmp_path / "a" / "photos", 0.75)
    logged_by(tmp_path / "b" / "photos", 0.5)
    logged_by(tmp_path / "a" / "photos", 0.75)
    assert [values(name) for name in ("photos", "photos-2", "photos-3")] == [[0.25], [0.5], [0.75]]
    assert not verify(tmp_path / "a" / "photos").foreign


def test_a_log_of_an_earlier_version_goes_on_with_the_run_that_has_work_of_it(tmp_path: Path) -> None:
    """It has no id: a folder that was begun anew under its name has nothing yet, and is another run."""
    made = tmp_path / "a" / "photos"
    logged_by(made, 0.25)
    (tmp_path / "logs" / "photos.run").unlink()
    shutil.rmtree(made)
    logged_by(made, 0.5)
    shutil.rmtree(made)
    (made / "embeddings").mkdir(parents=True)
    (made / "embeddings" / "manifest.jsonl").touch()
    logged_by(made, 0.75)
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "photos", "photos-2", "photos-2.run", "photos.run"
    ]  # fmt: skip
    logged = scalars(events(tmp_path / "logs" / "photos"))["test/accuracy real"]
    assert logged == [(0, 0.25)], "gone on with: that step is there"


def test_a_tracker_that_cannot_be_opened_is_left_out(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "run").touch()  # where TensorBoard would have its folder
    for folder, named in ((tmp_path / "file" / "logs", tmp_path / "file" / "logs"), (tmp_path / "logs", "tensorboard")):
        with logging_of(tmp_path / "run", LogSettings(log_to=("tensorboard",), log_dir=folder), {}) as log:
            log.scalar("a", 1.0, 0)
        assert f"warning: {named}: nothing is logged there: " in capsys.readouterr().err
    refused = dinv(
        "run", bench.data, "--out", tmp_path / "new", "--log-to", "tensorboard", "--log-dir", tmp_path / "file"
    )
    assert refused.exit_code == 2 and "--log-dir" in refused.stderr and "is a file" in refused.stderr
    assert not (tmp_path / "new").exists()


class Kept:
    """A tracker that keeps what it is told, with its steps of before."""

    def __init__(self, before: Mapping[str, int]) -> None:
        self.before, self.told = before, []  # type: ignore[var-annotated]

    def last_steps(self) -> Mapping[str, int]:
        return self.before

    def scalar(self, tag: str, value: float, step: int) -> None:
        if value < 0:
            raise OSError("disk full\nand more")
        self.told.append((tag, value, step))

    def picture(self, tag: str, png: bytes, step: int) -> None:
        self.told.append((tag, png, step))

    def settings(self, tag: str, settings: Mapping[str, Any]) -> None:
        self.told.append((tag, settings, 0))

    def close(self) -> None:
        self.told.append(("closed", None, 0))


def test_what_was_logged_is_not_logged_again_and_a_tracker_that_fails_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    new, old = Kept({}), Kept({"a": 3, "replicate 1/a": 1, "settings/train": 0})
    log = Log({"new": new, "old": old})
    log.settings({"train": {"steps": 5}})
    for step in (2, 3, 4):
        log.scalar("a", 0.5, step)
    log.of(1).picture("a", lambda: b"\x07", 1)
    log.of(0).picture("b", lambda: b"png", 0)
    assert new.told == [
        ("settings/train", {"steps": 5}, 0), ("a", 0.5, 2), ("a", 0.5, 3), ("a", 0.5, 4), ("replicate 1/a", b"\x07", 1),
        ("b", b"png", 0),
    ]  # fmt: skip
    assert old.told == [("a", 0.5, 4), ("b", b"png", 0)]
    log.picture("d", lambda: bytes(-1), 0)
    assert "warning: d: not logged: negative count" in capsys.readouterr().err
    log.scalar("c", -1.0, 0)
    log.scalar("c", 1.0, 1)
    log.close()
    assert "warning: new: no more is logged there: disk full\n" in capsys.readouterr().err
    assert new.told[-1] == ("b", b"png", 0)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_the_adapter_of_trackio_and_wandb_goes_on_where_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their modules have the same functions; here a module that notes what it is called with stands for each."""
    told: list[Any] = []

    class Session:
        config: dict[str, Any] = {}  # noqa: RUF012

        def log(self, values: dict[str, Any], step: int | None = None) -> None:
            told.append((values, step))

        def define_metric(self, *names: str, step_metric: str) -> None:
            assert step_metric == "step"

    def init(**given: Any) -> Session:
        assert given["resume"] == "allow" and given["name"] == "photos" and given.get("mode", "offline") == "offline"
        return Session()

    stub = SimpleNamespace(init=init, Image=lambda picture: picture.size, Settings=dict, finish=lambda: print("bye"))
    monkeypatch.setitem(sys.modules, name, stub)  # type: ignore[arg-type]
    monkeypatch.delenv("WANDB_MODE", raising=False)
    first = trackers.open_tracker(name, tmp_path, "photos")
    first.settings("settings/train", {"steps": 5})
    first.scalar("loss", 0.25, 7)
    assert Session.config == {"train": {"steps": 5}}
    again = trackers.open_tracker(name, tmp_path, "photos")
    assert again.last_steps() == first.last_steps() == {"loss": 7, "settings/train": 0}
    again.close()
    assert told == ([({"loss": 0.25}, 7)] if name == "trackio" else [({"loss": 0.25, "step": 7}, None)])


def test_without_a_tracker_nothing_is_drawn_or_written(tmp_path: Path) -> None:
    with logging_of(tmp_path / "run", LogSettings(), {}) as log:
        log.picture("a", lambda: pytest.fail("drawn for nobody"), 0)
    assert list(tmp_path.iterdir()) == []
