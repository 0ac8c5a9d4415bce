"""`dinv few-shot` as a whole: what is added, what is refused before any compute, nothing twice, kills."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import dinv
from harness import Bench, command_child, forkserver
from toy import toy_images
from toy_clip import build_clip, write_coloured

from diffusion_inversion.data.datasets import load_splits
from diffusion_inversion.data.selection import Chosen
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.run.few_shot.additions import Extra
from diffusion_inversion.run.few_shot.jobs import shots_of
from diffusion_inversion.run.few_shot.outcome import FewShotResult, Row, Training, differences_of, record
from diffusion_inversion.run.few_shot.pages import as_markdown, figure
from diffusion_inversion.run.images import read_record
from diffusion_inversion.train.evaluation import compare, score
from diffusion_inversion.train.verdict import verdict

QUICK = [
    "--coop-tokens",
    3,
    "--coop-epochs",
    2,
    "--tip-epochs",
    2,
    "--tuning-steps",
    5,
    "--views",
    2,
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 training and 10 test images of each colour."""
    root = tmp_path_factory.mktemp("colours")
    write_coloured(root / "train", 12, seed=1)
    write_coloured(root / "test", 30, seed=2)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINV_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def few_shot(data: Path, clip: Path, out: Path, *options: object) -> Any:
    done = dinv("few-shot", data, "--clip", clip, "--out", out, *QUICK, "--json", *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def answers(out: Path) -> dict[str, list[int]]:
    """Predictions of every committed training, by its name."""
    units = Manifest(out / "few-shot" / "manifest.jsonl").units()
    return {
        record["ids"][0]: json.loads((out / "few-shot" / next(iter(record["files"]))).read_text())["predictions"]
        for record in units.values()
    }


def test_the_table_is_of_every_training_and_nothing_is_done_twice(colours: Path, clip: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "out", tmp_path / "more"
    write_coloured(more, 30, seed=9)
    options = ["--shots", "1,2", "--seeds", "0,1,2", "--with", f"none,more={more}"]
    found = few_shot(colours, clip, out, *options)
    assert len(found["rows"]) == 1 + 4 * 2 * 2 and len(answers(out)) == 1 + 4 * 2 * 2 * 3
    assert found["sources_unknown"] == ["more"] and found["n_test"] == 30
    rows = list(csv.DictReader((out / "few-shot.csv").read_text().splitlines()))
    assert len(rows) == len(answers(out))
    for row in found["rows"]:
        own = [float(r["accuracy"]) for r in rows if (r["method"], r["with"]) == (row["method"], row["with"])
               and r["shots"] in ("", str(row["shots"]))]  # fmt: skip
        assert own == row["accuracies"] and row["mean"] == pytest.approx(statistics.fmean(own))
        assert row["synthetic_images"] == [30 if row["with"] == "more" else 0] * row["n"]
    differences = [(d["shots"], d["arm"], d["baseline"]) for d in found["differences"]]
    assert (2, "coop + more", "coop") in differences and (1, "tip-adapter", "zero-shot") in differences
    assert len(differences) == 4 * 2 * 2
    page = (out / "few-shot.md").read_text()
    assert "coop + more" in page and "(n=3)" in page and "may hold more than the shots" in page
    assert "best" not in page and (out / "few-shot.png").read_bytes().startswith(b"\x89PNG")
    before, kept = answers(out), (out / "few-shot" / "manifest.jsonl").read_bytes()
    again = few_shot(colours, clip, out, *options)
    assert again == found and (out / "few-shot" / "manifest.jsonl").read_bytes() == kept
    few_shot(colours, clip, out, "--shots", "1,4", "--seeds", "0,1,2,3", "--with", "none")  # more of them joins
    assert {name: answers(out)[name] for name in before} == before and len(answers(out)) > len(before)
    refused = dinv("few-shot", colours, "--clip", clip, "--out", out, *QUICK, "--shots", 1, "--views", 3)
    assert refused.exit_code == 5 and "views: was 2, now 3" in refused.output
    damaged = next((out / "few-shot").glob("*.json"))
    damaged.write_text("{}")
    few_shot(colours, clip, out, *options)
    assert {name: answers(out)[name] for name in before} == before  # done again, with the same bits


def test_shots_are_those_of_per_class_and_data_seed(colours: Path) -> None:
    train = load_splits(colours).train
    for shots, seed in ((1, 0), (2, 0), (2, 7)):
        theirs = load_splits(colours, seed=seed, chosen=Chosen(per_class=shots)).train
        assert [train.ids[row] for row in shots_of(train, shots, seed)] == list(theirs.ids)
        assert {*shots_of(train, shots, seed)} < {*shots_of(train, 3, seed)}
    assert len({tuple(shots_of(train, 2, seed)) for seed in range(6)}) > 1


def test_the_test_images_choose_nothing(clip: Path, tmp_path: Path) -> None:
    chosen = []
    for seed in (2, 3):
        root = tmp_path / str(seed)
        write_coloured(root / "train", 12, seed=1)
        write_coloured(root / "test", 30, seed=seed)
        found = few_shot(root, clip, root / "out", "--shots", 4, "--methods", "tip-adapter,tip-adapter-f")
        chosen.append([row["chosen"] for row in found["rows"]])
    assert chosen[0] == chosen[1] and all(one["accuracy"] is not None for row in chosen[0] for one in row)


def test_of_a_run_only_what_was_made_from_the_shots_is_added(
    bench: Bench, run: Path, clip: Path, tmp_path: Path
) -> None:
    options = ["--methods", "classifier-tuning", "--allow-near-duplicates"]
    whole = few_shot(bench.data, clip, tmp_path / "six", "--shots", 6, "--with", f"none,ours={run}", *options)
    counts = {row["with"]: row["synthetic_images"] for row in whole["rows"]}
    assert counts == {"none": [0] * 5, "ours": [24] * 5} and whole["sources_unknown"] == []
    found = few_shot(bench.data, clip, tmp_path / "four", "--shots", 4, "--with", f"ours={run / 'synthetic'}", *options)
    content = read_record(run)
    assert content is not None
    hashes = dict(zip(content["train"]["ids"], content["train"]["hashes"], strict=True))
    train = load_splits(bench.data, allow_near_duplicates=True).train
    import pyarrow.parquet as pq

    made = pq.read_table(run / "synthetic" / "metadata.parquet").to_pylist()
    for seed, count in enumerate(found["rows"][0]["synthetic_images"]):
        shots = {train.hashes[row] for row in shots_of(train, 4, seed)}
        alone = [m for m in made if m["guidance_scale"] == 1]  # guidance leads away from the mean of all vectors
        assert count == sum({hashes[m["source_id"]], hashes[m["partner_id"]]} <= shots for m in alone) < 24
    refused = dinv("few-shot", bench.data, "--clip", clip, "--out", tmp_path / "no", *QUICK, "--shots", 1,
                   "--with", f"ours={run}", *options)  # fmt: skip
    assert refused.exit_code == 2 and "was made from the 1 shot(s) of seed 0 alone" in refused.output
    for seed in range(3):
        shutil.copytree(run, tmp_path / f"run-6-{seed}")
    each = f"ours={tmp_path}/run-{{shots}}-{{seed}}"
    found = few_shot(bench.data, clip, tmp_path / "each", "--shots", 6, "--with", each, "--seeds", "0,1,2", *options)
    assert found["rows"][0]["synthetic_images"] == [24] * 3


def test_shots_allow_what_was_made_from_them_alone() -> None:
    made_from = (frozenset[str](), frozenset({"a"}), frozenset({"a", "b"}), frozenset({"class: prompt of a GAN"}))

    def extra(sources: Any) -> Extra:
        return Extra("runs/x", ("1", "2", "3", "4"), sources, frozenset({"a", "b", "c"}), lambda: toy_images(), (0, 1))

    assert extra(made_from).rows({"a"}) == (0, 1) and extra(made_from).rows({"a", "b"}) == (0, 1, 2)
    assert extra(made_from).rows({"a", "b", "c", "d"}) == (0, 1, 2, 3)  # the whole run was made from the shots
    assert extra(None).rows({"d"}) == (0, 1, 2, 3)
    assert extra(made_from).digest((0, 1)) != extra(made_from).digest((0, 2))


def test_bad_input_is_one_line_before_any_compute(colours: Path, clip: Path, cache: Path, tmp_path: Path) -> None:
    other, leak = tmp_path / "other", tmp_path / "leak"
    write_coloured(other, 6, seed=4, names=("red", "green", "teal"))
    write_coloured(leak, 6, seed=4)
    shutil.copy(colours / "test" / "red" / "000.png", leak / "green" / "x.png")
    whole = tmp_path / "whole"
    write_coloured(whole / "train", 12, seed=1)
    write_coloured(whole / "test", 6, seed=2, names=("red", "green", "teal"))
    cases: list[tuple[Path, list[object], int, str]] = [
        (colours, ["--shots", "1,5"], 2, "shots=5: class 'blue' of .* has 4 training images"),
        (colours, ["--shots", "0"], 2, "at least one image of each class"),
        (colours, ["--methods", "coop,clip-adapter"], 2, "--methods coop,clip-adapter: give zero-shot"),
        (colours, ["--seeds", "0,1"], 2, "--seeds 0,1: give at least 3"),
        (colours, ["--template", "a photo"], 2, "has no {class}"),
        (colours, ["--shots", "2", "--coop-tokens", 39], 2, "39 learned vectors"),
        (colours, ["--shots", "2", "--with", f"{other}"], 2, "class 'teal' is none of DATA's"),
        (colours, ["--shots", "2", "--with", f"{leak}"], 4, "holds 1 test image.* exactly"),
        (colours, ["--shots", "2", "--with", "nowhere"], 2, "nowhere"),
        (colours, ["--shots", "2", "--with", "runs/{shots}"], 2, "name it: --with NAME=runs/{shots}"),
        (colours, ["--shots", "2", "--with", "none,none"], 2, "none twice"),
        (colours, ["--clip", tmp_path], 2, "not a CLIP, config.json is missing"),
        (whole, ["--shots", "2"], 4, "classes of train and test differ"),
    ]
    import re

    for data, options, code, said in cases:
        done = dinv("few-shot", data, "--clip", clip, "--out", tmp_path / "out", *QUICK, *options)
        assert done.exit_code == code and re.search(said, done.output), (options, done.output)
        assert "Traceback" not in done.output and not (tmp_path / "out" / "few-shot").exists()
    assert not list(cache.rglob("*.safetensors"))  # no image went through CLIP


def test_a_killed_call_goes_on_where_it_was(colours: Path, clip: Path, tmp_path: Path) -> None:
    options = ["--shots", "2,4", "--seeds", "0,1,2", "--methods", "coop,tip-adapter-f", "--tip-epochs", 3]
    whole, out = tmp_path / "whole", tmp_path / "out"
    few_shot(colours, clip, whole, *options)
    command = [*map(str, ["few-shot", colours, "--clip", clip, "--out", out, *QUICK, *options])]
    killed = 0
    for _ in range(2):
        before = len(answers(out)) if out.exists() else 0
        process = forkserver().Process(target=command_child, args=(command, str(tmp_path / "log"), {}))
        process.start()
        manifest = out / "few-shot" / "manifest.jsonl"
        while process.is_alive() and (not manifest.exists() or manifest.read_bytes().count(b"\n") < before + 3):
            time.sleep(0.002)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed and len(answers(out)) < len(answers(whole)) == 12
    few_shot(colours, clip, out, *options)
    assert answers(out) == answers(whole)
    commits = [r["ids"][0] for r in Manifest(out / "few-shot" / "manifest.jsonl").records() if r["event"] == "commit"]
    assert sorted(commits) == sorted(answers(whole))  # none twice
    assert (out / "few-shot.csv").read_bytes() == (whole / "few-shot.csv").read_bytes()


def row(method: str, addition: str, right: list[list[int]], labels: tuple[int, ...] = (0, 1, 0, 1, 0, 1)) -> Row:
    """A row of which `right` says, by seed, which of the test images, of these classes, were recognised."""
    classes = torch.tensor(labels)
    trainings = [
        Training(method, 0 if method == "zero-shot" else 2, seed, addition, 0, statistics.fmean(hits),
                 score(classes, torch.where(torch.tensor(hits) == 1, classes, 1 - classes), 2).balanced_accuracy,
                 torch.tensor(hits, dtype=torch.bool), classes, None)
        for seed, hits in enumerate(right)
    ]  # fmt: skip
    return Row(method, addition, trainings[0].shots, tuple(trainings))


def test_differences_are_paired_over_seeds() -> None:
    plain = [[1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]]
    better = [[1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 0, 1], [1, 1, 1, 0, 0, 1]]
    rows = [row("zero-shot", "none", [[1, 0, 0, 0, 0, 0]]), row("coop", "none", plain), row("coop", "ours", better)]
    added, learned = (one.comparison for one in differences_of(rows))
    assert (added.arm, added.baseline, learned.arm, learned.baseline) == ("coop + ours", "coop", "coop", "zero-shot")
    assert added.differences == pytest.approx((1 / 3, 1 / 3, 1 / 3)) and added.unit_error == pytest.approx(0)
    assert learned.differences == pytest.approx((1 / 6,) * 3)
    hits = {"a": torch.tensor(better, dtype=torch.bool), "b": torch.tensor(plain, dtype=torch.bool)}
    accuracies = {name: [statistics.fmean(seed) for seed in seeds] for name, seeds in (("a", better), ("b", plain))}
    expected = compare("a", accuracies, correct=hits, baseline="b")
    assert added.interval == pytest.approx(expected.interval)


def test_uneven_classes_are_judged_by_balanced_accuracy_as_a_verdict_judges_them() -> None:
    """The addition finds more of the frequent class and none of the rare one: accuracy says helps, balance harms."""
    labels = (0,) * 900 + (1,) * 100
    plain = [[1] * (600 + seed) + [0] * (300 - seed) + [1] * 60 + [0] * 40 for seed in range(5)]
    more = [[1] * (850 + seed) + [0] * (50 - seed) + [0] * 100 for seed in range(5)]
    rows = [row("coop", "none", plain, labels), row("coop", "ours", more, labels)]
    assert [r.measure for r in rows] == ["balanced accuracy"] * 2
    assert rows[0].mean == pytest.approx((602 / 900 + 6 / 10) / 2)
    (found,) = differences_of(rows)
    correct = {"real": rows[0].correct, "real+synthetic": rows[1].correct}
    accuracies = {"real": rows[0].accuracies, "real+synthetic": rows[1].accuracies}
    expected = verdict(accuracies, correct=correct, labels=torch.tensor(labels), class_names=("frequent", "rare"))
    assert (found.comparison.outcome(), expected.outcome) == ("harms", "harms")
    assert found.comparison.difference == pytest.approx((250 / 900 - 6 / 10) / 2)
    assert found.comparison.interval == pytest.approx(expected.comparisons[0].interval)
    result = FewShotResult("DATA", "a CLIP", 1000, ("frequent", "rare"), tuple(range(5)), tuple(rows), (found,), ())
    page, drawn = as_markdown(result, "dinv few-shot"), figure(result)
    assert "Test balanced accuracy in %" in page and "The test classes are uneven" in page and "-16.11 points" in page
    assert drawn.axes[0].get_ylabel() == "test balanced accuracy in %"
    assert record(result)["measure"] == "balanced accuracy" and record(result)["rows"][0]["mean"] == rows[0].mean
    even = [row("coop", "none", [[1, 0]] * 3, (0, 1))]
    result = FewShotResult("DATA", "a CLIP", 2, ("a", "b"), (0, 1, 2), tuple(even), (), ())
    assert "Test accuracy in %" in as_markdown(result, "dinv few-shot") and "measure" not in record(result)
