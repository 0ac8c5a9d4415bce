"""`dinv compare`: differences of runs are those of their predictions, paired by pixels; what is not paired says so."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import torch
from command_line import dinv
from harness import INVERT, SAMPLE, TRAIN, Bench, finish, replicates
from report_pages import Page, words

from diffusion_inversion.config.commands import AuditSettings
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import UsageError
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.comparing import compare_runs
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.report.comparison import render_comparison
from diffusion_inversion.train.evaluation import compare
from diffusion_inversion.train.store import ClassifierStore

THREE = TRAIN.model_copy(update={"seeds": (0, 1, 2)})


def trained(finished: Path, run: Path, settings: TrainSettings) -> Path:
    """A copy of a run, trained anew with other settings."""
    shutil.copytree(finished, run)
    with run_lock(run):
        splits = open_splits(run)
        results = pipeline.train_stage(run, splits, settings, "cpu", anew=True)
        pipeline.report_stage(run, splits, results, settings, f"dinv train {run.name}")
    return run


@pytest.fixture(scope="module")
def pair(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of the same vectors and images with three seeds, the second with more steps; not to be changed."""
    folder = tmp_path_factory.mktemp("pair")
    return (
        trained(finished, folder / "plain", THREE),
        trained(finished, folder / "longer", THREE.model_copy(update={"steps": 12, "learning_rate": 0.05})),
    )


def correct(run: Path, arm: str) -> torch.Tensor:
    """Which test images each seed recognised, (seeds, images), in the order of data.json."""
    labels = torch.tensor(json.loads((run / "data.json").read_text())["test"]["labels"])
    units = sorted(ClassifierStore(run).manifest.units().values(), key=lambda one: one["seed"])
    return torch.stack([torch.tensor(one["predictions"]) == labels for one in units if one["arm"] == arm])


def test_run_against_run_is_paired_over_images_and_seeds(pair: tuple[Path, Path]) -> None:
    found = compare_runs(pair)
    (against,) = found["against"]
    assert found["reference"] == "plain" and against["run"] == "longer" and against["why"] is None
    assert against["unit"] == "seeds" and [one["arm"] for one in against["comparisons"]] == list(TRAIN.arms)
    some = False
    for one in against["comparisons"]:
        hits = {"plain": correct(pair[0], one["arm"]), "longer": correct(pair[1], one["arm"])}
        means = {name: hit.double().mean(1).tolist() for name, hit in hits.items()}
        known = compare("longer", means, correct=hits, baseline="plain", comparisons=len(TRAIN.arms))
        assert one["difference"] == pytest.approx(fmean(means["longer"]) - fmean(means["plain"]))
        assert (one["low"], one["high"]) == pytest.approx(known.interval) and one["n"] == 3
        assert one["confidence"] == pytest.approx(1 - 0.05 / len(TRAIN.arms)), "all hold together"
        some = some or one["difference"] != 0
    assert some, "a wrong sign would show"
    (turned,) = compare_runs(pair[::-1])["against"]
    for one, other in zip(against["comparisons"], turned["comparisons"], strict=True):
        assert other["difference"] == pytest.approx(-one["difference"]) and other["low"] == pytest.approx(-one["high"])


def test_test_images_are_told_by_pixels_not_by_name_or_order(
    bench: Bench, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The same images as another folder, whose files and classes have another order: the same result, and no data."""
    data = Path(shutil.copytree(bench.data, tmp_path / "data"))
    for place, path in enumerate(sorted(data.rglob("*.png"), reverse=True)):
        path.rename(path.with_name(f"z{place:03d}.png"))
    run = tmp_path / "renamed"
    with run_lock(run):
        pipeline.run_all(
            run, DataSettings(data=str(data)), bench.generator(), invert=INVERT, sample=SAMPLE, train=THREE,
            command="dinv run data",
        )  # fmt: skip
    shutil.rmtree(data)
    (against,) = compare_runs([pair[0], run])["against"]
    assert against["why"] is None
    names = [json.loads((one / "data.json").read_text())["test"]["hashes"] for one in (pair[0], run)]
    assert names[0] != names[1] and sorted(names[0]) == sorted(names[1])
    order = [names[1].index(digest) for digest in names[0]]
    for one in against["comparisons"]:
        hits = {"a": correct(pair[0], one["arm"]), "b": correct(run, one["arm"])[:, order]}
        means = {name: hit.double().mean(1).tolist() for name, hit in hits.items()}
        known = compare("b", means, correct=hits, baseline="a", comparisons=len(TRAIN.arms))
        assert (one["low"], one["high"]) == pytest.approx(known.interval)


def test_other_test_images_are_not_paired(bench: Bench, pair: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "fewer"
    with run_lock(run):
        pipeline.run_all(
            run, DataSettings(data=str(bench.data), test_limit=6), bench.generator(), invert=INVERT, sample=SAMPLE,
            train=TRAIN, command="dinv run data", audit=AuditSettings(copies="report", planted=0),
        )  # fmt: skip
    found = compare_runs([pair[0], run, pair[1]])
    other, same = found["against"]
    assert other["why"] == "not paired: other test images (2 are tested in one of the two alone)"
    assert other["comparisons"] == [] and len(same["comparisons"]) == len(TRAIN.arms)
    assert same["comparisons"][0]["confidence"] == pytest.approx(1 - 0.05 / len(TRAIN.arms)), "of what is compared"
    differ = found["settings"]["differ"]
    assert differ["data: test_limit"] == [None, 6, None] and differ["train: steps"] == [2, 2, 12]
    assert found["settings"]["same"]["sample: variants"] == [2, 2, 2] and not differ.keys() & found["settings"]["same"]
    plain, fewer, _ = found["runs"]
    assert fewer["copies"]["n"] == 24 and plain["copies"] is None and fewer["data"]["n_test"] == 6
    for one in found["runs"]:
        record = json.loads((Path(one["folder"]) / "run.json").read_text())
        assert one["loss"] == [record["stages"]["invert"][key] for key in ("loss_initial", "loss_final")]
        assert one["seconds"]["all"] == pytest.approx(sum(stage["seconds"] for stage in record["stages"].values()))
        assert one["verdict"]["comparisons"] == record["verdict"]["comparisons"]


def test_replicates_are_paired_by_number(bench: Bench, tmp_path: Path) -> None:
    several, more = tmp_path / "several", tmp_path / "more"
    finish(bench, several, "replicates")
    with run_lock(more):
        replicates(bench, more, 2)
    (against,) = compare_runs([several, more])["against"]
    assert against["unit"] == "replicates" and {one["n"] for one in against["comparisons"]} == {2}
    assert {one["difference"] for one in against["comparisons"]} == {0.0}, "the first two are the same"


def test_the_page_shows_what_the_table_says(pair: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "pages" / "both.html"
    done = dinv("compare", *pair, "--out", page, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    shown = Page(page.read_text(encoding="utf-8"))
    assert "script" not in shown.tags and shown.addresses == [] and shown.tags.count("svg") > 3
    text = words(shown)
    assert "plain and longer side by side" in page.read_text() and "train: steps 2 12" in text
    for one in record["against"][0]["comparisons"]:
        assert f"longer: {one['arm']} {100 * one['difference']:+.1f} (" in text
        assert f"[{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]" in text
    dots = sum(len(arm["accuracies"]) for run in record["runs"] for arm in run["arms"].values())
    assert page.read_text().count('<circle class="dot') == dots == 18
    said = dinv("compare", *pair)
    assert re.search(r"^  train: steps +2 +12$", said.stdout, re.M) and "copies of training images" in said.stdout
    assert re.search(r"^  loss of stage 1 +\d\.\d{4} to \d\.\d{4}", said.stdout, re.M)
    again = dinv("compare", *pair, "--out", page)
    assert again.exit_code == 2 and "--overwrite" in again.stderr
    assert dinv("compare", *pair, "--out", page, "--overwrite").exit_code == 0


def test_a_long_name_of_a_run_leaves_room_for_its_arms(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """In the charts, which are read aloud with whole names; the ends of names are what tells runs apart."""
    names = [f"cifar10-subset-200-noise-0.1-interp-0.{last}" for last in (2, 4)]
    runs = [Path(shutil.copytree(one, tmp_path / name)) for one, name in zip(pair, names, strict=True)]
    page = render_comparison(compare_runs(runs), "dinv compare")
    arms = json.loads((pair[0] / "run.json").read_text())["arms"]
    _, *charts = page.split('<svg class="chart"')
    assert len(charts) == 3
    for chart in charts:
        aloud = re.findall('aria-label="([^"]*)"', chart)[0]
        shown = re.findall('<text class="name"[^>]*>([^<]*)', chart)
        assert len({*shown}) == len(shown) and max(map(len, shown)) <= 36, shown
        assert {label.rpartition(": ")[2] for label in shown} <= {*arms} and shown
        assert sum(aloud.count(f"{name}: ") for name in names) == len(shown)


def test_names_are_text_never_markup(pair: tuple[Path, Path], tmp_path: Path) -> None:
    evil = Path(shutil.copytree(pair[1], tmp_path / "<b>x&amp;"))
    page = Page(render_comparison(compare_runs([pair[0], evil]), "dinv <i>"))
    assert "b" not in page.tags and "i" not in page.tags and "<b>x&amp;" in page.text


def test_bad_input_is_one_line(bench: Bench, pair: tuple[Path, Path], finished: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        found = dinv("compare", *arguments)
        assert found.exit_code == 2 and len(found.stderr.splitlines()) == 1, found.output
        return str(found.stderr)

    assert "one run; give two or more different run folders" in refused(pair[0])
    assert "twice; give two or more" in refused(pair[0], pair[1], pair[0])
    assert "not a run folder" in refused(pair[0], tmp_path) and "not a run folder" in refused(tmp_path / "no", pair[0])
    assert "the page is HTML" in refused(*pair, "--out", tmp_path / "page.txt")
    run = tmp_path / "half"
    for stage, missing in (
        ("invert", r"stage 2 \(`dinv sample`\) is missing"), ("sample", r"training \(`dinv train`\) is missing"),
        ("train", r"the report \(`dinv train`\) is missing"),
    ):  # fmt: skip
        finish(bench, run, stage)
        with pytest.raises(UsageError, match=missing):
            compare_runs([pair[0], run])
    other = Path(shutil.copytree(pair[1], tmp_path / "other"))
    content = json.loads((other / "data.json").read_text())
    record = json.loads((other / "run.json").read_text())
    content["class_names"][0] = record["data"]["class_names"][0] = "another"
    Ledger(other).commit("data.json", json.dumps(content).encode())
    Ledger(other).commit("run.json", json.dumps(record).encode())
    assert "different classes" in refused(pair[0], other)
    stale = Path(shutil.copytree(pair[1], tmp_path / "stale"))
    record = json.loads((stale / "run.json").read_text())
    record["arms"]["real"]["accuracies"][0] += 0.25
    Ledger(stale).commit("run.json", json.dumps(record).encode())
    assert "run.json is of other classifiers than those that are there" in refused(pair[0], stale)
    alone = trained(finished, tmp_path / "alone", TRAIN.model_copy(update={"seeds": (7,)}))
    (against,) = compare_runs([pair[0], alone])["against"]
    assert against["why"] == "not paired: no classifier seed in common"
