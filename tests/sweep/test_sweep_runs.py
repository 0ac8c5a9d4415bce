"""Cells with options of `dinv run`: what that command does, on vectors and images that cells share."""

from __future__ import annotations

import errno
import json
import os
import runpy
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from coloured_images import COLOURS, picture
from harness import Bench, Kill, finish, kill_during
from image_files import save
from sweeps import sweep, write_sweep

from diffusion_inversion.config.commands import AuditSettings
from diffusion_inversion.config.fidelity import OFF, FilterSettings
from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import DataSettings, InvertSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.config.tuning import Tuning, read_tuning
from diffusion_inversion.engine import faults
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.fidelity.stage import read_fidelity, trained_on
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.verify import verify
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.sweep.runs import _link
from diffusion_inversion.train.choosing import SAMPLE_FILE, choices_of
from diffusion_inversion.train.halving import trials_of

NAMES = tuple(sorted(COLOURS))
INVERT = InvertSettings(steps=2, init="random", eval_draws=1)
SAMPLE = SampleSettings(variants=2, inference_steps=2)
TRAIN = TrainSettings(architecture="resnet20", steps=2, batch_size=4, seeds=(0, 1), arms=("real", "real+synthetic"))
TUNE = ["interpolation=0.4", "mixing=concatenate"]
CASES = {
    "plain": {},
    "farther": {"sample.interpolation": 0.4},
    "dropped": {"run.filter": "drop"},
    "redrawn": {"run.filter": "redraw"},
    "looked at": {"run.copies": "report"},
    "chosen": {"run.tune": TUNE},
    "online": {"train.online": 3},
    "real, chosen": {"run.tune": ["augmentations=none"], "train.arms": ["real"]},
}


def write(path: Path, bench: Bench, data: Path | None = None, **cases: dict[str, Any]) -> Path:
    text = ""
    for name, values in (cases or CASES).items():
        given = ", ".join(f'"{key}" = {json.dumps(value)}' for key, value in values.items())
        text += f'[[cases]]\nname = "{name}"\nset = {{ {given} }}\n'
    trained = {"train_steps": TRAIN.steps, "seeds": TRAIN.seeds, "arms": TRAIN.arms}
    return write_sweep(path, bench, text, data=data, steps=INVERT.steps, **trained)


@pytest.fixture(scope="module")
def made(coloured: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of all cases; not to be changed."""
    folder = tmp_path_factory.mktemp("sweep")
    done = sweep(write(folder / "runs.toml", coloured), folder / "out")
    assert done.exit_code == 0, done.output
    return folder / "out"


def rows(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What was found, by case and arm; the arm real of most cases is one, by its first."""
    found = json.loads((out / "runs.json").read_text())["rows"]
    return {(row["at"].get("case", "several"), row["arm"]): row for row in found}


def home(out: Path, case: str, arm: str = "real+synthetic") -> Path:
    """The run folder of a case."""
    (name,) = rows(out)[case, arm]["runs"]
    return out / name


def run(
    bench: Bench, folder: Path, *, filtering: FilterSettings = OFF, tuning: Tuning | None = None, **train: Any
) -> Path:
    """What `dinv run` makes of the same settings."""
    with run_lock(folder):
        pipeline.run_all(
            folder, DataSettings(data=str(bench.data)), bench.generator(), invert=INVERT, sample=SAMPLE,
            train=TRAIN.model_copy(update=train), command="dinv run data", filtering=filtering, tuning=tuning,
            audit=AuditSettings(copies="off"), own_size=False,
        )  # fmt: skip
    return folder


def drawn(out: Path) -> dict[Path, float]:
    """The folders of images that cells share, each with its strength of interpolation."""
    tables = {one: SyntheticStore(one, NAMES).table("interpolation") for one in (out / "images").iterdir()}
    return {one: table["interpolation"][0].as_py() for one, table in tables.items()}


def accuracies(folder: Path, arm: str) -> list[float]:
    found = json.loads((folder / "run.json").read_text())["arms"][arm]["accuracies"]
    return list(found)


def choices(folder: Path) -> list[dict[str, Any]]:
    """All that was found of each choice but what it took."""
    return [{**one, "seconds": 0, "sentence": ""} for one in choices_of(folder)]


@pytest.mark.parametrize(("case", "how"), [("dropped", "drop"), ("redrawn", "redraw")])
def test_a_cell_takes_out_what_dinv_run_takes_out(
    made: Path, coloured: Bench, tmp_path: Path, case: str, how: str
) -> None:
    alone = run(coloured, tmp_path / "run", filtering=FilterSettings.model_validate({"filter": how}))
    ours, theirs = (read_fidelity(one) for one in (home(made, case), alone))
    assert ours is not None and theirs is not None and 0 < sum(ours.failed) < len(ours.failed)
    assert (ours.failed, ours.confidence) == (theirs.failed, theirs.confidence)
    used = []
    for folder in (home(made, case), alone):
        with run_lock(folder):
            used.append(trained_on(folder, NAMES, lambda: open_splits(alone), "cpu", coloured.generator()))
    assert used[0].key == used[1].key and used[0].synthetic.ids == used[1].synthetic.ids
    for arm in ("real", "real+synthetic"):
        place = (case, arm) if arm != "real" else ("several", arm)
        assert rows(made)[place]["accuracies"] == accuracies(alone, arm)


def test_cells_share_vectors_images_and_the_arm_real(made: Path) -> None:
    count = {kind.name: len(list(kind.iterdir())) for kind in (made / "results").iterdir()}
    # real+synthetic of seven cases, real of six at once, of the one that chose for training, and of itself; two seeds
    assert count == {"splits": 1, "vectors": 1, "images": 2, "classifiers": 2 * (7 + 1 + 1 + 1)}
    (vectors,) = (made / "vectors").iterdir()
    (images,) = (path for path, strength in drawn(made).items() if strength == SAMPLE.interpolation)
    for folder, shared in (("synthetic", images), ("embeddings", vectors)):
        for path in (shared / folder).rglob("*.*"):
            if path.suffix in (".png", ".safetensors"):
                one, other = (
                    home(made, case) / folder / path.relative_to(shared / folder) for case in ("dropped", "redrawn")
                )
                assert one.samefile(path) and other.samefile(path)
    assert len(list((made / "runs").iterdir())) == 6
    for folder in (made / "runs").iterdir():
        assert verify(folder).findings == () and verify(folder).foreign == (), folder


def test_a_cell_chooses_what_dinv_run_chooses(made: Path, coloured: Bench, tmp_path: Path) -> None:
    alone = run(coloured, tmp_path / "run", tuning=read_tuning(TUNE))
    row = rows(made)["chosen", "real+synthetic"]
    assert choices(home(made, "chosen")) == choices(alone)
    assert row["accuracies"] == accuracies(alone, "real+synthetic")
    assert rows(made)["chosen", "real"]["accuracies"] == accuracies(alone, "real")
    assert [one["setting"] for one in row["chosen"][0]] == ["sample.interpolation", "train.mixing"]
    text = (made / "runs.md").read_text()
    assert "| chosen | 0 | sample.interpolation | 0.1 | 0.4 | 0.1 | 10 |" in text and "What was chosen" in text
    assert "What was chosen" in (made / "runs.html").read_text()
    assert row["synthetic_images"] == 60 and rows(made)["online", "real+synthetic"]["synthetic_images"] == 90


def test_real_images_alone_choose_as_dinv_run_does(made: Path, coloured: Bench, tmp_path: Path) -> None:
    alone = run(coloured, tmp_path / "run", tuning=read_tuning(["augmentations=none"]), arms=("real",))
    found = choices(home(made, "real, chosen", "real"))
    assert found == choices(alone) and [one["arm"] for one in found] == ["real"]
    assert found[0]["trainings"] == trials_of(1, 5)
    assert rows(made)["real, chosen", "real"]["accuracies"] == accuracies(alone, "real")
    record = json.loads((alone / "run.json").read_text())
    assert "by real images alone" in record["chosen"][0]["sentence"]


def test_test_images_have_no_part_in_a_choice(made: Path, coloured: Bench, tmp_path: Path) -> None:
    """Others to test, of the other colour at that: accuracies differ, the choices do not."""
    data = Path(shutil.copytree(coloured.data, tmp_path / "data"))
    for place, name in enumerate(reversed(COLOURS)):
        for row in range(15, 18):
            save(data / "test" / name / f"{row}.png", picture(list(COLOURS.values())[place], 900 + row))
    cases = {name: CASES[name] for name in ("chosen", "real, chosen")}
    out = tmp_path / "out"
    done = sweep(write(tmp_path / "runs.toml", coloured, data, **cases), out)
    assert done.exit_code == 0, done.output
    for case, arm in (("chosen", "real+synthetic"), ("real, chosen", "real")):
        ours, theirs = rows(out)[case, arm], rows(made)[case, arm]
        assert [{**one, "seconds": 0, "sentence": ""} for one in ours["chosen"][0]] == [
            {**one, "seconds": 0, "sentence": ""} for one in theirs["chosen"][0]
        ]
        assert ours["n_test"] == theirs["n_test"]
    with torch.no_grad():
        assert any(
            rows(out)[key]["accuracies"] != rows(made)[key]["accuracies"]
            for key in (("chosen", "real+synthetic"), ("real, chosen", "real"))
        )


def test_what_was_chosen_is_taken_from_the_cell_that_has_it(made: Path, coloured: Bench, tmp_path: Path) -> None:
    """As if .4 had won: its images are there, drawn for another case."""
    write(tmp_path / "runs.toml", coloured)
    out = Path(shutil.copytree(made, tmp_path / "out"))
    folder = home(out, "chosen")
    kept = json.loads((folder / SAMPLE_FILE).read_text())
    kept["choices"][0]["found"]["chosen"] = 0.4
    with run_lock(folder):
        pipeline.restart(folder, "sample")
        Ledger(folder).commit(SAMPLE_FILE, json.dumps(kept).encode())
    for path in (out / "results" / "classifiers").iterdir():
        if json.loads(path.read_text())["classifier"].startswith(f"runs/{folder.name}/"):
            path.unlink()
    finish(coloured, out, "swept")
    assert rows(out)["chosen", "real+synthetic"]["chosen"][0][0]["chosen"] == 0.4
    (farther,) = (one for one, strength in drawn(out).items() if strength == 0.4)
    images = list((farther / "synthetic").rglob("*.png"))
    assert len(images) == 60
    assert all((folder / path.relative_to(farther)).samefile(path) for path in images)
    assert rows(out)["farther", "real+synthetic"] == rows(made)["farther", "real+synthetic"]


def test_a_cell_of_fewer_variants_has_its_own(coloured: Bench, tmp_path: Path) -> None:
    """Drawn with others that ask for more; and nothing that only these asked for is trained on."""
    cases = {"few": {"run.filter": "drop", "sample.variants": 1}, "many": {"sample.variants": 3}}
    done = sweep(write(tmp_path / "runs.toml", coloured, **cases), tmp_path / "out")
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    store = SyntheticStore(folder, NAMES)
    assert store.variants() == 1 and len(store.read()) == 30 == len(store.table("file_name"))
    (images,) = (tmp_path / "out" / "images").iterdir()
    assert SyntheticStore(images, NAMES).variants() == 3


def test_what_choices_were_worth_is_told_of_test_images(made: Path) -> None:
    tool = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "tuned.py"))
    record = json.loads((made / "runs.json").read_text())
    (one,) = tool["choices"](record)
    means = [statistics.fmean(rows(made)[case, "real+synthetic"]["accuracies"]) for case in ("plain", "farther")]
    assert (one.setting, one.chosen) == ("sample.interpolation", "0.1"), "merging has no case of its own"
    assert list(one.tested.items()) == [("0.1", means[0]), ("0.4", means[1])]
    assert one.regret == max(means) - means[0]
    page = tool["page"]("runs", record)
    assert f"| sample.interpolation | 0.1 or 0.4 | {int(one.regret == 0)} of 1 |" in page
    assert "| chosen | real+synthetic | 20.0 |" in page and "real, chosen | real | 10.0 |" in page


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_table(made: Path, coloured: Bench, tmp_path: Path) -> None:
    write(tmp_path / "runs.toml", coloured)
    out = tmp_path / "out"
    for nth in (40, 60, 30):
        assert kill_during(coloured, out, "swept", Kill("recorded", nth))
    finish(coloured, out, "swept")
    assert (out / "runs.csv").read_bytes() == (made / "runs.csv").read_bytes()
    for key, row in rows(made).items():
        ours = rows(out)[key]
        for one in (row, ours):
            for found in one.get("chosen", [()])[0]:
                found.update(seconds=0, sentence="")
        assert ours == row
    finish(coloured, out, "swept")
    assert (out / "runs.csv").read_bytes() == (made / "runs.csv").read_bytes()


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ({"run.tune": ["fast"], "train.arms": ["real"]}, "choices are scored by real+synthetic"),
        ({"run.tune": ["tokens=2"]}, "a setting of stage 1"),
        ({"run.filter": "best"}, "filter='best'"),
        ({"run.filtre": "drop"}, "filtre"),
        ({"run.filter": "drop", "autoencode.train": 16}, "autoencode: a cell with options of `dinv run`"),
        ({"run.filter": "drop", "train.online": 3}, "--online --filter drop"),
        ({"train.mixing": "confidence"}, "images are drawn without a judge's confidence"),
        ({"run.tune": ["kept_steps=7"]}, "vectors of these steps are not kept"),
        ({"run.filter": "drop", "data.limit": 8}, "8 training images are too few to judge labels by"),
        ({"run.tune": ["real_fraction=0.25"], "train.real_fraction": "auto"}, "leave out one of them"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(
    coloured: Bench, tmp_path: Path, case: dict[str, Any], said: str
) -> None:
    done = sweep(write(tmp_path / "runs.toml", coloured, plain={}, other=case), tmp_path / "out")
    assert done.exit_code in (2, 4) and said in done.stderr, done.output
    assert not (tmp_path / "out" / "results").exists()


def test_what_a_disk_without_links_is_given_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such disk is at hand, so the system's own call refuses here as it does there."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    def die(point: faults.Point) -> None:
        raise KeyboardInterrupt

    source, copied = tmp_path / "source.png", tmp_path / "copied.png"
    source.write_bytes(b"image")
    monkeypatch.setattr(os, "link", refuse)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(faults, "on_point", die)
        _link(source, copied)
    assert not copied.exists(), "a kill leaves nothing of this name"
    _link(source, copied)
    assert copied.read_bytes() == b"image"
