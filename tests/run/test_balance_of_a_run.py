"""`--balance` in a run folder: counts, report, other counts later, what was lost, subgroups that stay, refusals."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import dinv
from harness import Bench
from image_files import class_folders

from diffusion_inversion.config.commands import ExportSettings
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.run.export.stage import export
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.replicates import seed_of
from diffusion_inversion.run.report.sections import shares_of_parts
from diffusion_inversion.run.verify import verify
from diffusion_inversion.sample.synthetic import SyntheticStore

SETTINGS = ("--steps", 1, "--init", "random", "--inference-steps", 2, "--train-steps", 4, "--train-batch-size", 4)
SETTINGS += ("--variants", 2, "--architecture", "resnet20", "--recipe", "fast", "--no-own-size", "--copies", "off")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 cats and 2 dogs to learn from, 4 of each to test; file numbers say the site, 0 to 2 or later."""
    folder = tmp_path_factory.mktemp("uneven")
    class_folders(folder / "data" / "train", {"cat": 5, "dog": 2})
    class_folders(folder / "data" / "test", {"cat": 4, "dog": 4})
    ids = [path for path in sorted((folder / "data").rglob("*.png"))]
    lines = [f"{path.relative_to(folder / 'data').as_posix()},{'ab'[int(path.stem) > 1]}\n" for path in ids]
    (folder / "site.csv").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def made(bench: Bench, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run that balances class x site, and what it said."""
    run, site = tmp_path_factory.mktemp("balanced") / "run", data / "site.csv"
    done = dinv("run", data / "data", "--generator", bench.checkpoint, "--out", run, "--dtype", "float32", *SETTINGS,
                "--seeds", "0,1", "--attributes", site, "--balance", f"class,{site}", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    return run, json.loads(done.stdout)


def drawn(run: Path) -> Counter[str]:
    store = SyntheticStore(run, ("cat", "dog"))
    return Counter(source for source, *_ in store.sources())


def test_counts_of_each_class_and_site_are_even_and_shown(made: tuple[Path, Any]) -> None:
    run, said = made
    parts = {(one["class_name"], one["value"]): (one["real"], one["synthetic"]) for one in said["balance"]["parts"]}
    # 7 real and 14 synthetic images in three parts, of which one has no dog at site b: 7 each.
    assert parts == {("cat", "a"): (2, 5), ("cat", "b"): (3, 4), ("dog", "a"): (2, 5)}
    assert said["balance"]["attribute"] == "site" and said["balance"]["uneven"] is None
    found = drawn(run)
    assert sum(found.values()) == 14 and max(found.values()) == 3
    assert [found[f"train/dog/00{row}.png"] for row in (0, 1)] in ([2, 3], [3, 2])
    record = json.loads((run / "run.json").read_text())
    assert record["balance"] == said["balance"] and record["settings"]["sample"]["balance"].startswith("class,/")
    assert record["stages"]["sample"]["images"] == 14
    report = (run / "report.html").read_text()
    assert "Counts of real and synthetic images" in report and "Subgroups by site" in report
    assert verify(run).findings == () and verify(run).foreign == ()


def test_shares_are_those_of_a_batch_or_of_the_pool() -> None:
    parts = [{"real": 30, "synthetic": 20}, {"real": 10, "synthetic": 30}]
    half = shares_of_parts(parts, {"mixing": "batch", "real_fraction": 0.5})
    assert half == [(0.75, pytest.approx(0.5 * 0.75 + 0.5 * 0.4)), (0.25, pytest.approx(0.5 * 0.25 + 0.5 * 0.6))]
    pool = shares_of_parts(parts, {"mixing": "concatenate", "real_fraction": 0.5})
    assert [share for _, share in pool] == [pytest.approx(50 / 90), pytest.approx(40 / 90)]


def test_other_counts_keep_the_images_that_stay(made: tuple[Path, Any], bench: Bench, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made[0], tmp_path / "run"))

    def images() -> dict[Path, tuple[bytes, int]]:
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (run / "synthetic").rglob("*.png")}

    def sample(*options: object) -> None:
        done = dinv("sample", run, "--variants", 2, "--inference-steps", 2, "--dtype", "float32", *options)
        assert done.exit_code == 0, done.output

    before, first = images(), drawn(run)
    sample()
    assert drawn(run) == Counter(dict.fromkeys(first, 2)) and not (run / "balance.json").exists()
    assert images().items() >= before.items(), "what was drawn stays, to be used again"
    plain = images()
    sample("--balance", "class")
    by_class = Counter(source.split("/")[1] for source in drawn(run).elements())
    assert by_class == {"cat": 5, "dog": 9}, "5 + 5 and 2 + 9, one more or less"
    assert images().items() >= plain.items()
    export(run, ExportSettings(to="imagefolder", out=tmp_path / "images"))
    assert len(list((tmp_path / "images").rglob("*.png"))) == 14


def test_images_that_are_lost_are_drawn_again_by_the_same_plan(made: tuple[Path, Any], tmp_path: Path) -> None:
    run = Path(shutil.copytree(made[0], tmp_path / "run"))
    kept = {path: path.read_bytes() for path in run.rglob("*.png")}
    lost = next(path for path in sorted(kept) if path.name.endswith("v002.png"))
    lost.unlink()
    (run / "balance.json").unlink()
    before = json.loads((run / "run.json").read_text())
    assert dinv("repair", run).exit_code == 0
    assert {path: path.read_bytes() for path in run.rglob("*.png")} == kept
    after = json.loads((run / "run.json").read_text())
    assert (run / "balance.json").exists()
    assert all(after[part] == before[part] for part in ("balance", "arms", "subgroups", "verdict"))


def test_subgroups_stay_without_their_file(
    made: tuple[Path, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(made[0], tmp_path / "run"))
    before = json.loads((run / "run.json").read_text())
    shutil.move(data / "site.csv", tmp_path / "elsewhere.csv")
    try:
        again = ["--architecture", "resnet20", "--recipe", "fast", "--train-steps", 4, "--train-batch-size", 4]
        done = dinv("train", run, *again, "--seeds", "0,1", "--no-own-size")
        assert done.exit_code == 0, done.output
        assert json.loads((run / "run.json").read_text())["subgroups"] == before["subgroups"]
        (run / "report.html").unlink()
        assert dinv("repair", run).exit_code == 0
        assert "Subgroups by site" in (run / "report.html").read_text()
    finally:
        shutil.move(tmp_path / "elsewhere.csv", data / "site.csv")
    gone = "test/cat/000.png"
    assert gone in (run / "attributes.json").read_text()
    done = dinv("forget", run, "--source", gone)
    assert done.exit_code == 0, done.output
    kept = json.loads((run / "attributes.json").read_text())
    assert (
        gone not in kept["of_test"]
        and len(kept["of_test"] | kept["of_train"]) == 14
        and gone not in (run / "manifest.jsonl").read_text()
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--balance", "site"), "--balance site: site is balanced, but no --attributes is given; give --attributes"),
        (("--balance", "site", "--attributes", "([0-9])[.]"), "but --attributes is ([0-9])[.]; give --attributes site"),
        (
            ("--balance", "class,[.](png)", "--attributes", "[.](png)"),
            "all 8 test images have one value, png; give an attribute that tells test images apart",
        ),
        (("--balance", "nosuch/file.csv", "--attributes", "nosuch/file.csv"), "nosuch/file.csv: no such file"),
    ],
)
def test_what_cannot_be_balanced_is_refused_in_a_line_before_any_work(
    bench: Bench, data: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    done = dinv("run", data / "data", "--generator", bench.checkpoint, "--out", tmp_path / "run", *options)
    assert done.exit_code in (2, 4) and said in done.output and done.output.count("\n") == 1, done.output
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_plan_has_the_counts_and_says_what_stays_uneven(bench: Bench, data: Path) -> None:
    done = dinv(
        "plan", data / "data", "--generator", bench.checkpoint, *SETTINGS[:-2], "--seeds", 0, "--balance", "class"
    )
    assert done.exit_code == 0, done.output
    assert "real + synthetic images: cat 5 + 5, dog 2 + 9" in done.output


def test_a_replicate_that_cannot_be_balanced_is_refused_before_any_work(bench: Bench, tmp_path: Path) -> None:
    """One image is of the other site, and in the subset of the run but not in that of replicate 1."""
    class_folders(tmp_path / "data" / "train", {"cat": 8, "dog": 4})
    class_folders(tmp_path / "data" / "test", {"cat": 4, "dog": 4})
    first, second = (
        {
            *open_splits(
                tmp_path / f"{n}", DataSettings(data=str(tmp_path / "data"), limit=6, seed=seed_of(0, n))
            ).train.ids
        }
        for n in (0, 1)
    )
    rare, site = min(first - second), tmp_path / "site.csv"
    every = [path.relative_to(tmp_path / "data").as_posix() for path in sorted((tmp_path / "data").rglob("*.png"))]
    site.write_text("".join(f"{one},{'b' if one in (rare, 'test/cat/000.png') else 'a'}\n" for one in every))
    done = dinv("run", tmp_path / "data", "--generator", bench.checkpoint, "--out", tmp_path / "run", *SETTINGS,
                "--attributes", site, "--balance", site, "--limit", 6, "--replicates", 2)  # fmt: skip
    assert done.exit_code == 4 and "all 6 training images have one value, a" in done.output, done.output
    assert not list((tmp_path / "run").rglob("*.safetensors"))
