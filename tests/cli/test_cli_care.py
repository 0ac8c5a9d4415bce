"""The commands that look after data and runs, as a user meets them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from command_line import dinv
from harness import Bench, content
from PIL import Image

from diffusion_inversion.invert.embeddings import read_embeddings


def test_verify_then_repair(run: Path, finished: Path) -> None:
    fine = dinv("verify", run)
    assert fine.exit_code == 0 and "all as written" in fine.stdout
    files = json.loads(dinv("verify", run, "--json").stdout)["files"]
    assert f"verify: {files}/{files} files" in fine.stderr
    picture = next((run / "synthetic").rglob("*.png"))
    data = bytearray(picture.read_bytes())
    data[40] ^= 1
    picture.write_bytes(data)
    (run / "report.html").unlink()
    found = dinv("verify", run)
    assert found.exit_code == 4
    assert f"damaged     {picture.relative_to(run)}" in found.output and "missing     report.html" in found.output
    assert f"`dinv repair {run}`" in found.output
    as_json = json.loads(dinv("verify", run, "--json").stdout)
    assert not as_json["ok"] and {finding["kind"] for finding in as_json["findings"]} == {"damaged", "missing"}
    mended = dinv("repair", run)
    assert mended.exit_code == 0 and "2 findings mended" in mended.stdout
    assert dinv("verify", run).exit_code == 0
    assert content(run) == content(finished)


def test_verify_tells_unfinished_from_lost(run: Path) -> None:
    (run / "synthetic" / ".partial-1234.png").touch()
    found = dinv("verify", run)
    assert found.exit_code == 3 and "Nothing that was committed is lost" in found.output
    assert dinv("repair", run).exit_code == 0
    assert dinv("verify", run).exit_code == 0


def test_forget(run: Path) -> None:
    victim = read_embeddings(run).ids[0]
    assert dinv("forget", run).exit_code == 2
    assert dinv("forget", run, "--source", victim, "--changed").exit_code == 2
    unknown = dinv("forget", run, "--source", "nobody.png")
    assert unknown.exit_code == 2 and "no image 'nobody.png'" in unknown.output
    name = victim.rpartition("/")[2]
    assert f"near to it: {victim}" in dinv("forget", run, "--source", name).output
    before = content(run)
    tried = json.loads(dinv("forget", run, "--source", victim, "--dry-run", "--json").stdout)
    assert content(run) == before and tried.pop("dry_run")
    done = dinv("forget", run, "--source", victim, "--json")
    assert done.exit_code == 0
    summary = json.loads(done.stdout)
    assert tried == summary, "what was said is what was done"
    assert summary["vectors"] == 1 and summary["classifiers"] == 6 and summary["synthetic"] > 0
    assert victim not in read_embeddings(run).ids
    assert dinv("verify", run).exit_code == 0


def test_inspect_prints_a_table_and_writes_csv(bench: Bench, tmp_path: Path) -> None:
    fine = dinv("inspect", bench.data)
    assert fine.exit_code == 0 and "cat" in fine.stdout
    data = Path(shutil.copytree(bench.data, tmp_path / "data"))
    (data / "train" / "cat" / "torn.png").write_bytes((data / "train" / "cat" / "000.png").read_bytes()[:60])
    (data / "train" / "cat" / "=cmd.png").write_bytes(b"")
    Image.new("L", (1, 1)).save(data / "train" / "dog" / "dot.png")
    table = tmp_path / "problems.csv"
    found = dinv("inspect", data, "--csv", table)
    assert found.exit_code == 4 and "torn.png" in found.output
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"split", "file", "severity", "cause", "remedy"} == set(rows[0])
    files = {row["file"]: row["severity"] for row in rows}
    assert files["train/cat/torn.png"] == "fatal" and files["train/cat/=cmd.png"] == "fatal"
    summary = json.loads(dinv("inspect", data, "--json").stdout)
    assert not summary["ok"] and not summary["usable"] and summary["exit_code"] == 4


def test_inspect_replaces_its_own_table_and_no_other_file(tmp_path: Path) -> None:
    """A list of labels is a CSV file too, and the nearest name to give."""
    for number in range(6):
        Image.new("L", (8, 8), 40 * number).save(tmp_path / f"{number}.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "".join(f"{number}.png,{number % 2}\n" for number in range(6)))
    before = labels.read_bytes()
    refused = dinv("inspect", labels, "--csv", labels)
    assert refused.exit_code == 2 and f"--csv {labels}: exists already" in refused.stderr
    assert labels.read_bytes() == before
    assert dinv("inspect", labels, "--csv", tmp_path).exit_code == 2
    for _ in range(2):
        assert dinv("inspect", labels, "--csv", tmp_path / "found.csv").exit_code == 0
    assert (tmp_path / "found.csv").read_text().startswith("split,file,severity")


def test_options_of_inspect_that_would_mean_nothing_are_refused(bench: Bench) -> None:
    refused = dinv("inspect", bench.data, "--dtype", "float16", "--device", "cpu")
    assert refused.exit_code == 2 and "--device, --dtype: of a generator" in refused.stderr
    refused = dinv("inspect", bench.data, "--balanced")
    assert refused.exit_code == 2 and "--balanced: evens the subset of --limit; give that too" in refused.stderr


def test_doctor(tmp_path: Path) -> None:
    done = dinv("doctor", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    names = {check["name"] for check in json.loads(done.stdout)["checks"]}
    assert any("torch" in name for name in names) and any("mini" in name for name in names)
    assert "torch" in dinv("doctor").stdout
    refused = dinv("doctor", "/proc/no-run")
    assert refused.exit_code == 2 and not refused.stderr.startswith("error: ok") and "(!!)" in refused.stderr


def test_verify_names_what_is_not_of_the_run(run: Path) -> None:
    (run / "notes.txt").touch()
    done = dinv("verify", run)
    assert done.exit_code == 0 and "Not of this run, and left alone: notes.txt" in done.stdout
    assert json.loads(dinv("verify", run, "--json").stdout)["foreign"] == ["notes.txt"]


def test_stages_join_each_other(bench: Bench, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--generator", bench.checkpoint, "--dtype", "float32", "--init", "random", "--join"]
    done = dinv("invert", bench.data, "--out", out, *options, "--steps", 2, "--invert-batch-size", 2)
    assert done.exit_code == 0, done.output
    assert dinv("sample", out, "--variants", 1, "--inference-steps", 2, "--dtype", "float32", "--join").exit_code == 0
    assert dinv("train", out, "--train-steps", 2, "--train-batch-size", 4, "--join").exit_code == 0
    assert dinv("verify", out).exit_code == 0
