"""The layout names every file of a run, with the stage that makes it, and each name stands in the package once."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest
from harness import STAGES, Bench, finish, replicates

import diffusion_inversion
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.run.layout import LEDGER, ORDER, STORES, identify, ledger_files, stages_from
from diffusion_inversion.run.stages import restart
from diffusion_inversion.run.verify import discard, verify


def files(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}


def test_every_file_of_a_run_is_named_with_the_stage_that_made_it(bench: Bench, tmp_path: Path) -> None:
    """Read off the disk: what a stage leaves that was not there before it is its own."""
    run, before = tmp_path / "run", set[str]()
    for stage in STAGES:
        finish(bench, run, stage)
        made = {name: identify(name) for name in files(run) - before}
        assert made and None not in made.values(), made
        stages = {file.stage for file in made.values() if file is not None and file.stage != "every"}
        assert stages == ({"images", "invert"} if stage == "invert" else {stage}), made
        before = files(run)
    tuned = {"sample.tuning.json", "train.tuning.json", "real_fraction.json"}  # test_tune.py; the last is of old
    audited = {"audit.json", "audit.png"}  # test_copies.py of this folder
    judged = {"fidelity.json", "filter.config.json", "copies.config.json"}  # test_fidelity.py, test_copies_redrawn.py
    elsewhere = {
        *("attributes.json", "balance.json"),  # test_balance_of_a_run.py
        "adoption.json",  # test_adoption.py
        "coarseness.json",
        "export-salt.json",  # test_provenance.py
        "forgotten.json",
        "grow.config.json",
        "growth.json",  # test_grow.py
        "log.json",  # test_logs.py
        "membership.json",  # test_membership.py
        "retrieval.json",
        "strips.png",  # test_strips.py
        "time-limit.json",
        *tuned,
        *audited,
        *judged,
    }  # not asked for here
    assert set(ledger_files()) - before == elsewhere


def test_what_the_ledger_and_the_manifests_list_is_what_the_layout_says(finished: Path) -> None:
    listed = {record["unit"] for record in Manifest(finished / "manifest.jsonl").records()}
    assert listed <= set(ledger_files())
    for store in STORES:
        if store.folder in ("redrawn", "tuning", "strengths", "growth", "grown", "online"):  # not asked for here
            continue
        names = [name for unit in Manifest(finished / store.manifest).units().values() for name in unit["files"]]
        assert names and {store.kind_of(name) for name in names} == {"unit"}


def test_files_of_replicates_are_what_they_are_in_a_run(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with run_lock(run):
        replicates(bench, run, 2)
    inner = {name for name in files(run) if name.startswith("replicates/1/")}
    for name in inner:
        own, same = identify(name), identify(name.removeprefix("replicates/1/"))
        assert own is not None and same is not None
        assert (own.name, own.stage, own.kind) == (name, same.stage, same.kind)
    assert len(inner) > 20 and verify(run).foreign == ()
    (run / "replicates" / "1" / "notes.txt").touch()
    assert verify(run).foreign == ("replicates/1/notes.txt",)


def test_what_no_stage_makes_is_foreign_and_left_alone(run: Path) -> None:
    strange = ("a.txt", "embeddings/shard.safetensors", "notes/x.png", "synthetic/cat/mine.png", "run.json.bak")
    for name in strange:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    found = verify(run)
    assert found.findings == ()
    assert found.foreign == ("a.txt", strange[1], "notes/", "run.json.bak", strange[3])
    with run_lock(run):
        discard(run, found)
        restart(run, "train")
    assert all((run / name).is_file() for name in strange)


def test_a_file_of_ours_that_no_record_names_is_not_foreign(run: Path) -> None:
    state = run / "classifiers" / "state-0123456789abcdef.safetensors"
    for path in (state, run / "embeddings" / ".partial-12.safetensors", run / "synthetic/cat/x-01234567-v000.png"):
        path.touch()
    found = verify(run)
    assert found.foreign == () and {finding.kind for finding in found.findings} == {"unfinished", "unlisted"}


@pytest.mark.parametrize("stage", ["sample", "train"])
def test_restart_leaves_the_stages_before(run: Path, stage: str) -> None:
    later = stages_from(stage)  # type: ignore[arg-type]
    keep = {name for name in files(run) if (file := identify(name)) is None or file.stage not in later}
    restart(run, stage)  # type: ignore[arg-type]
    assert files(run) == keep
    assert not {"run.json", "report.html"} & keep and {"data.json", "generator.json"} <= keep


def test_the_settings_of_a_stage_are_taken_back_last() -> None:
    for stage in ORDER:
        kinds = [file.kind for file in LEDGER if file.stage == stage]
        assert kinds == sorted(kinds, key=lambda kind: kind == "settings")


def test_each_name_is_spelled_once() -> None:
    """In the room that writes the file; everything else imports it from there, or from the layout."""
    spelled: Counter[str] = Counter()
    for path in Path(diffusion_inversion.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                spelled[node.value] += 1
    plain = {file.name.rpartition("/")[2] for file in LEDGER} | {"manifest.jsonl", ".lock", ".claims"}
    wrong = {name: spelled[name] for name in plain if spelled[name] != (0 if name.endswith(".config.json") else 1)}
    assert wrong == {}
