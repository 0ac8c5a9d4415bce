"""`measure`: images or feature files in, a record and a table out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import class_folders, save

from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.measure.measuring import Measurement, measure
from diffusion_inversion.measure.metrics.frechet import fid
from diffusion_inversion.measure.metrics.kernel import kid

NAMES = ("fid", "fid_infinity", "kid", "cmmd", "precision", "recall", "density", "coverage")


def feature_file(path: Path, n: int, shift: float = 0.0, scale: float = 1.0, seed: int = 0) -> Path:
    rows = np.random.default_rng(seed).standard_normal((n, 6)) * scale + shift
    np.save(path, rows.astype(np.float32))
    return path


def test_two_feature_files(tmp_path: Path) -> None:
    real, generated = feature_file(tmp_path / "a.npy", 90), feature_file(tmp_path / "b.npy", 70, 0.5, seed=1)
    found = measure(real, generated)
    x, y = (torch.from_numpy(np.load(path)) for path in (real, generated))
    assert tuple(found.metrics) == tuple(f"{name}_npy" for name in NAMES)
    assert found.metrics["fid_npy"].value == pytest.approx(fid(x, y), rel=1e-9)
    assert found.metrics["kid_npy"].value == pytest.approx(kid(x, y), rel=1e-9)
    assert (found.n_real, found.n_generated, found.dim, found.k, found.extractor) == (90, 70, 6, 5, "npy")
    assert found.kid_subsets["size"] == 70
    for name, value in found.metrics.items():
        assert value.low is not None and value.high is not None
        assert value.low <= value.value <= value.high, name
    assert found.resampled == "90 real images and 70 generated images are resampled"
    assert found.resampled in found.table()
    assert "KID" in found.warnings[0]
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["metrics"]["fid_npy"]["value"] == found.metrics["fid_npy"].value
    assert measure(real, generated) == found
    assert all(name in found.table() for name in found.metrics)
    assert found.kid_subsets["std"] is not None and "no spread" not in found.table()


def test_subsets_that_are_all_images_have_no_spread(tmp_path: Path) -> None:
    found = measure(feature_file(tmp_path / "a.npy", 40), feature_file(tmp_path / "b.npy", 40, 0.5, seed=1))
    assert found.kid_subsets["std"] is None and found.kid_subsets["size"] == 40
    assert found.kid_subsets["mean"] == pytest.approx(found.metrics["kid_npy"].value)
    assert "over 100 subsets of 40 images: " in found.table() and "all of both sides: no spread" in found.table()


def test_a_zero_row_takes_cmmd_alone(tmp_path: Path) -> None:
    real, generated = feature_file(tmp_path / "a.npy", 90), feature_file(tmp_path / "b.npy", 70, 0.5, seed=1)
    rows = np.load(generated)
    rows[3] = 0
    np.save(generated, rows)
    found = measure(real, generated)
    x, y = (torch.from_numpy(np.load(path)) for path in (real, generated))
    assert found.metrics["fid_npy"].value == pytest.approx(fid(x, y), rel=1e-9)
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["metrics"]["cmmd_npy"] == dict.fromkeys(("value", "low", "high", "error", "freedom"))
    assert all(record["metrics"][f"{name}_npy"]["value"] is not None for name in NAMES if name != "cmmd")
    assert "CMMD is not defined: 0 real and 1 generated rows are zero" in found.warnings[-1]
    assert "undefined" in found.table() and "nan" not in found.table()


def test_features_are_kept_below_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINV_DATA", str(tmp_path / "elsewhere"))
    class_folders(tmp_path / "real", {"cat": 6, "dog": 6})
    measure(tmp_path / "real", tmp_path / "real", k=3, root=tmp_path / "root")
    assert len(list((tmp_path / "root" / "features").iterdir())) == 1 and not (tmp_path / "elsewhere").exists()


def test_features_that_cannot_be_kept_are_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HOME that cannot be written: a cache saves time, and that is all."""
    class_folders(tmp_path / "real", {"cat": 6, "dog": 6})
    (tmp_path / "file").touch()
    found = measure(tmp_path / "real", tmp_path / "real", k=3, cache=tmp_path / "file" / "features")
    assert found.metrics["precision_lite0"].value == 1
    assert "warning: features are not kept" in capsys.readouterr().err


def test_the_second_argument_is_the_generated_one(tmp_path: Path) -> None:
    """Generated images that all lie close together inside the real ones: precise, without recall."""
    real = feature_file(tmp_path / "a.npy", 90)
    collapsed = feature_file(tmp_path / "b.npy", 90, scale=0.01, seed=1)
    metrics = measure(real, collapsed).metrics
    assert metrics["precision_npy"].value == 1
    assert metrics["recall_npy"].value == 0


@pytest.fixture(scope="module")
def images_measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Measurement]:
    folder = tmp_path_factory.mktemp("images")
    class_folders(folder / "real", {"cat": 9, "dog": 7})
    class_folders(folder / "fake", {"dog": 8, "cat": 6, "owl": 1})
    return folder, measure(folder / "real", folder / "fake", k=3, cache=folder / "cache")


def test_two_folders_with_lite0(images_measured: tuple[Path, Measurement]) -> None:
    _, found = images_measured
    assert tuple(found.metrics) == tuple(f"{name}_lite0" for name in NAMES)
    assert found.dim == 1280
    assert len(found.weights_sha256) == 64
    assert {name: (c.n_real, c.n_generated) for name, c in found.per_class.items()} == {"cat": (9, 6), "dog": (7, 8)}
    assert any("owl" in warning for warning in found.warnings)
    assert "cat" in found.table()


def test_per_class_distances_are_of_the_class_of_that_name(images_measured: tuple[Path, Measurement]) -> None:
    """Labels are numbered otherwise on the two sides."""
    folder, found = images_measured
    for side in ("real", "fake"):
        shutil.copytree(folder / side / "dog", folder / f"{side}-dog" / "dog")
    alone = measure(folder / "real-dog", folder / "fake-dog", k=1, cache=folder / "cache")
    assert alone.metrics["fid_lite0"].value == pytest.approx(found.per_class["dog"].fid, rel=1e-5)


def test_features_of_one_side_and_images_of_the_other(images_measured: tuple[Path, Measurement]) -> None:
    from safetensors.torch import load_file

    folder, found = images_measured
    cached = [load_file(path)["features"] for path in sorted((folder / "cache").iterdir())]
    np.save(folder / "real.npy", next(rows for rows in cached if len(rows) == 16).numpy())
    again = measure(folder / "real.npy", folder / "fake", k=3, cache=folder / "cache")
    assert {n: e.value for n, e in again.metrics.items()} == pytest.approx(
        {n: e.value for n, e in found.metrics.items()}, rel=1e-9
    )
    assert any("taken to be of lite0" in warning for warning in again.warnings)
    np.save(folder / "other.npy", np.ones((16, 9)) * np.arange(16)[:, None])
    for wrong, k, said in (("other.npy", 3, "9 numbers an image"), ("real.npy", 15, "15 image.* at least 16")):
        with pytest.raises(DataError, match=said):
            measure(folder / wrong, folder / "fake", k=k, cache=folder / "none")
    assert not (folder / "none").exists(), "it is said before images go through the network"


def test_variants_are_resampled_by_the_source_that_the_run_recorded(tmp_path: Path) -> None:
    """And each source with them where the real images are the sources; a file of groups says the same."""
    stream = np.random.default_rng(0)
    for row in range(12):
        look = stream.integers(0, 256, (8, 8, 3), np.uint8)
        save(tmp_path / "real" / "cat" / f"{row}.png", look)
        for variant in range(4):
            noise = stream.integers(-20, 21, look.shape)
            save(tmp_path / "fake" / "cat" / f"{row}-v{variant}.png", (look + noise).clip(0, 255).astype(np.uint8))
    rows = [{"file_name": f"cat/{r}-v{v}.png", "source_id": f"cat/{r}.png"} for r in range(12) for v in range(4)]
    recorded = [{**row, "partner_id": row["source_id"], "class_name": "cat"} for row in rows]
    options: dict[str, Any] = {"k": 2, "cache": tmp_path / "cache"}
    alone = measure(tmp_path / "real", tmp_path / "fake", **options)
    assert (alone.units_real, alone.units_generated) == (12, 48)

    pq.write_table(pa.Table.from_pylist(recorded), tmp_path / "fake" / "metadata.parquet")
    found = measure(tmp_path / "real", tmp_path / "fake", **options)
    assert (found.units_real, found.units_generated) == (12, 12)
    assert "12 groups of 48 generated images" in found.table() and "12 of them on both sides at once" in found.table()
    for name in ("fid_lite0", "kid_lite0", "cmmd_lite0"):
        assert found.metrics[name].value == pytest.approx(alone.metrics[name].value, rel=1e-8, abs=1e-12)
        assert found.metrics[name].error != pytest.approx(alone.metrics[name].error, rel=1e-3)

    (tmp_path / "fake" / "metadata.parquet").unlink()
    (tmp_path / "groups").write_text("".join(f"{row['file_name']}\t{row['source_id']}\n" for row in rows[::-1]))
    again = measure(tmp_path / "real", tmp_path / "fake", generated_groups=tmp_path / "groups", **options)
    assert again.metrics == found.metrics

    prompted = [{**row, "source_id": "cat: a cat", "partner_id": "cat: a cat", "class_name": "cat"} for row in rows]
    pq.write_table(pa.Table.from_pylist(prompted), tmp_path / "fake" / "metadata.parquet")
    assert measure(tmp_path / "real", tmp_path / "fake", **options).metrics == alone.metrics
    # Those that began at a real image go with it, whatever the prompt was.
    guided = [
        {**row, "source_id": "cat: a cat", "partner_id": old["source_id"]}
        for row, old in zip(prompted, rows, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(guided), tmp_path / "fake" / "metadata.parquet")
    assert measure(tmp_path / "real", tmp_path / "fake", **options).metrics == found.metrics

    # Real images that are named by a group of their own take what was made from them along.
    pq.write_table(pa.Table.from_pylist(recorded), tmp_path / "fake" / "metadata.parquet")
    (tmp_path / "patients").write_text("".join(f"cat/{row}.png\tpatient {row // 2}\n" for row in range(12)))
    grouped = measure(tmp_path / "real", tmp_path / "fake", real_groups=tmp_path / "patients", **options)
    assert (grouped.units_real, grouped.units_generated) == (6, 6)
    assert "6 of them on both sides at once" in grouped.resampled
    # A run knows its sources by their pixels: REAL may be the folder above.
    (tmp_path / "fake").rename(tmp_path / "synthetic")
    real = load_images(tmp_path / "real")
    record = {"train": {"ids": [f"train/{image_id}" for image_id in real.ids], "hashes": real.hashes}}
    Ledger(tmp_path).commit("data.json", json.dumps(record).encode())
    above = [{**row, "source_id": f"train/{row['source_id']}"} for row in recorded]
    pq.write_table(pa.Table.from_pylist(above), tmp_path / "synthetic" / "metadata.parquet")
    assert measure(tmp_path / "real", tmp_path / "synthetic", **options).metrics == found.metrics


def test_a_test_image_of_a_source_s_name_does_not_go_with_its_variants(tmp_path: Path) -> None:
    class_folders(tmp_path / "real", {"cat": 12})
    class_folders(tmp_path / "run" / "synthetic", {"cat": 24})
    rows = [(f"cat/{row:03d}.png", f"cat/{row // 2:03d}.png") for row in range(24)]
    recorded = [{"file_name": a, "source_id": b, "partner_id": b, "class_name": "cat"} for a, b in rows]
    pq.write_table(pa.Table.from_pylist(recorded), tmp_path / "run" / "synthetic" / "metadata.parquet")
    real = load_images(tmp_path / "real")
    for hashes, said in ((real.hashes, ", 12 of them on both sides at once"), (("other",) * 12, "are resampled")):
        record = {"train": {"ids": real.ids, "hashes": hashes}}
        Ledger(tmp_path / "run").commit("data.json", json.dumps(record).encode())
        found = measure(tmp_path / "real", tmp_path / "run" / "synthetic", k=2, cache=tmp_path / "cache")
        assert said in found.resampled and found.units_generated == 12
        assert ("both sides" in found.resampled) == (hashes == real.hashes)


def test_the_order_of_the_rows_makes_no_difference(tmp_path: Path) -> None:
    real, generated = feature_file(tmp_path / "a.npy", 90), feature_file(tmp_path / "b.npy", 60, 0.5, seed=1)
    (tmp_path / "groups").write_text("".join(f"source {row % 15}\n" for row in range(60)))
    order = np.random.default_rng(2).permutation(60)
    np.save(tmp_path / "c.npy", np.load(generated)[order])
    (tmp_path / "moved").write_text("".join(f"source {row % 15}\n" for row in order))
    found = measure(real, generated, generated_groups=tmp_path / "groups").metrics
    again = measure(real, tmp_path / "c.npy", generated_groups=tmp_path / "moved").metrics
    for name, one in found.items():
        assert one.error is not None
        assert (again[name].value, again[name].error) == pytest.approx((one.value, one.error), rel=1e-6), name


def test_a_file_of_groups_that_does_not_fit(tmp_path: Path) -> None:
    good, groups = feature_file(tmp_path / "good.npy", 20), tmp_path / "groups"
    with pytest.raises(UsageError, match="no such file"):
        measure(good, good, generated_groups=groups)
    groups.write_text("a\nb\n")
    with pytest.raises(DataError, match="2 groups for 20 images"):
        measure(good, good, generated_groups=groups)
    marked = tmp_path / "marked"
    marked.write_bytes(b"\xef\xbb\xbf" + "\n".join("aabb" * 5).encode())
    assert measure(good, good, generated_groups=marked, k=1).units_generated == 2
    groups.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        measure(good, good, generated_groups=groups)
    class_folders(tmp_path / "real", {"cat": 6})
    groups.write_text("cat/000.png\ta\n")
    with pytest.raises(DataError, match=r"no group for 5 image\(s\), such as cat/001\.png"):
        measure(tmp_path / "real", good, real_groups=groups, k=1, cache=tmp_path / "cache")
    (tmp_path / "real" / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"metadata\.parquet: cannot be read"):
        measure(tmp_path / "real", good, k=1, cache=tmp_path / "cache")


def test_images_of_two_sizes_are_warned_of(tmp_path: Path) -> None:
    class_folders(tmp_path / "a", {"cat": 6})
    for row in range(6):
        save(tmp_path / "b" / "cat" / f"{row}.png", np.full((12, 12, 3), 20 * row, np.uint8))
    found = measure(tmp_path / "a", tmp_path / "b", k=2, cache=tmp_path / "cache")
    assert any("8 px" in warning and "12 px" in warning for warning in found.warnings)
    equal = measure(tmp_path / "a", tmp_path / "b", k=2, size=8, cache=tmp_path / "cache")
    assert not any("12 px" in warning for warning in equal.warnings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones((4, 3), np.int64), r"\(4, 3\) int64"),
        (np.ones(4), r"\(4,\) float64"),
        (np.array([[1.0, np.nan]] * 9), "NaN"),
        (np.array([{"a": 1}], dtype=object), "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_feature_file_that_holds_something_else(tmp_path: Path, content: object, message: str) -> None:
    good, bad = feature_file(tmp_path / "good.npy", 20), tmp_path / "bad.npy"
    if isinstance(content, bytes):
        bad.write_bytes(content)
    else:
        np.save(bad, content, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as error:
        measure(good, bad)
    assert str(bad) in str(error.value)


def test_wrong_arguments(tmp_path: Path) -> None:
    good = feature_file(tmp_path / "good.npy", 20)
    for settings in ({"k": 0}, {"confidence": 1.0}, {"batch_size": 0}, {"device": "abacus"}):
        with pytest.raises(UsageError):
            measure(good, good, **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no such file"):
        measure(good, tmp_path / "none.npy")
    class_folders(tmp_path / "real", {"cat": 6})
    with pytest.raises(UsageError):
        measure(tmp_path / "real", tmp_path / "none", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # nothing was computed
    with pytest.raises(DataError, match="at least 21"):
        measure(good, good, k=20)
