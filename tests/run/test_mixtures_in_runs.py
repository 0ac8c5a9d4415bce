"""Images of several partners, or of class means, in a run: what is on record of them, and what goes with an image."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from harness import SAMPLE, Bench, content, invert

from diffusion_inversion.config.commands import AuditSettings
from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.copies import audit_run
from diffusion_inversion.run.few_shot.additions import open_extra
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.resume import resume
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.sample.columns import PARENTS
from diffusion_inversion.sample.sampling import stale_files
from diffusion_inversion.sample.synthetic import SyntheticStore

CLASSES = ("cat", "dog")


def drawn(bench: Bench, run: Path, **changes: Any) -> Path:
    """A run with vectors and images, without guidance."""
    settings = SampleSettings(**SAMPLE.model_dump() | {"guidance_scales": (1.0,), **changes})
    with run_lock(run):
        invert(bench, run)
        pipeline.sample_stage(run, bench.generator(), settings, sources=open_splits(run).train)
    return run


@pytest.fixture(scope="module")
def mixed(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that are mixtures of four vectors; not to be changed."""
    run = tmp_path_factory.mktemp("mixed") / "run"
    return drawn(bench, run, interpolation_kind="dirichlet", interpolation=0.5, mixture_size=4)


def parents_of(row: dict[str, Any]) -> set[str]:
    return {row["source_id"], row["partner_id"], *row["further_ids"]}


def test_metadata_names_every_partner(mixed: Path) -> None:
    rows = pq.read_table(mixed / "synthetic" / "metadata.parquet").to_pylist()
    assert len(rows) == 24 and all(len(parents_of(row)) == len(row["mixture_weights"]) == 4 for row in rows)
    assert {row["interpolation_kind"] for row in rows} == {"dirichlet"}
    assert verify(mixed).findings == ()


def test_forget_takes_images_of_every_partner_and_no_others(mixed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mixed, tmp_path / "run"))
    store = SyntheticStore(run, CLASSES)
    rows = store.table().to_pylist()
    victim = next(row["further_ids"][-1] for row in rows)
    gone = [row for row in rows if victim in parents_of(row)]
    assert any(victim not in (row["source_id"], row["partner_id"]) for row in gone)
    assert forget(run, [victim]).synthetic == len(gone) < len(rows)
    assert store.table().to_pylist() == [row for row in rows if row not in gone]


def test_an_image_is_stale_where_any_of_its_vectors_changed(mixed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mixed, tmp_path / "run"))
    embeddings, store = read_embeddings(run), SyntheticStore(run, CLASSES)
    assert stale_files(embeddings, store) == []
    manifest = Manifest(run / "synthetic" / "manifest.jsonl")
    records = manifest.records()
    first = next(record for record in records if record["event"] == "commit")
    first["columns"]["further_versions"][1][-1] = "f" * 16
    manifest.rewrite(records)
    assert stale_files(embeddings, SyntheticStore(run, CLASSES)) == [list(first["files"])[1]]


def test_a_run_of_mixtures_is_audited(mixed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mixed, tmp_path / "run"))
    splits = open_splits(run)
    # The toy's few test images would not tell copies from chance; what is looked for is which source each image has.
    found = audit_run(run, AuditSettings(false_positives=0.4, planted=0), splits)
    assert found["by_source"] is not None and found["by_source"]["sources"]["n"] == len(splits.train)


def test_repair_draws_a_mixture_again(bench: Bench, mixed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(mixed, tmp_path / "run"))
    for path in sorted((run / "synthetic").rglob("*.png"))[::5]:
        path.write_bytes(b"gone")
    with run_lock(run):
        discard(run, verify(run))
        resume(run)
    assert verify(run).findings == () and content(run) == content(mixed)


def test_shots_must_hold_every_partner(mixed: Path) -> None:
    train = open_splits(mixed).train
    hashes = dict(zip(train.ids, train.hashes, strict=True))
    rows = SyntheticStore(mixed, CLASSES).table("file_name", *PARENTS).sort_by("file_name").to_pylist()
    extra = open_extra(str(mixed), CLASSES, None)
    assert extra.made_from == tuple(frozenset(hashes[one] for one in parents_of(row)) for row in rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"interpolation_kind": "circle"},
        {"partner": "context"},
        {"rival_weight": 0.5, "unconditional": "zero", "guidance_scales": (2.0,)},
    ],
)
def test_what_holds_a_class_mean_goes_with_any_image(bench: Bench, tmp_path: Path, changes: dict[str, Any]) -> None:
    run = drawn(bench, tmp_path / "run", **changes)
    rows = SyntheticStore(run, CLASSES).table().to_pylist()
    victim = rows[0]["source_id"]
    direct = [row for row in rows if victim in (row["source_id"], row["partner_id"])]
    kept = Path(shutil.copytree(run, tmp_path / "kept"))
    done = forget(kept, [victim], keep_averages=True)
    assert (done.synthetic, done.kept_by_average) == (len(direct), len(rows) - len(direct)) and len(direct) < len(rows)
    assert forget(run, [victim]).synthetic == len(rows)
