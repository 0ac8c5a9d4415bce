"""Sweeps: the grid, what is shared, resuming, sharing among processes, claims against their closed form."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from pathlib import Path

import pytest
from command_line import dinv
from harness import Bench, command_child, forkserver
from scipy import stats
from sweeps import sweep

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.errors import UsageError
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.stages import invert_stage, sample_stage, train_stage
from diffusion_inversion.sample.synthetic import read_synthetic
from diffusion_inversion.sweep import read_plan
from diffusion_inversion.sweep.outcome import _difference, judge
from diffusion_inversion.sweep.plan import cells
from diffusion_inversion.sweep.work import Workshop

FILE = """
title = "A small sweep"
generator = "{toy}"
[data]
data = "{data}"
[invert]
steps = 2
init = "random"
batch_size = 4
eval_draws = 1
[sample]
inference_steps = 2
interpolation = 0.0
batch_size = 4
[train]
architecture = "resnet20"
steps = 2
batch_size = 4
seeds = [0, 1, 2]
arms = ["real", "synthetic"]
[grid]
"sample.variants" = [1, 3]
"sample.noise_strength" = [0.0, 0.5]
[metrics]
k = 2
[figure]
x = "sample.noise_strength"
lines = "sample.variants"
y = ["accuracy", "precision_lite0", "fid_lite0"]
[[claims]]
says = "Noise costs accuracy"
pairs = [{{ greater = {{ at = {{ "sample.noise_strength" = 0.0, "sample.variants" = 1 }} }}, \
less = {{ at = {{ "sample.noise_strength" = 0.5, "sample.variants" = 1 }} }} }}]
"""


@pytest.fixture
def file(bench: Bench, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(FILE.format(toy=bench.checkpoint, data=bench.data))
    return path


@pytest.fixture(scope="module")
def made(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.toml").write_text(FILE.format(toy=bench.checkpoint, data=bench.data))
    done = sweep(folder / "small.toml", folder / "out", "--json")
    assert done.exit_code == 0, done.output
    return folder / "out"


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("small*") if path.suffix != ".json"}


def test_stages_are_done_once_for_all_cells_that_share_them(made: Path) -> None:
    count = {kind.name: len(list(kind.glob("*"))) for kind in (made / "results").iterdir()}
    # 4 cells: one data set, one inversion, a drawing for each noise strength, and of the classifiers 3 seeds of real
    # once and of synthetic in every cell.
    assert count == {"splits": 1, "vectors": 1, "images": 2, "classifiers": 3 + 4 * 3, "metrics": 4}
    assert all(name.endswith("-3.json") for name in (p.name for p in (made / "results" / "images").iterdir()))


def test_a_cell_is_what_the_commands_give(made: Path, bench: Bench, tmp_path: Path) -> None:
    """The cell with 1 variant, which the sweep takes from a drawing of 3, against a run of its own."""
    record = json.loads((made / "small.json").read_text())
    splits = open_splits(tmp_path, cells(read_plan(made.parent / "small.toml"))[0].data)
    invert_stage(
        tmp_path, splits, bench.generator(), InvertSettings(steps=2, init="random", batch_size=4, eval_draws=1)
    )
    drawing = SampleSettings(variants=1, inference_steps=2, interpolation=0.0, noise_strength=0.5, batch_size=4)
    sample_stage(tmp_path, bench.generator(), drawing)
    training = TrainSettings(
        architecture="resnet20", steps=2, batch_size=4, seeds=(0, 1, 2), arms=("real", "synthetic")
    )
    found = train_stage(tmp_path, splits, training, "cpu").accuracies()
    (vectors,) = (made / "vectors").iterdir()
    assert read_embeddings(vectors).digest == read_embeddings(tmp_path).digest
    rows = [row for row in record["rows"] if row["arm"] == "synthetic"]
    at = {"sample.variants": 1, "sample.noise_strength": 0.5}
    (row,) = (row for row in rows if row["at"] == at)
    assert tuple(row["accuracies"]) == found["synthetic"]
    assert row["synthetic_images"] == len(read_synthetic(tmp_path, splits.train.class_names))
    (real,) = (row for row in record["rows"] if row["arm"] == "real")
    assert (real["at"], tuple(real["accuracies"])) == ({}, found["real"])


def test_what_is_written_shows_every_cell(made: Path, bench: Bench) -> None:
    rows = list(csv.DictReader((made / "small.csv").open()))
    accuracies = [row for row in rows if row["measure"] == "accuracy"]
    assert len(accuracies) == 3 + 4 * 3
    assert {row["seed"] for row in accuracies} == {"0", "1", "2"}
    assert sum(row["measure"] == "fid_lite0" for row in rows) == 4
    assert {row["n_test"] for row in accuracies} != {""} and all(row["error"] == "" for row in accuracies)
    assert all(float(row["error"]) >= 0 for row in rows if row["measure"] == "kid_lite0")
    text = (made / "small.md").read_text()
    assert "variants 3, noise_strength 0.5" in text
    assert "± " in text and "(n=3)" in text
    assert f"Generator: toy, weights {bench.generator().hash[:12]}, float32 on cpu." in text
    page = (made / "small.html").read_text()
    assert page.count("data:image/png") == 4
    assert "Noise costs accuracy" in page
    for name in ("small.png", "small-metrics.png", "small-fid_lite0.png", "small-images.png"):
        assert (made / name).read_bytes().startswith(b"\x89PNG")


def test_the_json_has_what_any_level_needs(made: Path) -> None:
    (claim,) = json.loads((made / "small.json").read_text())["claims"]
    ((value, low, high),) = claim["differences"]
    (error,) = claim["errors"]
    assert (error["value"], error["units"]) == (value, 3) and error["images"] > 1
    t = stats.t.ppf(0.975, [2, error["images"] - 1])
    half = ((t[0] * error["unit_error"]) ** 2 + (t[1] * error["image_error"]) ** 2) ** 0.5
    assert (low, high) == (pytest.approx(max(value - half, -1)), pytest.approx(min(value + half, 1)))
    done = dinv("claims", made, "--json")
    assert done.exit_code == 0, done.output
    (judged,) = json.loads(done.stdout)["claims"]
    assert (judged["sweep"], judged["alone"]) == ("small", claim["outcome"])


def test_a_sweep_goes_on_where_it_was_and_grows(made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    file = made.parent / "small.toml"
    before = files(out)
    again = sweep(file, out)
    assert again.exit_code == 0
    assert " of " not in again.stderr.partition("error")[0].split("lite0")[0], "nothing is done again"
    # What is lost or changed is done again, to the same bits.
    for path in sorted((out / "results" / "classifiers").iterdir())[:4]:
        path.unlink()
    (next((out / "results" / "metrics").iterdir())).write_text("{}")
    assert sweep(file, out).exit_code == 0
    assert files(out) == before

    grown = tmp_path / "small.toml"
    grown.write_text(file.read_text().replace("[1, 3]", "[1, 3, 4]"))
    done = sweep(grown, out)
    assert done.exit_code == 0, done.output
    drawn = {path.name.rpartition("-")[2] for path in (out / "results" / "images").iterdir()}
    assert drawn == {"3.json", "4.json"}
    assert len(list((out / "images").iterdir())) == 2, "the fourth variants joined the first three"
    assert len(list(csv.DictReader((out / "small.csv").open()))) > len(
        list(csv.DictReader((made / "small.csv").open()))
    )


def test_processes_share_a_sweep(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--device", "cpu", "--dtype", "float32", "--join"]
    command = ["sweep", str(made.parent / "small.toml"), "--out", str(out), *options]
    workers = [
        forkserver().Process(target=command_child, args=(command, str(tmp_path / f"log-{number}"), {}))
        for number in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    different = {name for name, content in files(out).items() if content != files(made)[name]}
    assert different <= {"small.md", "small.html"}, "only the command differs"


def test_cases_autoencoding_and_a_chosen_fraction(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "cases.toml"
    text = FILE.partition("[grid]")[0].format(toy=bench.checkpoint, data=bench.data)
    file.write_text(
        text.replace('"real", "synthetic"', '"real", "synthetic", "real+synthetic"').replace("[0, 1, 2]", "[0]")
        + 'real_fraction = "auto"\n[[cases]]\nname = "plain"\nset = {}\n'
        '[[cases]]\nname = "both autoencoded"\nset = { "autoencode.train" = 16, "autoencode.test" = 8 }\n'
        '[[cases]]\nname = "more noise"\nset = { "sample.noise_strength" = 0.5, "train.arms" = ["synthetic"] }\n'
        '[metrics]\nk = 2\n[figure]\nx = "case"\ny = ["accuracy", "precision_lite0", "fid_lite0"]\n'
    )
    done = sweep(file, tmp_path / "out")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "cases.json").read_text())
    found = {(row["at"]["case"], row["arm"]): row for row in record["rows"]}
    assert len(found) == 7
    assert found["plain", "real+synthetic"]["real_fraction"] in (0.125, 0.25, 0.5, 0.75, 0.875)
    results = tmp_path / "out" / "results"
    # synthetic is trained once and tested twice; real and both also see other training images
    assert len(list((results / "classifiers").iterdir())) == 6
    assert len(list((results / "tests").iterdir())) == 3
    assert len(list((results / "autoencoded").iterdir())) == 2
    pictures = {file.name for file in (tmp_path / "out").glob("*.png")}
    assert pictures == {"cases.png", "cases-metrics.png", "cases-fid_lite0.png", "cases-images.png"}, (
        "of metrics too where places are words"
    )
    # Images that went through the VAE have the names of those that did, by which folds hold out what was made of them.
    plan = read_plan(file)
    [cell] = [one for one in cells(plan) if one.at["case"] == "both autoencoded"]
    workshop = Workshop(plan, tmp_path / "out", bench.generator(), "cpu")
    real, _ = workshop._real(cell, "real+synthetic")
    assert {one for sources in workshop.made(cell).sources for one in sources} == {*real.ids}


@pytest.mark.slow
def test_replicates_draw_everything_anew_and_keep_what_was_done(made: Path, bench: Bench, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    before = json.loads((out / "small.json").read_text())
    done = sweep(made.parent / "small.toml", out, "--replicates", 3)
    assert done.exit_code == 0, done.output
    count = {kind.name: len(list(kind.glob("*"))) for kind in (out / "results").iterdir()}
    assert count == {"splits": 3, "vectors": 3, "images": 6, "classifiers": 3 * 15, "metrics": 12}, "a third was there"
    after = json.loads((out / "small.json").read_text())
    for old, new in zip(before["rows"], after["rows"], strict=True):
        assert new["accuracies"][:3] == old["accuracies"] and len(new["accuracies"]) == 9
        means = [statistics.fmean(new["accuracies"][start : start + 3]) for start in (0, 3, 6)]
        assert new["replicates"] == pytest.approx(means) and new["n"] == 3
        assert new["std"] == pytest.approx(statistics.stdev(means))
        assert len(set(new["seeds"])) == 9
    for old, new in zip(before["metrics"], after["metrics"], strict=True):
        values = [draw["fid_lite0"]["value"] for draw in new["draws"]]
        assert values[0] == old["metrics"]["fid_lite0"]["value"] and len(set(values)) == 3
        assert new["metrics"]["fid_lite0"]["value"] == pytest.approx(statistics.fmean(values))
        assert 0 <= new["metrics"]["precision_lite0"]["low"] <= new["metrics"]["precision_lite0"]["high"] <= 1
    rows = list(csv.DictReader((out / "small.csv").open()))
    assert {row["replicate"] for row in rows if row["measure"] == "accuracy"} == {"0", "1", "2"}
    for text in ((out / "small.md").read_text(), (out / "small.html").read_text(), done.stdout):
        assert "here the spread comes from" in text
    assert "n=3 replicates" in (out / "small.md").read_text()
    assert sweep(made.parent / "small.toml", out).exit_code == 0
    assert files(out) == files(made), "without the option it is the sweep that it was"


def test_a_claim_is_judged_by_its_intervals() -> None:
    assert judge([(0.1, 0.05, 0.15), (0.2, 0.01, 0.4)]) == "holds"
    assert judge([(0.1, 0.05, 0.15), (0.2, -0.01, 0.4)]) == "too noisy to say"
    assert judge([(0.1, 0.05, 0.15), (-0.2, -0.3, -0.1)]) == "does not hold"
    assert judge([(0.1, None, None)]) == "too noisy to say"
    # The difference is 2 -+ 1.96 * sqrt(0.3^2 + 0.4^2).
    half = 1.959963984540054
    more = [{"fid": {"value": 3.0, "error": 0.3}}]
    less = [{"fid": {"value": 1.0, "error": 0.4}}]
    assert _difference(more, less, "fid", 1) == pytest.approx((2, 2 - 0.5 * half, 2 + 0.5 * half))
    assert _difference(less, more, "fid", 1) == pytest.approx((-2, -2 - 0.5 * half, -2 + 0.5 * half))
    # Three replicates: their spread counts with a t quantile, the images' errors as before.
    more = [{"fid": {"value": value, "error": 0.3}} for value in (3.0, 3.2, 3.4)]
    less = [{"fid": {"value": value, "error": 0.4}} for value in (1.0, 1.1, 1.2)]
    spread = 0.1**2 / 3  # of the differences 2, 2.1, 2.2
    reach = ((stats.t.ppf(0.975, 2) ** 2) * spread + half**2 * 0.25) ** 0.5
    assert _difference(more, less, "fid", 1) == pytest.approx((2.1, 2.1 - reach, 2.1 + reach))
    # An error that an interval cut at 1 would hide; the difference of two shares stays within -1 and 1.
    high = [{"recall": {"value": 0.95, "low": 0.75, "high": 1.0, "error": 0.1}}]
    low = [{"recall": {"value": 0.5, "low": 0.3, "high": 0.7, "error": 0.1}}]
    reach = half * 0.02**0.5
    assert _difference(high, low, "recall", 1) == pytest.approx((0.45, 0.45 - reach, 0.45 + reach))
    assert _difference(high, [{"recall": {"value": 0.0, "error": 0.3}}], "recall", 1)[2] == 1.0
    # an error from 20 groups has the quantile of 19 degrees of freedom
    of_groups = [{"fid": {"value": value, "error": 0.5, "freedom": 19}} for value in (3.0, 1.0)]
    reach = stats.t.ppf(0.975, 19) * 0.5**0.5
    assert _difference(of_groups[:1], of_groups[1:], "fid", 1) == pytest.approx((2, 2 - reach, 2 + reach))
    # two pairs: each at 97.5 %
    more, less = [{"fid": {"value": 3.0, "error": 0.3}}], [{"fid": {"value": 1.0, "error": 0.4}}]
    assert _difference(more, less, "fid", 2)[1] == pytest.approx(2 - 0.5 * 2.241402727604947)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"sample.variants" = [1, 3]', '"sample.varaints" = [1]', "varaints"),
        ('"sample.variants" = [1, 3]', '"sample.variants" = [0]', "variants"),
        ('"sample.variants" = [1, 3]', '"sample.variants" = [1, 3]\nvariants = [1]', "<section>.<setting>"),
        ('"sample.variants" = [1, 3]', '"sample.variants" = []', "no values"),
        ("steps = 2\ninit", "stepz = 2\ninit", "stepz"),
        ('x = "sample.noise_strength"', 'x = "sample.seed"', "does not vary"),
        ('"sample.noise_strength" = 0.5, "sample.variants" = 1', '"sample.noise_strength" = 0.7', "0 results"),
        ('{ "sample.noise_strength" = 0.5, "sample.variants" = 1 }', "{ }", "4 results"),
        ("[metrics]\nk = 2", "[metrics]\nk = 0", "metrics.k"),
        ('"fid_lite0"', '"fid"', "fid is not measured here"),
        ("[metrics]\nk = 2", "[metrics]\nextractor = 'nobody'", "nobody"),
        ("[grid]", "[grid]\ncase = [1]", "[[cases]]"),
        ("[invert]", "[[invert]]", "not a table"),
        ("[grid]", "[autoencode]\ntest = 9\n[grid]", "autoencode.test=9"),
        ("title = ", "title ", "not a readable TOML"),
        ('title = "A small sweep"', "", "  title: missing; add it\n"),
    ],
)
def test_a_bad_file_is_refused_before_anything_is_done(
    file: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    refused = sweep(file, tmp_path / "out")
    assert refused.exit_code == 2, refused.output
    assert message in refused.stderr
    assert not (tmp_path / "out" / "results").exists()


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    refused = sweep(tmp_path / "nowhere.toml", tmp_path / "out")
    assert refused.exit_code == 2
    assert "nowhere.toml: cannot be read (No such file or directory). Name a TOML file." in refused.stderr


def test_a_step_that_is_not_kept_is_refused_before_anything_is_done(file: Path, tmp_path: Path) -> None:
    file.write_text(file.read_text().replace("interpolation = 0.0", "interpolation = 0.0\nkept_steps = [1]"))
    refused = sweep(file, tmp_path / "out")
    assert refused.exit_code == 4
    assert "not kept" in refused.stderr
    assert not (tmp_path / "out" / "results").exists()


def test_every_committed_experiment_can_be_read() -> None:
    found = sorted((Path(__file__).parents[2] / "experiments").rglob("*.toml"))
    sweeps = [path for path in found if "title" in path.read_text().split("[")[0]]
    assert len(sweeps) >= 5
    for path in sweeps:
        assert cells(read_plan(path, "digits")), path
    with pytest.raises(UsageError, match="names no data"):
        read_plan(sweeps[0])


def test_a_metric_that_is_not_defined_is_said_to_be() -> None:
    """CMMD of features with a zero row (null in a measurement)."""
    from diffusion_inversion.errors import DataError
    from diffusion_inversion.sweep import outcome, table

    undefined: dict[str, float | None] = {"value": None, "low": None, "high": None, "error": None}
    assert table._bounded(undefined) == "undefined"
    with pytest.raises(DataError, match=r"cmmd: a claim is about it.*take the claim out"):
        outcome._difference([{"cmmd": undefined}], [{"cmmd": undefined}], "cmmd", 1)
    assert outcome._over_replicates("cmmd", [undefined])["value"] is None
