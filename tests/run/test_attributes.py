"""`--attributes`: subgroups in run.json, report and terminal; refusals before any work; repair; the headline."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import dinv
from harness import INVERT, SAMPLE, TRAIN, Bench
from image_files import save
from report_pages import RUN, page, words

from diffusion_inversion.cli.summary import summarise
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.run.attributes import (
    Attributes,
    add_subgroups,
    attributes_of,
    keep_attributes,
    kept_attributes,
    read_attributes,
)
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.replicates import replicate as numbered
from diffusion_inversion.run.report import ReportImages
from diffusion_inversion.run.verify import verify
from diffusion_inversion.train.arms import ArmResults, ArmRun
from diffusion_inversion.train.evaluation import score
from diffusion_inversion.train.replicated import Replicated

LABELS = torch.arange(60) % 2
IDS = tuple(f"i{row}" for row in range(60))
SITE = Attributes("site", {image_id: "ab"[row >= 20] for row, image_id in enumerate(IDS)}, {})


def replicate(**wrong: tuple[range, ...]) -> Replicated:
    """Three seeds of each arm, which did not recognise the test images of these ranges."""
    runs = []
    for arm, ranges in wrong.items():
        missed = torch.tensor([any(row in one for one in ranges) for row in range(60)])
        found = score(LABELS, torch.where(missed, 1 - LABELS, LABELS), 2)
        runs += [ArmRun(arm.replace("_", "+"), seed, found, 1.0, None) for seed in range(3)]
    return Replicated(Path(), ArmResults(tuple(runs), LABELS, ("a", "b")), (), IDS)


def record_of(**wrong: tuple[range, ...]) -> Any:
    record: Any = copy.deepcopy(RUN)
    record["verdict"] |= {"outcome": "helps", "headline": "helps"}
    add_subgroups(record, [replicate(**wrong)], SITE)
    return record


LOWERED = {"real": (range(0, 8), range(20, 35)), "real_synthetic": (range(0, 19),)}  # a: 60 to 5 %, b: 62.5 to 100 %


def test_a_gain_that_lowers_the_worst_subgroup_is_called_so(tmp_path: Path) -> None:
    record = record_of(**LOWERED)
    found = record["subgroups"]
    assert (found["attribute"], found["baseline"], found["worst"]) == ("site", "real", "a")
    assert found["lowered_by"] == ["real+synthetic"]
    assert record["verdict"]["headline"] == "helps, but lowers the worst subgroup, site = a"
    assert (
        "; real+synthetic lowers the worst subgroup, site = a (real+synthetic - real: -55.00 points"
        in (record["verdict"]["sentence"])
    )
    (of_a,) = found["parts"][0]["comparisons"]
    assert of_a["difference"] == pytest.approx(-0.55) and of_a["high"] < 0
    grey = torch.full((1, 3, 4, 4), 90, dtype=torch.uint8)
    shown = words(page(record, ReportImages(grey, grey, grey[:, None], torch.tensor([1])), tmp_path))
    for part in (
        "Subgroups by site",
        "a, the worst 20 real 60.0 % (",
        "real+synthetic 5.0 % (",
        "not measured -55.0 points (",
        "points), lower b 40 real 62.5 % (",
        "It is lowered by real+synthetic.",
    ):
        assert part in shown, part
    text = summarise(tmp_path, record)["text"]
    assert "of each site found:" in text and "a  real 60.0 %, real+synthetic 5.0 % (20 test images, the worst)" in text


def test_a_gain_that_lowers_none_or_only_the_better_one_is_left_as_it_is() -> None:
    record = record_of(real=(range(0, 15),), real_synthetic=(range(20, 40),))
    assert record["subgroups"]["worst"] == "a" and record["subgroups"]["lowered_by"] == []
    assert record["subgroups"]["parts"][1]["comparisons"][0]["outcome"] == "harms"
    assert record["verdict"]["headline"] == "helps" and record["verdict"]["sentence"] == RUN["verdict"]["sentence"]


def test_an_arm_that_the_verdict_does_not_rest_on_is_named_in_the_sentence_alone() -> None:
    record = record_of(real=(range(0, 12), range(20, 40)), synthetic=(range(0, 20), range(20, 40)), real_synthetic=())
    assert record["subgroups"]["lowered_by"] == ["synthetic"] and record["verdict"]["headline"] == "helps"
    assert "; synthetic lowers the worst subgroup, site = a" in record["verdict"]["sentence"]


def test_train_shows_subgroups_and_repair_shows_them_again(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    tested = json.loads((run / "data.json").read_text())["test"]["ids"]
    listed = tmp_path / "site.csv"
    listed.write_text("".join(f"{image_id},{'ab'[row % 2]}\n" for row, image_id in enumerate(tested)))
    settings = json.loads((run / "train.config.json").read_text())
    options = [
        "--architecture",
        settings["architecture"],
        "--train-steps",
        2,
        "--train-batch-size",
        4,
        "--seeds",
        "0,1",
    ]
    done = dinv("train", run, *options, "--no-own-size", "--attributes", listed, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads((run / "run.json").read_text())
    assert json.loads(done.stdout)["subgroups"] == record["subgroups"]
    found = record["subgroups"]
    assert found["attribute"] == "site" and [part["value"] for part in found["parts"]] == ["a", "b"]
    assert sum(part["images"] for part in found["parts"]) == len(tested)
    for arm, of_arm in record["arms"].items():
        mean = sum(part["images"] * part["accuracy"][arm]["mean"] for part in found["parts"]) / len(tested)
        assert mean == pytest.approx(of_arm["mean"])
    assert "Subgroups by site" in (run / "report.html").read_text()
    before = (run / "run.json").read_bytes()
    (run / "report.html").unlink()
    assert dinv("repair", run).exit_code == 0 and verify(run).findings == ()
    assert (run / "run.json").read_bytes() == before and "Subgroups by site" in (run / "report.html").read_text()


def test_a_training_image_of_the_same_name_does_not_say_what_a_test_image_is(tmp_path: Path) -> None:
    """Of `--test FOLDER` both have an a/000.png; earlier versions put the training image's value on record for it."""
    said: dict[str, dict[str, str]] = {}
    for part, order in (("train", "mf"), ("test", "fm")):
        said[part] = {f"{'ab'[row % 2]}/{row:03d}.png": order[row // 2 % 2] for row in range(12)}
        for name in said[part]:
            save(tmp_path / part / name)
        lines = "".join(f"{name},{value}\n" for name, value in said[part].items())
        (tmp_path / part / "metadata.csv").write_text(f"file_name,sex\n{lines}")
    run = tmp_path / "run"
    splits = open_splits(run, DataSettings(data=str(tmp_path / "train"), test=str(tmp_path / "test")))
    assert set(splits.test.ids) == set(splits.train.ids)
    found = read_attributes(DataSettings(data=str(tmp_path / "train"), test=str(tmp_path / "test")), "sex", splits.test)
    assert (found.of_test, found.of_train) == (said["test"], said["train"])
    keep_attributes(run, found, splits.test.ids, splits.train.ids)
    assert kept_attributes(run) == attributes_of(run, splits, None) == found
    for how, expected in (("given", found), ("holdout", Attributes("sex", said["train"], said["train"]))):
        old = {"given": "sex", "values": said["train"]}
        data = json.loads((run / "data.json").read_text()) | {"how": how}
        for name, content in (("attributes.json", old), ("data.json", data)):
            Ledger(run).commit(name, json.dumps(content).encode(), note={})
        assert attributes_of(run, splits, None) == expected, how


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        (r"\.(png)", "all 4 test images have one value, png; give an attribute that tells test images apart"),
        ("site", "--attributes site: no file, no column of data"),
        (
            r"^0(1)",
            "10 of 20 images of data have no value (a/000.png, a/002.png, a/004.png, ...); give every image one",
        ),
    ],
)
def test_attributes_that_tell_nothing_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Bench, attribute: str, said: str
) -> None:
    for row in range(20):
        save(tmp_path / "data" / "ab"[row % 2] / f"{row:03d}.png")
    monkeypatch.chdir(tmp_path)
    done = dinv("run", "data", "--generator", bench.checkpoint, "--out", "run", "--attributes", attribute)
    assert done.exit_code in (2, 4) and said in done.output and done.output.count("\n") == 1, done.output
    assert not list(Path("run").rglob("*.safetensors"))


def test_forgetting_reaches_what_the_run_keeps_of_images_of_its_replicates(bench: Bench, tmp_path: Path) -> None:
    """`--limit` keeps some images out of replicate 0, whose folder has the attributes of all that are tested."""
    data = DataSettings(data=str(bench.data / "train"), limit=4, holdout=0.5)
    plans = [numbered(tmp_path / "run", number, data, INVERT, SAMPLE, TRAIN) for number in range(2)]
    run, ids = plans[0].folder, []
    for plan in plans:
        with run_lock(plan.folder):
            splits = open_splits(plan.folder, plan.data)
        ids.append({*splits.train.ids, *splits.test.ids})
    gone = min(ids[1] - ids[0])
    keep_attributes(run, Attributes("site", dict.fromkeys(ids[0] | ids[1], "a"), {}), ids[0] | ids[1], ())
    Ledger(run).commit("membership.json", b"{}")
    forget(run, [gone])
    kept = kept_attributes(run)
    assert kept is not None and kept.of_test.keys() == (ids[0] | ids[1]) - {gone}
    assert gone not in (run / "attributes.json").read_text() and not (run / "membership.json").exists()
