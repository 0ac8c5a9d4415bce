"""`--filter`: images that show another class are left out, drawn again or relabelled; kept, mended, shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from coloured_images import COLOURS
from harness import SAMPLE, TRAIN, Bench, Kill, assert_same, content, finish, invert, kill_during
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.cli.summary import summarise
from diffusion_inversion.config.commands import AuditSettings
from diffusion_inversion.config.fidelity import FilterSettings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import ConfigMismatchError, DataError, UsageError
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.fidelity.copies import CopyGate
from diffusion_inversion.run.fidelity.judging import Judges
from diffusion_inversion.run.fidelity.redraw import TRIES, redrawn_store
from diffusion_inversion.run.fidelity.stage import filtered, judges_for, read_fidelity
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.layout import FIDELITY_FILE, identify
from diffusion_inversion.run.report.fidelity import fidelity as section
from diffusion_inversion.run.report.pictures import ReportImages
from diffusion_inversion.run.resume import resume
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.train.choosing import Material

CPU = torch.device("cpu")
NAMES = tuple(sorted(COLOURS))


@pytest.fixture(scope="module")
def sampled(coloured: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after stage 2; not to be changed."""
    run = tmp_path_factory.mktemp("sampled") / "run"
    for stage in ("invert", "sample"):
        finish(coloured, run, stage)
    return run


@pytest.fixture(scope="module")
def whole(coloured: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that drew again, done at once; not to be changed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(coloured, run, "redrawn")
    return run


def material(run: Path) -> Material:
    store = SyntheticStore(run, NAMES)
    return Material(store.read(), store.sources())


def kept(run: Path, how: str) -> Material:
    """What is trained on."""
    made = material(run)
    real = open_splits(run).train.resized(made.synthetic.size)
    with run_lock(run):
        settings = FilterSettings.model_validate({"filter": how})
        found = filtered(run, lambda: made, settings, judges_for(run, real, settings, CPU))
    assert found is not None
    return found


def test_drop_keeps_the_number_of_each_class_and_nothing_that_failed(sampled: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sampled, tmp_path / "run"))
    before, found = material(run), kept(run, "drop")
    fidelity = read_fidelity(run)
    assert fidelity is not None and any(fidelity.failed) and not all(fidelity.failed) and all(fidelity.judged)
    assert torch.equal(found.synthetic.labels, before.synthetic.labels)
    names = [name.partition(" (")[0] for name in found.synthetic.ids]
    bad = {name for name, failed in zip(before.synthetic.ids, fidelity.failed, strict=True) if failed}
    assert bad.isdisjoint(names) and set(names) == set(before.synthetic.ids) - bad
    row_of = {name: row for row, name in enumerate(before.synthetic.ids)}
    rows = [row_of[name] for name in names]
    assert torch.equal(found.synthetic.images, before.synthetic.images[rows])
    assert found.sources == [before.sources[row] for row in rows], "what an image was made from goes along"


def test_soft_gives_those_that_failed_the_judges_answer_and_leaves_the_others(sampled: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sampled, tmp_path / "run"))
    before, found, fidelity = material(run), kept(run, "soft"), read_fidelity(run)
    assert fidelity is not None and found.synthetic.soft is not None
    targets = found.synthetic.soft.targets(before.synthetic.labels, len(NAMES))
    failed = torch.tensor(fidelity.failed)
    assert torch.allclose(targets[failed], torch.tensor(fidelity.answers, dtype=torch.float32), atol=1e-5)
    assert torch.equal(targets[~failed], F.one_hot(before.synthetic.labels[~failed], len(NAMES)).float())
    assert targets[failed].gather(1, before.synthetic.labels[failed][:, None]).mean() < 0.5, "it shows another class"
    assert found.synthetic.ids == before.synthetic.ids


def test_redraw_puts_what_passes_in_its_place(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    fidelity, store = read_fidelity(run), redrawn_store(run, NAMES)
    assert fidelity is not None
    rows = store.table("source_id", "variant", "attempt", "failed").to_pylist()
    assert len(rows) == sum(fidelity.failed), "each that failed, once"
    assert {row["attempt"] for row in rows if row["failed"]} <= {5 * TRIES}, "after five tries"
    assert all(row["attempt"] % 5 == 0 and 5 <= row["attempt"] <= 5 * TRIES for row in rows)
    before, found = material(run), kept(run, "redraw")
    assert torch.equal(found.synthetic.labels, before.synthetic.labels)
    again = {name for name in found.synthetic.ids if name.startswith("redrawn/")}
    assert len({name.partition(" (")[0] for name in again}) == sum(not row["failed"] for row in rows)
    judges = Judges(open_splits(run).train.resized(found.synthetic.size), CPU)
    origins = [source for source, _ in found.sources]
    assert not judges.opinion(found.synthetic.images, found.synthetic.labels, origins).failed.any()


def test_a_run_knows_its_files_and_says_what_it_found(whole: Path) -> None:
    assert verify(whole).findings == () and verify(whole).foreign == ()
    assert all(identify(name) is not None for name in content(whole))
    record = json.loads((whole / "run.json").read_text())
    found, fidelity = record["fidelity"], read_fidelity(whole)
    assert fidelity is not None
    assert found["failed"] == sum(fidelity.failed) == sum(one["failed"] for one in found["classes"])
    assert found["judged"] == 30 * SAMPLE.variants == sum(one["judged"] for one in found["classes"])
    assert found["drawn_again"] == found["failed"] >= found["left"] and found["judge"]["images"] == 30
    worst = [one["rival_confidence"] - one["confidence"] for one in found["examples"]]
    assert worst == sorted(worst, reverse=True) and worst
    page, summary = (whole / "report.html").read_text(), summarise(whole, record)
    assert f"{found['failed']} of {found['judged']}" in page and page.count("drawn again: ") == len(worst)
    assert all(one["file"] in page for one in found["sources"]) and "Do synthetic images show their class?" in page
    assert summary["fidelity"] == found and f"labels: {found['failed']} of {found['judged']}" in summary["text"]


def test_the_judges_confidence_weighs_losses_and_repair_has_it_again(sampled: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sampled, tmp_path / "run"))
    settings = TRAIN.model_copy(update={"mixing": "confidence", "seeds": (0,), "arms": ("real", "real+synthetic")})
    with run_lock(run):
        pipeline.train_stage(run, open_splits(run), settings, "cpu", filtering=FilterSettings(filter="drop"))
    before = content(run)
    (run / FIDELITY_FILE).write_text("{}")
    next((run / "classifiers").glob("real+synthetic-*.safetensors")).unlink()
    with run_lock(run):
        discard(run, verify(run))
        assert resume(run, "cpu") == []
    after = content(run)
    assert {name: after[name] for name in before if name.startswith("classifiers/real")} == {
        name: value for name, value in before.items() if name.startswith("classifiers/real")
    }


def test_what_is_drawn_again_beside_a_partner_of_another_class_shows_its_own(coloured: Bench, tmp_path: Path) -> None:
    """Its label is that of the source alone: to show the partner's class is as wrong as at the first drawing."""
    run = tmp_path / "run"
    settings = SAMPLE.model_copy(update={"partner": "context", "interpolation": 0.5})
    with run_lock(run):
        invert(coloured, run)
        pipeline.sample_stage(run, coloured.generator(), settings)
    found = kept(run, "redraw")
    rows = redrawn_store(run, NAMES).table("label", "partner_label", "failed").to_pylist()
    assert rows and all(row["label"] != row["partner_label"] for row in rows)
    judges = Judges(open_splits(run).train.resized(found.synthetic.size), CPU)
    origins = [sources[0] for sources in found.sources]
    assert not judges.opinion(found.synthetic.images, found.synthetic.labels, origins).failed.any()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["off", "drop", "redraw", "soft"])
def test_what_copies_goes_with_every_filter_and_what_comes_is_judged(sampled: Path, tmp_path: Path, how: str) -> None:
    """Flagged here: every third image, whatever it shows; nothing that is drawn again copies."""
    run, settings = Path(shutil.copytree(sampled, tmp_path / "run")), FilterSettings.model_validate({"filter": how})
    made, real = material(run), open_splits(run).train
    real = real.resized(made.synthetic.size)
    flagged = set(made.synthetic.ids[::3])
    pairs = [{"file": name, "view": "pixels", "score": 0.9} for name in made.synthetic.ids[::3]]
    views = {name: {"threshold": 0.0} for name in ("pixels", "parts")}
    record = {"settings": {}, "exceeds_chance": False, "pairs": pairs, "views": views}
    gate = CopyGate(real, AuditSettings(device="cpu"), record)
    judges = judges_for(run, real, settings, CPU)
    with run_lock(run):
        found = filtered(run, lambda: made, settings, judges, None, gate)
    assert found is not None
    assert torch.equal(found.synthetic.labels, made.synthetic.labels), "as many of each class"
    names = [name.partition(" (")[0] for name in found.synthetic.ids]
    assert flagged.isdisjoint(names)
    origins, drawn = [sources[0] for sources in found.sources], redrawn_store(run, NAMES).table("failed", "copied")
    assert not any(drawn["copied"].to_pylist())
    if how in ("drop", "redraw"):
        opinion = Judges(real, CPU).opinion(found.synthetic.images, found.synthetic.labels, origins)
        assert not opinion.failed.any(), "what was drawn in place of a copy shows its class"
    if how in ("off", "soft"):
        assert drawn.num_rows == len(flagged) and not any(drawn["failed"].to_pylist())
        assert len({name for name in names if name.startswith("redrawn/")}) == len(flagged)
    if how == "soft":
        opinion = Judges(real, CPU).opinion(found.synthetic.images, found.synthetic.labels, origins)
        assert found.synthetic.soft is not None and found.synthetic.confidence is not None
        targets = found.synthetic.soft.targets(found.synthetic.labels, len(NAMES))
        right = F.one_hot(found.synthetic.labels, len(NAMES)).float()
        answers = (opinion.answers / opinion.answers.sum(1, keepdim=True)).float()
        assert torch.allclose(targets, torch.where(opinion.failed[:, None], answers, right), atol=1e-4)
        own = opinion.answers.gather(1, found.synthetic.labels[:, None])[:, 0].float()
        believed = torch.where(opinion.failed, 1.0, own)
        assert torch.allclose(found.synthetic.confidence, believed, atol=1e-4), "an answer weighs as much as a label"


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_bits(coloured: Bench, sampled: Path, whole: Path, tmp_path: Path) -> None:
    """Killed in the middle of what is drawn again."""
    run = Path(shutil.copytree(sampled, tmp_path / "run"))
    assert kill_during(coloured, run, "redrawn", Kill("renamed", 6))
    there, all_of_it = (len(Manifest(one / "redrawn" / "manifest.jsonl").units()) for one in (run, whole))
    assert 0 < there < all_of_it
    finish(coloured, run, "redrawn")
    assert_same(run, whole)


def test_what_is_damaged_is_made_again_and_what_is_forgotten_is_gone(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    before = content(run)
    next((run / "redrawn").rglob("*.png")).unlink()
    (run / FIDELITY_FILE).write_text("{}")
    found = verify(run)
    assert {finding.kind for finding in found.findings} == {"missing", "damaged"}
    with run_lock(run):
        discard(run, found)
    assert resume(run, "cpu") == [] and content(run) == before
    forget(run, [open_splits(run).train.ids[0]])
    assert not (run / FIDELITY_FILE).exists() and not (run / "redrawn").exists()
    assert verify(run).findings == ()


def test_the_filter_of_a_run_stays_as_it_was(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    before = content(run)
    for how, said in (("off", "filter: was redraw, now off"), ("soft", "filter: was .redraw., now .soft.")):
        with pytest.raises(ConfigMismatchError, match=said), run_lock(run):
            pipeline.train_stage(run, open_splits(run), TRAIN, "cpu", filtering=FilterSettings(filter=how))  # type: ignore[arg-type]
    assert content(run) == before
    with run_lock(run):
        pipeline.train_stage(run, open_splits(run), TRAIN, "cpu", anew=True)
    assert not {name for name in content(run) if name.startswith(("redrawn", "fidelity", "filter"))}
    with pytest.raises(ConfigMismatchError, match="filter: was off, now drop"), run_lock(run):
        pipeline.train_stage(run, open_splits(run), TRAIN, "cpu", filtering=FilterSettings(filter="drop"))


def test_too_few_images_and_images_without_vectors_are_refused_before_the_work(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = content(run)
    with pytest.raises(DataError, match="12 training images are too few to judge labels by"), run_lock(run):
        pipeline.train_stage(run, open_splits(run), TRAIN, "cpu", anew=True, filtering=FilterSettings(filter="drop"))
    assert content(run) == before
    text = json.dumps({"kind": "prompts"})
    Ledger(run).commit("sample.config.json", text.encode())
    with pytest.raises(UsageError, match=r"--filter drop: .* has no learned vectors"):
        judges_for(run, open_splits(run).train, FilterSettings(filter="drop"), CPU)


def test_the_command_line_has_it(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for how, said in (
        ("drop", "12 training images are too few"),
        ("best", "--filter best: give off, drop, redraw or soft"),
    ):
        found = CliRunner().invoke(app, ["train", str(run), "--restart", "--filter", how])
        assert found.exit_code != 0 and said in found.stderr
    assert content(run) == content(finished), "refused before anything was deleted"


def test_names_in_the_section_are_text(whole: Path) -> None:
    record = json.loads((whole / "run.json").read_text())
    found, bad = record["fidelity"], "<b>&"
    found["classes"][0]["class_name"] = found["sources"][0]["file"] = found["examples"][0]["shows"] = bad
    found["unfit"] = [bad]
    blank = torch.zeros(3, 16, 16, dtype=torch.uint8)
    failed = [(blank, blank, None)] * len(found["examples"])
    images = ReportImages(blank[None], None, [blank[None]], torch.zeros(1, dtype=torch.int64), failed=failed)
    page = section(record, images)
    assert bad not in page and page.count("&lt;b&gt;&amp;") >= 4
    assert "images of replicate 0" not in page and "images of replicate 0" in section(
        record | {"replicates": []}, images
    )
    del record["fidelity"]
    assert section(record, images) == ""


def test_a_drawing_by_other_judges_is_drawn_anew(whole: Path, tmp_path: Path) -> None:
    """As where images were added since: what judged them is not what judges now."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    manifest = Manifest(run / "redrawn" / "manifest.jsonl")
    first = next(iter(manifest.units().values()))
    manifest.append(first | {"shared": first["shared"] | {"judge": "another"}})
    kept(run, "redraw")
    assert set(redrawn_store(run, NAMES).table("judge")["judge"].to_pylist()) != {"another"}
    assert content(run) == content(whole)
