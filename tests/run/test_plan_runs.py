"""Steps are timed without a trace; a run within a time limit is the run with the settings that are left."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import INVERT, SAMPLE, TRAIN, Bench, content
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.config.commands import AuditSettings
from diffusion_inversion.config.fidelity import FilterSettings
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.config.tuning import Tuning
from diffusion_inversion.engine.disk import human
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import ConfigMismatchError, UsageError
from diffusion_inversion.run.images import load
from diffusion_inversion.run.plan import start, time_limit
from diffusion_inversion.run.plan.start import Outlook, begin, process_age
from diffusion_inversion.run.plan.steps import Steps, time_steps
from diffusion_inversion.run.plan.time_limit import MARGIN, within
from diffusion_inversion.run.replicates import replicate
from diffusion_inversion.run.room import png_bytes
from diffusion_inversion.run.stages import run_all
from diffusion_inversion.run.verify import verify
from diffusion_inversion.sample.synthetic import SyntheticStore

SECOND = Steps(
    begin=0.0, evaluation=0.0, learning=0.0, drawing=1.0, likeness=0.0, setup=0.0, training=0.0, testing=0.0,
    own_training=0.0, own_testing=0.0, autoencoder=0.0, memory=0,
)  # fmt: skip


def outlook(bench: Bench, run: Path, replicates: int = 1, variants: int = SAMPLE.variants) -> Outlook:
    data, sample = DataSettings(data=str(bench.data)), SAMPLE.model_copy(update={"variants": variants})
    plans = [replicate(run, number, data, INVERT, sample, TRAIN) for number in range(replicates)]
    return Outlook(plans, load(run, data, None), bench.generator(), 16, None)


def finish(bench: Bench, run: Path, variants: int = SAMPLE.variants, **more: Any) -> dict[str, str]:
    data, sample = DataSettings(data=str(bench.data)), SAMPLE.model_copy(update={"variants": variants})
    with run_lock(run):
        run_all(run, data, bench.generator(), invert=INVERT, sample=sample, train=TRAIN, command="dinv", **more)
    return content(run)


def test_real_steps_are_timed_and_leave_no_trace(bench: Bench, tmp_path: Path) -> None:
    view = outlook(bench, tmp_path / "run")
    before = torch.random.get_rng_state()
    found = time_steps(
        view.splits, view.generator, INVERT, SAMPLE, TRAIN, side=16, own=24, seconds=0.2
    )  # 24 px: as if the images were larger
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(tmp_path.iterdir()) == []
    several = ("learning", "drawing", "likeness", "training", "testing", "own_training", "own_testing")
    assert all(0 < getattr(found, name) < 60 for name in several), found
    assert found.begin >= 0 and found.evaluation >= 0 and found.autoencoder == 0, "too few images for the probe"
    assert 1e8 < found.memory < 1e11


@pytest.mark.slow
def test_a_run_whose_steps_were_timed_has_the_same_bits(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = finish(bench, tmp_path / "plain")
    assert "plan:" not in capsys.readouterr().err, "a short run says nothing"
    monkeypatch.setattr(start, "LONG", 0.0)
    timed = finish(bench, tmp_path / "timed")
    said = capsys.readouterr().err
    assert "plan: about " in said and "stage 1" in said and "of memory at most" in said
    same = {name for name in plain if name.endswith((".safetensors", ".png"))}
    assert same and {name: plain[name] for name in same} == {name: timed[name] for name in same}
    finish(bench, tmp_path / "timed")
    assert "plan:" not in capsys.readouterr().err, "nothing is left to say it of"


def test_what_is_there_is_not_counted(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(bench, run)
    view = outlook(bench, run)
    assert view.left(view.asked).nothing
    more = view.asked.with_variants(SAMPLE.variants + 1)
    todo = view.left(more)
    # Classifiers are of the images that there were: all are trained anew, and the report is written again.
    assert (todo.vectors, todo.variants, todo.classifiers) == (0, 12, len(TRAIN.arms) * len(TRAIN.seeds))
    assert todo.reports == 1 and view.forecast(SECOND, more).seconds["stage 2"] == pytest.approx(12 + 12)


def test_what_was_drawn_for_other_counts_is_not_what_is_asked_for(bench: Bench, tmp_path: Path) -> None:
    """After a change of --balance what is missing is what stage 2 then draws, though as many are there."""
    fewer = Path(shutil.copytree(bench.data / "train", tmp_path / "train"))
    for image in sorted(next(fewer.iterdir()).glob("*.png"))[:2]:
        image.unlink()
    data, run = DataSettings(data=str(fewer), test=str(bench.data / "test")), tmp_path / "run"
    even, store = SAMPLE.model_copy(update={"balance": "class"}), SyntheticStore(run, ())
    with run_lock(run):
        run_all(run, data, bench.generator(), invert=INVERT, sample=SAMPLE, train=TRAIN, command="dinv")
        drawn = sum(unit["count"] for unit in store.manifest.units().values())
        plans = [replicate(run, 0, data, INVERT, even, TRAIN)]
        view = Outlook(plans, load(run, data, None), bench.generator(), 16, None)
        missing = view.left(view.asked).variants
        assert 0 < missing < drawn and view.left(replace(view.asked, sample=SAMPLE)).variants == 0
        run_all(run, data, bench.generator(), invert=INVERT, sample=even, train=TRAIN, command="dinv")
    assert sum(unit["count"] for unit in store.manifest.units().values()) == drawn + missing
    assert view.left(view.asked).variants == 0


def test_what_redrawing_adds_is_said_as_the_most_it_can_be(bench: Bench, tmp_path: Path) -> None:
    view, redraw = outlook(bench, tmp_path / "run", replicates=2), AuditSettings()
    found = view.untimed(SECOND, view.asked, FilterSettings(filter="drop"), redraw)
    most = f"up to 48 images, each up to 5 times: up to 4:00, {human(48 * png_bytes(16))}"
    assert found.lines() == [f"not in it: --filter drop, --copies redraw ({most})"]
    looked = view.untimed(SECOND, view.asked, FilterSettings(filter="soft"), AuditSettings(copies="report"))
    assert looked.lines() == ["not in it: --filter soft, --copies report"] and looked.seconds == 0
    assert view.untimed(SECOND, view.asked, FilterSettings(), None).lines() == []
    run = tmp_path / "done"
    finish(bench, run)
    whole = outlook(bench, run)
    assert whole.untimed(SECOND, whole.asked, FilterSettings(), redraw).lines() == [], "nothing is left to train"


def test_what_is_left_out_is_what_real_steps_leave_no_time_for(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "BUDGET", 0.1)  # a shorter look at the steps
    run, many = tmp_path / "run", 10**7
    view, limit = outlook(bench, run, variants=many), 1000 + 2 * process_age()
    with run_lock(run):
        found = begin(view.plans, view.splits, view.generator, side=16, own=None, limit=limit, tuning=Tuning())
        again = time_limit.recorded(run, limit, view.asked, replicates=1, own_size=False)
    assert 3 < found.sample.variants < many and found.with_variants(many) == view.asked and again == found
    assert f"variants {many} -> {found.sample.variants}" in capsys.readouterr().err


def test_a_limit_cuts_before_the_work_and_the_same_command_goes_on(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Decided by steps of known seconds: were it decided again, by the real ones, another number would come of it."""
    run = tmp_path / "run"
    view = outlook(bench, run, variants=4)
    # A variant or reconstruction takes a second, the report 4, all else nothing: 36 + 12 + 4 seconds, not 48 + 12 + 4.
    limit = 55 / (1 - MARGIN)
    fewer = within(limit, view.asked, lambda amounts: view.forecast(SECOND, amounts).total)
    with run_lock(run):
        time_limit.record(run, limit, view.asked, fewer, replicates=1, own_size=False)
    finish(bench, run, 4, time_limit=limit)
    assert "variants 4 -> 3" in capsys.readouterr().err
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["sample"]["variants"] == 3 and record["time_limit"]["cut"] == ["variants 4 -> 3"]
    assert verify(run).findings == ()
    other = tmp_path / "other"
    asked_for, cut = finish(bench, other, 3), content(run)
    same = [name for name in asked_for if name.endswith((".png", ".safetensors"))]
    assert same and all(asked_for[name] == cut[name] for name in same)
    capsys.readouterr()
    assert finish(bench, run, 4, time_limit=limit) == cut and "variants 4 -> 3" in capsys.readouterr().err
    with pytest.raises(ConfigMismatchError, match="--time-limit was decided here for other settings"):
        finish(bench, run, 4, time_limit=limit + 1)
    with pytest.raises(ConfigMismatchError, match="begun without --time-limit"):
        finish(bench, other, 4, time_limit=limit)


def test_who_decides_and_what_has_no_end(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    view = outlook(bench, run)
    with run_lock(run, shared=True), pytest.raises(UsageError, match="--time-limit --join"):
        begin(view.plans, view.splits, view.generator, side=16, own=None, limit=9.0, tuning=Tuning())
    axes = Tuning(axes=("any",))  # type: ignore[arg-type]  # that there is one is all that is read
    with pytest.raises(UsageError, match="give --tune-seconds too"):
        begin(view.plans, view.splits, view.generator, side=16, own=None, limit=9.0, tuning=axes)


def test_each_replicate_has_a_budget_of_its_own_to_choose_with(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "BUDGET", 0.1)  # a shorter look at the steps
    tuning = Tuning(axes=("any",), seconds=3000.0)  # type: ignore[arg-type]  # that there is one is all that is read
    for replicates in (1, 3):
        view = outlook(bench, tmp_path / str(replicates), replicates=replicates)
        with run_lock(view.plans[0].folder):
            asked = partial(begin, view.plans, view.splits, view.generator, side=16, own=None, tuning=tuning)
            if replicates == 1:
                assert asked(limit=process_age() + 8000) == view.asked
            else:
                with pytest.raises(UsageError):
                    asked(limit=process_age() + 8000)
                nothing = replace(tuning, axes=())  # to choose: the seconds are not spent
                assert asked(limit=process_age() + 8000, tuning=nothing) == view.asked


def test_seeds_of_replicates_are_cut_too(bench: Bench, tmp_path: Path) -> None:
    view = outlook(bench, tmp_path / "run", replicates=3)
    fewer = replace(view.asked, train=view.asked.train.model_copy(update={"seeds": (0,)}))
    assert view.left(view.asked).classifiers == 3 * 2 * view.left(fewer).classifiers // 3
    assert view.left(fewer).vectors == 36


@pytest.mark.slow
def test_dinv_plan_says_it_and_makes_nothing(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "BUDGET", 0.1)
    options = [
        "plan", bench.data, "--generator", bench.checkpoint, "--dtype", "float32", "--init", "random", "--steps", 2,
        "--variants", 4, "--inference-steps", 2, "--train-steps", 3, "--price", 2.5, "--workers", 2,
    ]  # fmt: skip
    done = CliRunner().invoke(app, [*map(str, options), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["total_seconds"] == pytest.approx(sum(found["seconds"].values()))
    assert found["cost"] == pytest.approx(found["total_seconds"] / 3600 * 2 * 2.5)
    assert found["disk_bytes"] > 0 and found["steps"]["learning"] > 0
    most = found["untimed"]
    assert most["options"] == ["--copies redraw"] and most["images"] == 4 * 12
    assert most["seconds"] == pytest.approx(5 * 4 * 12 * found["steps"]["drawing"])
    assert list(tmp_path.iterdir()) == []
    tight = CliRunner().invoke(app, [*map(str, options), "--time-limit", "1s"])
    assert tight.exit_code == 2 and "Give at least" in tight.stderr
    wide = CliRunner().invoke(app, [*map(str, options), "--time-limit", "99d"])
    assert "for the time limit of 2376:00:00: nothing is cut" in wide.stdout
    run = CliRunner().invoke(
        app, ["run", *map(str, options[1:-4]), "--time-limit", "99d", "--out", str(tmp_path / "run")]
    )
    assert run.exit_code == 0 and "cut for the time limit: nothing" in run.stdout, run.output
    assert "plan: not in it: --copies redraw" in run.stderr
    left = CliRunner().invoke(app, [*map(str, options), "--out", str(tmp_path / "run"), "--json"])
    seconds = json.loads(left.stdout)["seconds"]
    assert seconds["start"] > 0 and not any(value for name, value in seconds.items() if name != "start")
    wrong = CliRunner().invoke(app, [*map(str, options), "--time-limit", "2 weeks"])
    judged = [*map(str, options), "--mixing", "confidence"]
    unjudged = CliRunner().invoke(app, judged)
    assert unjudged.exit_code == 2 and "--filter drop or soft" in unjudged.stderr, "as `dinv run` says"
    assert CliRunner().invoke(app, [*judged, "--filter", "drop"]).exit_code == 0
    online = CliRunner().invoke(app, [*map(str, options), "--online", "4"])
    assert online.exit_code == 2 and "--online --copies redraw" in online.stderr, "as `dinv run` says"
    assert wrong.exit_code == 2 and "--time-limit 2 weeks: not a duration; give a number with its unit" in wrong.stderr
