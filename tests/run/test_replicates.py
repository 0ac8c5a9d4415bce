"""Replicates: their seeds, what they say together in closed form, a run that grows, is killed, mended, forgets."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import dinv
from harness import INVERT, SAMPLE, TRAIN, Bench, Kill, assert_same, content, finish, kill_during, race, replicates
from PIL import Image

from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import ConfigMismatchError
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.replicates import open_replicate, replicate, replicate_folders, seed_of
from diffusion_inversion.run.stages import run_all
from diffusion_inversion.run.verify import verify
from diffusion_inversion.train.arms import ArmResults
from diffusion_inversion.train.evaluation import compare, score
from diffusion_inversion.train.replicated import components, recognised


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three replicates, done at once; not to be changed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(bench, run, "replicates")
    return run


# --- what replicates say together -------------------------------------------------------------------------------------


def test_seeds_are_the_runs_own_and_then_all_different() -> None:
    assert [seed_of(seed, 0) for seed in (0, 7)] == [0, 7]
    found = {seed_of(seed, number) for seed in range(50) for number in range(50)}
    assert len(found) == 50 * 50 and all(0 <= seed < 2**31 for seed in found)
    assert seed_of(0, 1) == 138747340, "a run must go on with the seeds it began with"


def test_components_by_hand() -> None:
    found = components([[0.50, 0.54], [0.60, 0.64]])
    within = 0.04**2 / 2  # of either pair
    assert found.within == pytest.approx(within**0.5)
    assert found.between == pytest.approx((0.1**2 / 2 - within / 2) ** 0.5)
    same = components([[0.5, 0.6], [0.5, 0.6], [0.6, 0.5]])
    assert same.between == 0, "means that differ by less than their seeds explain"
    one = components([[0.5, 0.6]])
    assert one.between is None and one.within == pytest.approx(statistics.stdev([0.5, 0.6]))
    alone = components([[0.5], [0.6]])
    assert (alone.between, alone.within) == (None, None), "one seed a draw: nothing tells the two apart"


def test_components_are_those_that_the_values_were_drawn_with() -> None:
    rng = np.random.default_rng(0)
    between, within = 0.03, 0.02
    values = between * rng.standard_normal((4000, 1)) + within * rng.standard_normal((4000, 5))
    found = components(values.tolist())
    assert found.between == pytest.approx(between, rel=0.05) and found.within == pytest.approx(within, rel=0.05)


def test_shares_of_classifiers_that_recognised_an_image() -> None:
    rows = [torch.tensor([[True, False], [True, True]]), torch.tensor([[False, True], [False, True]])]
    found = recognised(rows, [["a", "b"], ["b", "c"]])
    assert torch.equal(found.nan_to_num(-1), torch.tensor([[1, 0.5, -1], [-1, 0, 1]], dtype=torch.float64))


@pytest.mark.parametrize(("draw_spread", "seed_spread"), [(0.05, 0.005), (0.005, 0.05)])
def test_intervals_over_replicates_hold_the_truth_where_those_of_one_draw_do_not(
    draw_spread: float, seed_spread: float
) -> None:
    """5 replicates of 5 seeds, 2,000 shared test images; the truth is the gain over all draws."""
    rng, trials, gain = np.random.default_rng(2), 200, 0.05
    held = {"one draw": 0, "replicates": 0}
    ids = [str(image) for image in range(2000)]
    for _ in range(trials):
        shift = draw_spread * rng.standard_normal((5, 1, 1)) + seed_spread * rng.standard_normal((5, 5, 1))
        difficulty = rng.uniform(0.2, 0.7, 2000)
        real = torch.from_numpy(rng.uniform(size=(5, 5, 2000)) < difficulty)
        ours = torch.from_numpy(rng.uniform(size=(5, 5, 2000)) < difficulty + gain + shift)
        pairs = {"real": real, "synthetic": ours}
        one = compare(
            "synthetic", {a: hits[0].double().mean(1).tolist() for a, hits in pairs.items()},
            correct={a: hits[0] for a, hits in pairs.items()},
        )  # fmt: skip
        all_of_them = compare(
            "synthetic", {a: hits.double().mean((1, 2)).tolist() for a, hits in pairs.items()},
            correct={a: recognised(list(hits), [ids] * 5) for a, hits in pairs.items()}, unit="replicates",
        )  # fmt: skip
        for name, c in (("one draw", one), ("replicates", all_of_them)):
            assert c.interval is not None
            held[name] += c.interval[0] < gain < c.interval[1]
    allowed = 0.95 - 3 * (0.95 * 0.05 / trials) ** 0.5
    assert held["replicates"] / trials > allowed
    assert draw_spread < seed_spread or held["one draw"] / trials < allowed


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_replicate_is_an_ordinary_run_with_its_own_seeds(bench: Bench, whole: Path, tmp_path: Path) -> None:
    assert [folder.relative_to(whole).as_posix() for folder in replicate_folders(whole)] == [
        ".", "replicates/1", "replicates/2",
    ]  # fmt: skip
    seed = seed_of(0, 1)
    run_all(
        tmp_path,
        DataSettings(data=str(bench.data), limit=6, seed=seed),
        bench.generator(),
        invert=INVERT.model_copy(update={"seed": seed}),
        sample=SAMPLE.model_copy(update={"seed": seed}),
        train=TRAIN.model_copy(update={"seeds": (seed, seed_of(1, 1))}),
        command="dinv run data",
    )
    assert content(tmp_path) == content(whole / "replicates" / "1")
    subsets = [set(json.loads((f / "data.json").read_text())["train"]["ids"]) for f in replicate_folders(whole)]
    assert len({frozenset(subset) for subset in subsets}) == 3 and all(len(subset) == 6 for subset in subsets)
    both = subsets[0] & subsets[1]
    found = [read_embeddings(folder) for folder in replicate_folders(whole)[:2]]
    vectors = [dict(zip(one.ids, one.vectors[-1], strict=True)) for one in found]
    assert both and not any(torch.equal(vectors[0][i], vectors[1][i]) for i in both), "the same image, another vector"


def test_a_run_grows_and_nothing_is_done_twice(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with run_lock(run):
        replicates(bench, run, 1)
    made = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.suffix in (".png", ".safetensors")}
    alone = record(run)
    assert "replicates" not in alone and "one subset of the training images and one draw" in alone["verdict"]["scope"]
    assert "one subset of the training images and one draw" in (run / "report.html").read_text()
    finish(bench, run, "replicates")
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert_same(run, whole)
    assert record(run)["replicates"][0]["arms"]["real"] == alone["arms"]["real"]["accuracies"]


def test_the_verdict_is_over_the_replicates(whole: Path) -> None:
    found = record(whole)
    parts = [record(folder)["arms"] for folder in (whole / "replicates" / "1", whole / "replicates" / "2")]
    draws = [found["replicates"][0]["arms"], *({a: r["accuracies"] for a, r in part.items()} for part in parts)]
    assert [one["arms"] for one in found["replicates"]] == draws
    means = {arm: [statistics.fmean(draw[arm]) for draw in draws] for arm in draws[0]}
    for arm, result in found["arms"].items():
        assert result["accuracies"] == pytest.approx(means[arm]) and result["n"] == 3
    for comparison in found["verdict"]["comparisons"]:
        paired = np.subtract(means[comparison["arm"]], means["real"])
        assert comparison["difference"] == pytest.approx(paired.mean())
        half = 6.205347 * paired.std(ddof=1) / 3**0.5  # t of 97.5 % with 2 degrees of freedom; the images only widen it
        low, high = comparison["difference"] - half, comparison["difference"] + half
        assert comparison["low"] <= max(low, -1) + 1e-6 and comparison["high"] >= min(high, 1) - 1e-6
    assert list(found["components"]) == [
        "real", "synthetic", "real+synthetic", "synthetic - real", "real+synthetic - real",
    ]  # fmt: skip
    expected = components([draw["synthetic"] for draw in draws])
    assert found["components"]["synthetic"] == {"between": expected.between, "within": expected.within}
    assert "3 replicates, each with its own subset of the training images, vectors" in found["verdict"]["scope"]
    assert sum(map(sum, found["confusion"]["real"])) == 3 * 2 * 8, "every prediction of every classifier"
    page = (whole / "report.html").read_text()
    assert "mean ± std over replicates" in page and "Where the spread comes from" in page


@pytest.mark.slow
def test_a_killed_run_with_replicates_ends_as_if_it_had_not_been(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run, killed = tmp_path / "run", 0
    for nth in (3, 25, 40, 60, 20):
        killed += kill_during(bench, run, "replicates", Kill("recorded", nth))
    assert killed >= 3
    finish(bench, run, "replicates")
    assert_same(run, whole)


def test_processes_share_a_run_with_replicates(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert race(bench, run, "replicates", 2, shared=True) == [0, 0]
    for folder, other in zip(replicate_folders(run), replicate_folders(whole), strict=True):
        drawn = [{p.relative_to(f): p.read_bytes() for p in f.glob("synthetic/*/*.png")} for f in (folder, other)]
        assert drawn[0] == drawn[1] and drawn[0]
    assert record(run)["replicates"] == record(whole)["replicates"]
    assert not verify(run).lost


def test_what_is_damaged_in_a_replicate_is_found_and_mended(whole: Path, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(whole, tmp_path / "run"))
    before = content(run)
    image = next((run / "replicates" / "2" / "synthetic").rglob("*.png"))
    image.write_bytes(image.read_bytes()[:-1])
    (run / "replicates" / "1" / "run.json").unlink()
    (run / "report.html").unlink()
    found = dinv("verify", run)
    assert found.exit_code == 4
    for name in (image.relative_to(run), "replicates/1/run.json", "report.html"):
        assert str(name) in found.stderr, found.stderr
    mended = dinv("repair", run, "--device", "cpu")
    assert mended.exit_code == 0, mended.output
    assert dinv("verify", run).exit_code == 0
    assert content(run) == before


def test_a_replicate_that_was_never_finished_is_named(bench: Bench, whole: Path, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(whole, tmp_path / "run"))
    for name in ("classifiers", "synthetic", "embeddings"):
        shutil.rmtree(run / "replicates" / "2" / name)
    for path in (run / "replicates" / "2").iterdir():
        path.unlink() if path.is_file() else None
    (run / "replicates" / "2" / ".lock").touch()
    mended = dinv("repair", run, "--device", "cpu")
    assert mended.exit_code == 0 and "invert of replicate 2" in mended.stdout
    finish(bench, run, "replicates")
    assert content(run) == content(whole)


def test_forgetting_reaches_every_replicate_and_those_to_come(bench: Bench, whole: Path, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(whole, tmp_path / "run"))
    names = [set(json.loads((f / "data.json").read_text())["train"]["ids"]) for f in replicate_folders(run)]
    gone = sorted((names[1] | names[2]) - names[0])[0]  # the run itself never saw it
    tried = json.loads(dinv("forget", run, "--source", gone, "--dry-run", "--json").stdout)
    done = json.loads(dinv("forget", run, "--source", gone, "--json").stdout)
    assert tried == done | {"dry_run": True}, "what was said is what was done"
    assert not (run / "run.json").exists(), "it spoke of classifiers that saw the image"
    for folder, own in zip(replicate_folders(run), names, strict=True):
        assert (folder / "classifiers").exists() == (gone not in own)
    stem = Path(gone).stem
    for path in run.rglob("*"):
        assert not path.is_file() or gone.encode() not in path.read_bytes(), path
        assert f"{stem}-" not in path.name or path.parent.name != Path(gone).parent.name, path
    with run_lock(run):
        replicates(bench, run, 6)
    for folder in replicate_folders(run):
        assert gone not in json.loads((folder / "data.json").read_text())["train"]["ids"]
    assert record(run)["arms"]["real"]["n"] == 6
    assert dinv("verify", run).exit_code == 0
    assert dinv("forget", run, "--source", "nobody.png").exit_code == 2


def test_held_out_images_differ_and_count_by_their_share(bench: Bench, tmp_path: Path) -> None:
    """DATA without a test split: every replicate holds out images of its own."""
    done = dinv(
        "run", bench.data / "train", "--out", tmp_path / "run", "--generator", bench.checkpoint, "--dtype", "float32",
        "--steps", 1, "--init", "random", "--variants", 1, "--inference-steps", 2, "--train-steps", 2,
        "--train-batch-size", 4, "--architecture", "resnet20", "--seeds", "0,1", "--holdout", 0.34,
        "--allow-near-duplicates", "--replicates", 3, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert len(summary["replicates"]) == 3 and set(summary["components"]) >= {"real", "synthetic - real"}
    assert "own subset of the training images, test images, vectors" in summary["verdict"]["scope"]
    tests = [frozenset(json.loads((f / "data.json").read_text())["test"]["ids"])
             for f in replicate_folders(tmp_path / "run")]  # fmt: skip
    assert len(set(tests)) > 1
    assert summary["arms"]["real"]["n"] == 3


def test_results_of_one_draw_are_what_they_were() -> None:
    """One draw: seeds are the units, as without replicates."""
    from diffusion_inversion.train.arms import ArmRun
    from diffusion_inversion.train.replicated import Replicated, verdict_over

    labels = torch.arange(10) % 2
    runs = tuple(
        ArmRun(arm, seed, score(labels, (labels + (torch.arange(10) < miss + seed)) % 2, 2), 0.0, None)
        for seed in range(3)
        for arm, miss in (("real", 3), ("synthetic", 1))
    )
    results = ArmResults(runs, labels)
    ids = tuple(map(str, range(10)))
    assert verdict_over([Replicated(Path("."), results, ids, ids)]) == results.verdict()
    assert "n=3 seeds" in results.verdict().reason


def test_a_replicate_numbers_classes_as_the_run_does(bench: Bench, tmp_path: Path) -> None:
    """A class that is added comes last in a run that was begun, and came first by its name in a replicate of later."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(bench.data / "train", data)
    asked = DataSettings(data=str(data), holdout=0.34, allow_near_duplicates=True)
    first, other = (replicate(run, number, asked, INVERT, SAMPLE, TRAIN) for number in range(2))
    with run_lock(run):
        open_splits(run, first.data)
        invert(open_splits(run).train, bench.generator(), run, INVERT)
    shutil.copytree(data / min(path.name for path in data.iterdir()), data / "0 added")
    for place, image in enumerate(sorted((data / "0 added").iterdir())):
        Image.fromarray(255 - np.asarray(Image.open(image).convert("RGB"))).save(image.with_name(f"new{place}.png"))
        image.unlink()
    with run_lock(run), run_lock(other.folder):
        names = open_splits(run, first.data).train.class_names
        assert names[-1] == "0 added" and open_replicate(run, other).train.class_names == names
        record = json.loads((other.folder / "data.json").read_text())
        invert(open_splits(other.folder).train, bench.generator(), other.folder, INVERT)
        ordered = sorted(names)  # as earlier versions numbered them in a replicate
        for part in ("train", "test"):
            record[part]["labels"] = [ordered.index(names[label]) for label in record[part]["labels"]]
        turned = json.dumps({**record, "class_names": ordered})
        Ledger(other.folder).commit("data.json", turned.encode(), note={"source": record["source"]})
        with pytest.raises(ConfigMismatchError, match="classes are numbered otherwise"):
            open_replicate(run, other)
