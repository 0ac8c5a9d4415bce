"""`dinv retrieve`: what is found equals a search over the whole pool; what must not be used is not; nothing is lost."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from coloured_images import COLOURS, SIDE, picture, write_data, write_pool
from command_line import dinv
from contents import content, rows_of
from image_files import save
from PIL import Image

from diffusion_inversion.config.sampling import RetrieveSettings
from diffusion_inversion.data.images import square
from diffusion_inversion.engine import faults
from diffusion_inversion.generator.device import resolve_device
from diffusion_inversion.measure.extractors.catalog import open_extractor
from diffusion_inversion.measure.extractors.extractor import extract
from diffusion_inversion.run.status import Part, status


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool")


def command(data: Path, pool: Path, out: Path, *more: object) -> list[object]:
    return ["retrieve", data, "--pool", pool, "--out", out, "--block-size", 7, "--root", out.parent / "root", *more]


def expected(data: Path, pool: Path, k: int) -> dict[str, tuple[str, int]]:
    """Pool id => (training id, rank), by another way: the whole matrix and a loop over pairs."""
    extractor = open_extractor("lite0", resolve_device("cpu"))
    train, others = sorted((data / "train").rglob("*.png")), sorted(pool.rglob("*.png"))
    train.sort(key=lambda path: path.relative_to(data).as_posix())
    others.sort(key=lambda path: path.relative_to(pool).as_posix())

    def features(paths: list[Path]) -> np.ndarray:
        images = torch.stack([square(np.array(Image.open(path)), SIDE) for path in paths])
        rows = extract(extractor, images).double().numpy()
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    cosines = features(train) @ features(others).T
    best: dict[str, tuple[float, str, int]] = {}
    for query, row in enumerate(cosines):
        for rank, place in enumerate(np.argsort(-row, kind="stable")[:k]):
            name, source = others[place].relative_to(pool).as_posix(), train[query].relative_to(data).as_posix()
            best[name] = min(best.get(name, (9.0, "", 0)), (-row[place], source, rank))
    return {name: (source, rank) for name, (_, source, rank) in best.items()}


def test_what_is_found_equals_a_search_over_the_whole_pool(data: Path, pool: Path, tmp_path: Path) -> None:
    done = dinv(*command(data, pool, tmp_path / "out", "--k", "2,5", "--json"))
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)["sets"]
    for k in (2, 5):
        wanted, run = expected(data, pool, k), tmp_path / "out" / f"k{k}"
        rows = rows_of(run)
        assert {row["pool_id"]: (row["source_id"], row["variant"]) for row in rows} == wanted
        assert summary[str(k)]["images"] == len(rows) == len(wanted) and summary[str(k)]["asked_for"] == 12 * k
        for row in rows:
            assert row["method"] == "retrieval" and row["class_name"] == row["source_id"].split("/")[1]
            assert row["licence"] == ("CC0" if int(row["pool_id"][2:4]) % 2 else "")
            assert row["generator"] == "pool" and len(row["generator_hash"]) == 64
            stored = np.asarray(Image.open(run / "synthetic" / row["file_name"]))
            original = np.array(Image.open(pool / row["pool_id"]))
            assert np.array_equal(stored, square(original, SIDE).permute(1, 2, 0).numpy())
        counts = {name: sum(row["class_name"] == name for row in rows) for name in COLOURS}
        assert summary[str(k)]["classes"] == counts
        assert sum(summary[str(k)]["licences"].values()) == len(rows)


def test_the_same_command_does_nothing_twice_and_blocks_make_no_difference(
    data: Path, pool: Path, tmp_path: Path
) -> None:
    first = command(data, pool, tmp_path / "out", "--k", 3)
    assert dinv(*first).exit_code == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "out").rglob("[!.]*.*")}
    assert dinv(*first).exit_code == 0
    assert before == {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "out").rglob("[!.]*.*")
    }
    other = dinv(*command(data, pool, tmp_path / "other", "--k", 3, "--block-size", 40))
    assert other.exit_code == 0, other.output
    found = [{row["pool_id"]: row["source_id"] for row in rows_of(tmp_path / name / "k3")} for name in ("out", "other")]
    assert found[0] == found[1]
    refused = dinv(*first, "--batch-size", 5)
    assert refused.exit_code == 5 and "batch_size: was 64, now 5" in refused.output
    assert dinv(*first, "--batch-size", 5, "--restart").exit_code == 0
    save(pool / "new.png", picture(COLOURS["red"], 1))
    grown = dinv(*first, "--batch-size", 5)
    assert grown.exit_code == 5 and "pool.images: was 40, now 41" in grown.output


@pytest.mark.parametrize("point", faults.POINTS)
def test_killed_and_resumed_equals_uninterrupted(
    data: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    from diffusion_inversion.run import retrieval

    monkeypatch.setattr(retrieval, "UNIT", 4)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert dinv(*command(data, pool, whole, "--k", "1,3")).exit_code == 0
    passed = 0

    def on_point(name: str) -> None:
        nonlocal passed
        passed += name == point
        if passed in (9, 14) and name == point:
            raise SystemExit(99)  # nothing below catches it

    monkeypatch.setattr(faults, "on_point", on_point)
    codes = [dinv(*command(data, pool, killed, "--k", "1,3")).exit_code for _ in range(3)]
    assert codes == [99, 99, 0]
    assert content(killed) == content(whole)
    assert all(dinv("verify", killed / name).exit_code == 0 for name in ("k1", "k3"))


def test_test_images_in_the_pool_are_refused_or_left_out(data: Path, pool: Path, tmp_path: Path) -> None:
    planted = np.asarray(Image.open(data / "test" / "red" / "0.png"))
    save(pool / "exact.png", planted)
    Image.fromarray(planted).resize((64, 64), Image.Resampling.BICUBIC).save(pool / "near.jpg", quality=90)
    save(pool / "known.png", np.asarray(Image.open(data / "train" / "green" / "1.png")))
    save(pool / "zz.png", np.asarray(Image.open(pool / "0" / "00.png")))  # a copy of another
    refused = dinv(*command(data, pool, tmp_path / "out", "--k", 3))
    assert refused.exit_code == 4 and refused.stderr.splitlines()[-1].startswith("error: pool pool: 2 of its images")
    assert "exact.png, near.jpg. Take them out" in refused.stderr and "--drop-test-duplicates" in refused.stderr
    assert not list((tmp_path / "out").rglob("*.png")) and not (tmp_path / "root").exists(), "nothing was computed"
    done = dinv(*command(data, pool, tmp_path / "out", "--k", 3, "--drop-test-duplicates", "--json"))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["sets"]["3"]
    assert found["left_out"] == {"test images": 2, "training images": 1, "forgotten": 0, "copies": 1}
    taken = {row["pool_id"] for row in rows_of(tmp_path / "out" / "k3")}
    assert not taken & {"exact.png", "near.jpg", "known.png", "zz.png"}


def test_bad_input_is_one_line_before_any_compute(data: Path, pool: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    save(tmp_path / "broken" / "a.png")
    (tmp_path / "broken" / "b.png").write_bytes(b"no image")
    for options, code, message in (
        (("--k", 41), 2, "--k 41: pool has 40 images"),
        (("--k", 0), 2, "numbers of at least 1 that ascend"),
        (("--k", "25,10"), 2, "numbers of at least 1 that ascend"),
        (("--k", "10,10"), 2, "numbers of at least 1 that ascend"),
        (("--image-size", 32), 2, "larger than the 16 px"),
        (("--extractor", "vgg"), 2, "--extractor vgg: not known"),
        (("--pool", tmp_path / "none"), 2, "no such folder"),
        (("--pool", tmp_path / "broken", "--k", 1), 4, "b.png"),
    ):
        done = dinv(*command(data, pool, tmp_path / "out", *options))
        assert done.exit_code == code and message in done.output, done.output
        assert not list((tmp_path / "out").rglob("*.png")) and not (tmp_path / "root").exists()
    save(tmp_path / "one" / "red.png", picture(COLOURS["red"], 7000))
    few = dinv(*command(data, tmp_path / "one", tmp_path / "few", "--k", 1))
    assert few.exit_code == 4 and "pool one: no image is left for green" in few.stderr.splitlines()[-1]
    assert not list((tmp_path / "few").rglob("*.png"))


def test_a_restart_that_is_refused_deletes_nothing(data: Path, pool: Path, tmp_path: Path) -> None:
    """Each refusal that comes after the pool was opened, the last of them after the search."""
    filled = command(data, pool, tmp_path / "out", "--k", 1)
    assert dinv(*filled).exit_code == 0
    run = tmp_path / "out" / "k1"
    assert dinv("train", run, "--architecture", "resnet20", "--train-steps", 1).exit_code == 0
    before = content(run)
    for name in ("leaking", "broken", "copies", "one"):
        save(tmp_path / name / "red.png", picture(COLOURS["red"], 7000))
    save(tmp_path / "leaking" / "test.png", np.asarray(Image.open(data / "test" / "red" / "0.png")))
    (tmp_path / "broken" / "b.png").write_bytes(b"no image")
    shutil.copy(tmp_path / "copies" / "red.png", tmp_path / "copies" / "twin.png")
    for options, message in (
        (("--image-size", 32), "larger than the 16 px"),
        (("--pool", tmp_path / "leaking"), "1 of its images are test images"),
        (("--pool", tmp_path / "broken"), "b.png"),
        (("--pool", tmp_path / "copies", "--k", "1,2"), "copies has 1 images once"),
        (("--pool", tmp_path / "one"), "no image is left for green"),
    ):
        done = dinv(*filled, *options, "--restart")
        assert done.exit_code in (2, 4) and message in done.output, done.output
        assert content(run) == before, message
    assert dinv(*filled, "--batch-size", 5, "--restart").exit_code == 0
    assert not (run / "run.json").exists(), "classifiers of other images are gone"


def test_help_states_the_real_defaults() -> None:
    text = " ".join(dinv("retrieve", "--help-all").stdout.replace("│", " ").split())
    fields = RetrieveSettings.model_fields
    for name in ("k", "extractor", "batch_size", "block_size"):
        default = fields[name].default
        shown = default[0] if isinstance(default, tuple) else default
        assert re.search(rf"--{name.replace('_', '-')} .*?\[default: {shown}\]", text), name


def test_images_of_data_that_come_and_go(data: Path, pool: Path, tmp_path: Path) -> None:
    """The set is always what a fresh call finds; an image that was forgotten takes what was found for it along."""
    out = command(data, pool, tmp_path / "out", "--k", 3)
    save(pool / "twin.png", np.asarray(Image.open(data / "train" / "red" / "2.png")))
    assert dinv(*out).exit_code == 0
    run = tmp_path / "out" / "k3"
    save(data / "train" / "red" / "new.png", picture(COLOURS["red"], 9000))
    stale = dinv("train", run, "--train-steps", 1)
    assert stale.exit_code == 2 and "Run the same `dinv retrieve` command again" in stale.output
    assert dinv(*out).exit_code == 0
    assert dinv(*command(data, pool, tmp_path / "fresh", "--k", 3)).exit_code == 0
    key = ("pool_id", "source_id", "variant", "label")
    found = [sorted(tuple(row[k] for k in key) for row in rows_of(tmp_path / name / "k3")) for name in ("out", "fresh")]
    assert found[0] == found[1]
    gone = dinv("forget", run, "--source", "train/red/2.png", "--json")
    assert gone.exit_code == 0, gone.output
    left = {path.name for path in (run / "synthetic").rglob("*.png")}
    assert json.loads(gone.stdout)["synthetic"] == len(rows_of(tmp_path / "fresh" / "k3")) - len(left)
    assert dinv("train", run, "--train-steps", 1).exit_code == 2
    again = dinv(*out, "--json")
    assert again.exit_code == 0, again.output
    left_out = json.loads(again.stdout)["sets"]["3"]["left_out"]
    assert (left_out["training images"], left_out["forgotten"]) == (0, 1), "its twin in the pool does not come back"
    assert {row["source_id"] for row in rows_of(run)}.isdisjoint({"train/red/2.png"})
    assert "twin.png" not in {row["pool_id"] for row in rows_of(run)}


def test_trained_like_a_run_and_called_by_its_method(data: Path, pool: Path, tmp_path: Path) -> None:
    assert dinv(*command(data, pool, tmp_path / "out", "--k", 4)).exit_code == 0
    run = tmp_path / "out" / "k4"
    training = ["train", run, "--architecture", "resnet20", "--train-steps", 2, "--train-batch-size", 4]
    done = dinv(*training, "--json")
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["arms"]) == ["real", "retrieved", "real+retrieved"]
    record = json.loads((run / "run.json").read_text())
    assert record["images"] == "retrieved" and "generator" not in record and "inversion_curve" not in record
    assert record["found"]["k"] == 4 and record["found"]["images"] == len(rows_of(run))
    assert {c["arm"] for c in record["verdict"]["comparisons"]} == {"retrieved", "real+retrieved"}
    page = (run / "report.html").read_text()
    assert "Did retrieved images help" in page and "CC0" in page and "Loss of the inversion" not in page
    assert "none is named" in page
    count, found = len(rows_of(run)), status(run)
    assert count < 4 * 12, "an image that is near to several is there once"
    assert found.parts == [Part("images", count, count), Part("classifiers", 15, 15)] and found.state == "finished"
    before = content(run)
    assert dinv(*training).exit_code == 0 and content(run) == before
    assert dinv("verify", run).exit_code == 0
    measured = dinv("metrics", data / "train", run / "synthetic", "--root", tmp_path / "root", "--json")
    assert measured.exit_code == 0, measured.output
    picture_file = next((run / "synthetic").rglob("*.png"))
    picture_file.write_bytes(picture_file.read_bytes()[:-9])
    (run / "report.html").write_text("changed")
    mended = dinv("repair", run)
    assert mended.exit_code == 0 and "The same `dinv retrieve` command" in mended.output
    assert dinv(*command(data, pool, tmp_path / "out", "--k", 4)).exit_code == 0
    assert dinv("repair", run).exit_code == 0
    assert content(run) == before
