"""`--copies redraw`: what copies a training image is drawn again or left out; kept, mended, forgotten, shown."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import dinv
from harness import SAMPLE, TRAIN, Bench, Kill, assert_same, content, finish, kill_during
from PIL import Image

from diffusion_inversion.config.commands import AuditSettings
from diffusion_inversion.config.fidelity import OFF
from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import ConfigMismatchError, DataError, UsageError
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.copies import audit_run
from diffusion_inversion.run.export.images import SyntheticImages
from diffusion_inversion.run.few_shot.additions import open_extra
from diffusion_inversion.run.fidelity.copies import CopyGate, copy_gate, recorded_copies
from diffusion_inversion.run.fidelity.copies_record import redrawn_picture
from diffusion_inversion.run.fidelity.redraw import TRIES, redrawn_store, stronger
from diffusion_inversion.run.fidelity.stage import filtered
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.layout import identify
from diffusion_inversion.run.resume import resume
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.sample.columns import COLUMNS
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.train.choosing import Material

REDRAW = AuditSettings(planted=0, device="cpu")
PLANTED = 12  # the first variant of each source


@pytest.fixture(scope="module")
def planted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after stage 2 whose first variants are their sources; not to be changed."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("planted") / "run"))
    with run_lock(run):
        pipeline.restart(run, "train")
        splits = open_splits(run)
        store = SyntheticStore(run, splits.train.class_names)
        pixels = dict(zip(splits.train.ids, splits.train.resized(store.read().size).images, strict=True))
        rows = [row for row in store.table(*COLUMNS).to_pylist() if row["variant"] == 0]
        store.remove({row.pop("file_name") for row in rows})
        for row in rows:
            del row["class_name"]
        store.commit(torch.stack([pixels[row["source_id"]] for row in rows]), rows)
        store.finish(SAMPLE.variants)
    return run


@pytest.fixture(scope="module")
def whole(planted: Path, bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training makes of it, done at once; not to be changed."""
    run = Path(shutil.copytree(planted, tmp_path_factory.mktemp("whole") / "run"))
    finish(bench, run, "uncopied")
    return run


def material(run: Path) -> Material:
    store = SyntheticStore(run, open_splits(run).train.class_names)
    return Material(store.read(), store.sources())


def trained_on(run: Path, gate: CopyGate | None) -> Material:
    made = material(run)
    with run_lock(run):
        found = filtered(run, lambda: made, OFF, None, None, gate)
    return made if found is None else found


def gate_of(run: Path) -> CopyGate:
    with run_lock(run):
        gate = copy_gate(run, REDRAW, open_splits(run), material(run).synthetic.size)
    assert gate is not None
    return gate


def test_planted_copies_are_found_and_drawn_again(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    gate, before = gate_of(run), material(run).synthetic
    flagged = gate.flagged(before.ids)
    copies = [name.endswith("-v000.png") for name in before.ids]
    assert flagged[torch.tensor(copies)].all() and sum(copies) == PLANTED
    found = trained_on(run, gate)
    assert torch.equal(found.synthetic.labels, before.labels), "as many of each class"
    names = [name.partition(" (")[0] for name in found.synthetic.ids]
    again = torch.tensor([name.startswith("redrawn/") for name in names])
    assert again.any() and not again[~flagged].any()
    bad = {name for name, one in zip(before.ids, flagged.tolist(), strict=True) if one}
    assert bad.isdisjoint(names)
    assert not gate.copied(found.synthetic.images[again]).any()
    rows = redrawn_store(run, before.class_names).table(
        "source_id", "variant", "attempt", "copied", "failed", "noise_strength", "interpolation"
    )
    assert rows.num_rows == len(bad), "each that copies, once"
    for row in rows.to_pylist():
        tries = row["attempt"] // 5
        assert 1 <= tries <= TRIES and not row["failed"] and (tries == TRIES or not row["copied"])
        level = round((row["noise_strength"] - SAMPLE.noise_strength) / 0.1)
        assert level in (tries - 1, tries, tries + 1), "one level farther after each try that copied"
        assert row["interpolation"] == pytest.approx(stronger(SAMPLE, level).interpolation)


def test_a_run_knows_its_files_and_says_what_it_drew_again(whole: Path) -> None:
    assert verify(whole).findings == () and verify(whole).foreign == ()
    assert all(identify(name) is not None for name in content(whole))
    record = json.loads((whole / "run.json").read_text())["copies"]
    found = record["redrawn"]
    assert found["flagged"] == record["copies"]["count"] >= PLANTED
    assert found["passed"] + found["left"] == found["flagged"] and sum(found["tries"]) == found["passed"]
    for key in ("flagged", "passed", "left"):
        assert sum(one[key] for one in found["classes"]) == found[key]
    assert all(one["flagged"] == one["passed"] + one["left"] for one in found["classes"])
    page = (whole / "report.html").read_text()
    assert f"{found['passed']} of {found['flagged']} passed" in page and "What was drawn in their place" in page
    assert all(one["again"] in page for one in found["examples"]) and found["examples"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [Kill("recorded", 8), Kill("renamed", 6)], ids=str)
def test_a_killed_run_goes_on_with_the_same_bits(
    bench: Bench, planted: Path, whole: Path, tmp_path: Path, kill: Kill
) -> None:
    """Killed in the middle of what is drawn again."""
    run = Path(shutil.copytree(planted, tmp_path / "run"))
    assert kill_during(bench, run, "uncopied", kill)
    there, all_of_it = (len(Manifest(one / "redrawn" / "manifest.jsonl").units()) for one in (run, whole))
    assert 0 < there < all_of_it
    finish(bench, run, "uncopied")
    assert_same(run, whole)


def test_what_is_damaged_is_made_again_and_what_is_forgotten_is_gone(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    before = content(run)
    next((run / "redrawn").rglob("*.png")).unlink()
    (run / "audit.json").write_text("{}")
    found = verify(run)
    assert {finding.kind for finding in found.findings} == {"missing", "damaged"}
    with run_lock(run):
        discard(run, found)
    assert resume(run, "cpu") == [] and content(run) == before
    victim = open_splits(run).train.ids[0]
    assert victim in (run / "audit.json").read_text()
    forget(run, [victim])
    assert not (run / "audit.json").exists() and not (run / "redrawn").exists()
    assert [path for path in run.rglob("*.json*") if path.is_file() and victim in path.read_text()] == []
    assert verify(run).findings == () and recorded_copies(run) == REDRAW.model_copy(update={"device": "auto"})


def test_two_copies_of_one_image_are_shown_beside_each_other(whole: Path) -> None:
    """As variants of one source are, which is the usual case."""
    record = json.loads((whole / "run.json").read_text())["copies"]["redrawn"]
    first, second = record["examples"][:2]
    images = open_splits(whole).train
    alike = {**record, "examples": [first, {**second, "nearest": first["nearest"]}]}
    shown = redrawn_picture(whole, images, alike)
    assert shown is not None
    top = np.asarray(Image.open(io.BytesIO(shown)).convert("RGB"))[:96]  # the row of training images
    width = top.shape[1] // 2
    assert np.array_equal(top[:, : width - 6], top[:, width : 2 * width - 6]) and top[:, : width - 6].std() > 0


def pixels(png: bytes) -> bytes:
    """What a PNG shows, whatever it says of itself."""
    return Image.open(io.BytesIO(png)).convert("RGB").tobytes()


def test_what_leaves_the_house_copies_nothing(whole: Path, tmp_path: Path) -> None:
    gate, images = gate_of(run := Path(shutil.copytree(whole, tmp_path / "run"))), SyntheticImages.of(whole)
    flagged = {pair["file"] for pair in gate.record["pairs"]}
    found = {one.name: pixels(one.png) for one in images}
    left = json.loads((run / "run.json").read_text())["copies"]["redrawn"]["left"]
    assert len(found) == len(material(run).synthetic) - left
    copied = {name: pixels((run / "synthetic" / name).read_bytes()) for name in flagged}
    assert images.again <= flagged and images.again
    assert all(found[name] == pixels((run / "redrawn" / name).read_bytes()) for name in images.again)
    assert not any(found.get(name) == png for name, png in copied.items())
    others = {"made_from": gate.record["made_from"] | {"synthetic": "of as many others"}}
    Ledger(run).commit("audit.json", json.dumps(gate.record | others).encode())
    with pytest.raises(UsageError, match="not all images were compared"):
        SyntheticImages.of(run)
    stricter = {"settings": gate.record["settings"] | {"false_positives": 0.3}}
    Ledger(run).commit("audit.json", json.dumps(gate.record | stricter).encode())
    with pytest.raises(UsageError, match="the last audit was made with other settings"):
        SyntheticImages.of(run)
    Ledger(run).drop("audit.json")
    with pytest.raises(UsageError, match="not all images were compared"):
        SyntheticImages.of(run)


def test_few_shot_learners_get_what_an_export_has(whole: Path) -> None:
    extra = open_extra(str(whole), ("cat", "dog"), None)
    images, exported = extra.read(), {one.name: one for one in SyntheticImages.of(whole)}
    assert [one.partition(" ")[0] for one in extra.identities] == list(images.hashes)
    assert sorted(images.ids) == sorted(exported)
    for name, label, image in zip(images.ids, images.labels.tolist(), images.images, strict=True):
        assert image.permute(1, 2, 0).numpy().tobytes() == pixels(exported[name].png), name
        assert label == exported[name].label


def test_how_copies_were_treated_stays_as_it_was(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    before = content(run)
    with pytest.raises(ConfigMismatchError, match="copies: was redraw, now report"), run_lock(run):
        pipeline.train_stage(run, open_splits(run), TRAIN, "cpu", copies=REDRAW.model_copy(update={"copies": "report"}))
    other = REDRAW.model_copy(update={"false_positives": 0.3})
    with pytest.raises(ConfigMismatchError, match=r"false_positives: was 0\.01, now 0\.3"), run_lock(run):
        pipeline.train_stage(run, open_splits(run), TRAIN, "cpu", copies=other)
    with run_lock(run):
        pipeline.train_stage(run, open_splits(run), TRAIN, "cpu")  # as the run did before: nothing is done again
    assert {name: one for name, one in content(run).items() if not name.startswith("audit")} == {
        name: one for name, one in before.items() if not name.startswith("audit")
    }
    with run_lock(run):
        pipeline.restart(run, "train")
    assert recorded_copies(run) is None and not (run / "redrawn").exists()


def test_a_generator_that_copies_everything_is_drawn_again_to_nothing(planted: Path, tmp_path: Path) -> None:
    """Whatever it draws is too near: each image at each of five tries."""
    run = Path(shutil.copytree(planted, tmp_path / "run"))
    gate = gate_of(run)
    named = [
        {"file": name, "view": "pixels", "score": 0.0, "class": "", "nearest": ""}
        for name in material(run).synthetic.ids
    ]
    views = {name: view | {"threshold": 1e9} for name, view in gate.record["views"].items()}
    everything = replace(gate, record=gate.record | {"pairs": named, "views": views})
    with pytest.raises(DataError, match="every synthetic image copies a training image, and so does") as caught:
        trained_on(run, everything)
    assert "\n" not in str(caught.value)
    rows = redrawn_store(run, gate.real.class_names).table("attempt", "copied", "noise_strength").to_pylist()
    assert len(rows) == len(named) and all(row["copied"] and row["attempt"] // 5 == TRIES for row in rows)
    assert min(row["noise_strength"] for row in rows) >= SAMPLE.noise_strength + 0.5
    one = replace(everything, record=everything.record | {"pairs": [p for p in named if p["file"].startswith("a")]})
    assert one.key == everything.key


def test_a_class_of_copies_alone_is_left_without_images(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(planted, tmp_path / "run"))
    gate, before = gate_of(run), material(run).synthetic
    gone = before.class_names[0]
    named = [
        {"file": name, "view": "pixels", "score": 0.0, "class": gone, "nearest": ""}
        for name, label in zip(before.ids, before.labels.tolist(), strict=True)
        if label == 0
    ]
    views = {name: view | {"threshold": 1e9} for name, view in gate.record["views"].items()}
    found = trained_on(run, replace(gate, record=gate.record | {"pairs": named, "views": views}))
    assert set(found.synthetic.labels.tolist()) == set(before.labels.tolist()) - {0}
    assert len(found.synthetic) == len(before) - len(named)
    assert f"{len(named)} synthetic images that copy" in (said := capsys.readouterr().err)
    assert f"no image is left of {gone}" in said


def test_nothing_flagged_changes_nothing(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    gate = gate_of(run)
    clean = replace(gate, record=gate.record | {"pairs": []})
    assert torch.equal(trained_on(run, clean).synthetic.images, material(run).synthetic.images)
    assert not (run / "redrawn").exists()


def test_images_without_vectors_cannot_be_drawn_again(planted: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(planted, tmp_path / "run"))
    audit_run(run, REDRAW)
    Ledger(run).commit("sample.config.json", json.dumps({"kind": "prompts"}).encode())
    with pytest.raises(UsageError, match=r"--copies redraw: .* has no learned vectors"):
        copy_gate(run, REDRAW, open_splits(run), 16)


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.1, 0.5, 0.8])
def test_each_level_is_farther_from_the_source_and_never_nearer_to_a_partner(alpha: float) -> None:
    settings = SampleSettings(interpolation=alpha, noise_strength=0.2)
    found = [stronger(settings, level) for level in range(7)]
    assert found[0] == settings
    noise, mixed = ([getattr(one, name) for one in found] for name in ("noise_strength", "interpolation"))
    assert noise == pytest.approx([0.2 + 0.1 * level for level in range(7)])
    assert mixed == sorted(mixed) and max(mixed) == max(alpha, 0.5 if alpha >= 0 else alpha)
    other = SampleSettings(interpolation=alpha, partner="other-class")
    assert {stronger(other, level).interpolation for level in range(7)} == {alpha}, "its label stays as it was"


def test_a_rate_alone_does_not_ask_for_copies(planted: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(planted, tmp_path / "run"))
    done = dinv("train", run, "--false-positives", 0.02, "--device", "cpu")
    assert done.exit_code == 2 and "--false-positives: copies are not looked for here" in done.output
