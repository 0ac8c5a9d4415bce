"""The audit of a run: kept, shown, refused by, forgotten with and repaired like everything else in its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_line import dinv
from harness import INVERT, SAMPLE, TRAIN, Bench, write_images
from PIL import Image
from planted_copies import plant_copies
from smooth_pictures import pictures
from toy import toy_images

from diffusion_inversion.config.commands import AuditSettings
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.engine import faults
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import DataError
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.copies import audit_run, guard, images_digest, read_audit
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.report.copies import copies_section
from diffusion_inversion.run.verify import verify

FEW = AuditSettings(planted=4, device="cpu")


@pytest.fixture
def copied(run: Path) -> Path:
    """A finished run whose synthetic images are their sources."""
    with run_lock(run):
        plant_copies(run)
    return run


def test_a_run_that_copies_is_refused_and_says_how_many(copied: Path) -> None:
    splits = open_splits(copied)
    record = audit_run(copied, FEW, splits)
    assert record["copies"]["count"] == record["copies"]["n"] == len(record["pairs"]) == 24
    assert all(one["nearest"] == one["source"] for one in record["pairs"])
    assert record["by_source"]["of_their_own_source"] == 24
    with pytest.raises(DataError, match="nearer to a training image than images that copy nothing") as caught:
        guard(copied, FEW.model_copy(update={"copies": "refuse"}), splits)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 4
    guard(copied, FEW, splits)
    guard(copied, FEW.model_copy(update={"copies": "off"}), splits)


def test_an_audit_is_kept_and_not_done_again(copied: Path) -> None:
    record = audit_run(copied, FEW)
    assert json.loads((copied / "audit.json").read_text()) == record
    assert Image.open(copied / "audit.png").size[0] > 100
    assert verify(copied).findings == () and verify(copied).foreign == ()
    before = (copied / "audit.json").stat().st_mtime_ns
    assert audit_run(copied, FEW) == record
    assert (copied / "audit.json").stat().st_mtime_ns == before
    other = audit_run(copied, FEW.model_copy(update={"false_positives": 0.2}))
    assert other["false_positives"] == 0.2 and read_audit(copied, open_splits(copied)) is not None


def test_images_that_were_drawn_since_are_not_called_audited(copied: Path, bench: Bench) -> None:
    splits = open_splits(copied)
    audit_run(copied, FEW, splits)
    with run_lock(copied):
        more = SAMPLE.model_copy(update={"variants": 3})
        pipeline.sample_stage(copied, bench.generator(), more, sources=splits.train)
    assert (copied / "audit.json").exists() and read_audit(copied, splits) is None
    with run_lock(copied):
        pipeline.restart(copied, "sample")
    assert not (copied / "audit.json").exists() and not (copied / "audit.png").exists()


def test_an_audit_is_of_the_images_that_are_asked_for(run: Path, bench: Bench) -> None:
    """Others may lie there, of a call with more variants or another balance."""
    splits = open_splits(run)
    names = splits.train.class_names
    digests = []
    for variants in (2, 3, 2):
        with run_lock(run):
            more = SAMPLE.model_copy(update={"variants": variants})
            pipeline.sample_stage(run, bench.generator(), more, sources=splits.train)
        digests.append(images_digest(run, names))
    assert digests[0] == digests[2] != digests[1]


class Killed(BaseException):
    """What a test raises where a kill would end the process."""


def test_an_audit_that_was_cut_short_is_not_called_one(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it stops, what the folder holds is one of the two audits, or none."""
    quick = FEW.model_copy(update={"planted": 0})
    splits = open_splits(copied)
    kept = [audit_run(copied, quick, splits)]
    stop, stopped = 1, True
    while stopped:
        left = stop

        def on_point(_: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        killed = Path(shutil.copytree(copied, copied.parent / f"killed-{stop}"))
        monkeypatch.setattr(faults, "on_point", on_point)
        try:
            kept.append(audit_run(killed, quick.model_copy(update={"neighbours": 3}), splits))
            stopped = False
        except Killed:
            found = read_audit(killed, splits)
            kept += [found.record] if found is not None else []
        monkeypatch.setattr(faults, "on_point", None)
        stop += 5
    assert stop > 10 and all(record in (kept[0], kept[-1]) for record in kept)
    assert verify(killed).findings == ()


def test_what_is_forgotten_leaves_no_row_of_an_audit(copied: Path) -> None:
    audit_run(copied, FEW)
    victim = read_embeddings(copied).ids[0]
    assert victim in (copied / "audit.json").read_text()
    assert dinv("forget", copied, "--source", victim).exit_code == 0
    assert not (copied / "audit.json").exists() and not (copied / "audit.png").exists()
    traces = [path for path in copied.rglob("*.json*") if path.is_file() and victim in path.read_text()]
    assert traces == []


def test_a_lost_audit_is_made_again_by_repair(run: Path) -> None:
    with run_lock(run):
        audit_run(run, FEW)
    kept = {name: (run / name).read_bytes() for name in ("audit.json", "audit.png") if (run / name).exists()}
    (run / "audit.json").write_text("{}")
    assert dinv("verify", run).exit_code == 4
    assert dinv("repair", run).exit_code == 0
    assert {name: (run / name).read_bytes() for name in kept} == kept


def test_the_report_shows_the_audit_and_the_command_prints_it(copied: Path) -> None:
    said = dinv("audit", copied, "--planted", 4, "--device", "cpu")
    assert said.exit_code == 0, said.output
    assert "nearer to a training image than images that copy nothing" in said.stdout and "exact" in said.stdout
    as_json = json.loads(dinv("audit", copied, "--planted", 4, "--device", "cpu", "--json").stdout)
    assert as_json["ok"] and len(as_json["pairs"]) == 24
    splits = open_splits(copied)
    with run_lock(copied):
        results = pipeline.train_stage(copied, splits, TRAIN, "cpu")
        record = pipeline.report_stage(copied, splits, results, TRAIN, "dinv run data")
    assert record["copies"]["copies"] == as_json["copies"]
    page = (copied / "report.html").read_text()
    assert "<h2>Copies of training images</h2>" in page and "That is more than chance explains." in page
    assert "&lt;" not in page, "a section is markup"


def test_the_section_escapes_names_and_is_empty_without_an_audit(copied: Path) -> None:
    record = audit_run(copied, FEW)
    assert copies_section({}, None) == ""
    record["pairs"][0]["file"] = "<script>alert(1)</script>"
    record["notes"] = ["<b>"]
    page = copies_section({"copies": record}, b"png")
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;" in page
    assert page.startswith("<h2>") and page.count("<svg") == page.count("</svg>") == 2
    of_one = "images of replicate 0"
    assert of_one not in page and of_one in copies_section({"copies": record, "replicates": []}, b"png")


def test_run_looks_for_copies_before_it_trains(bench: Bench, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with run_lock(run):
        record = pipeline.run_all(
            run, DataSettings(data=str(bench.data)), bench.generator(), invert=INVERT, sample=SAMPLE, train=TRAIN,
            command="dinv run data", audit=FEW,
        )  # fmt: skip
    assert record["copies"]["copies"]["n"] == 24 and (run / "audit.json").is_file()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """REAL of 40 images, GENERATED of 20 that holds 5 of them under other names, and TEST of 30."""
    folder = tmp_path_factory.mktemp("data")

    def write(name: str, images: torch.Tensor) -> None:
        toys = toy_images(len(images), 32)
        write_images(folder / name, type(toys)(**{**vars(toys), "images": images}), range(len(images)))

    write("real", pictures(40, 0))
    write("made", torch.cat([pictures(40, 0)[:5], pictures(15, 2)]))
    write("test", pictures(30, 1))
    return folder


def test_any_two_data_are_audited(folders: Path, tmp_path: Path) -> None:
    real, made, test = (folders / name for name in ("real", "made", "test"))
    out = tmp_path / "out"
    found = dinv("audit", real, made, "--test", test, "--planted", 0, "--out", out, "--device", "cpu", "--json")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    by_file = {one["file"]: one["nearest"] for one in record["pairs"]}
    copies = {f"{('cat', 'dog')[row % 2]}/{row:03d}.png" for row in range(5)}
    assert copies <= by_file.keys() and all(by_file[name] == name for name in copies)
    assert json.loads((out / "audit.json").read_text())["pairs"] == record["pairs"]
    assert (out / "audit.png").is_file()
    left_out = json.loads(dinv("audit", real, made, "--planted", 0, "--device", "cpu", "--json").stdout)
    assert left_out["null"] == {"kind": "left out", "images": 40, "near_duplicates_left_out": 0}
    part = json.loads(dinv("audit", real, made, "--planted", 0, "--limit", 7, "--device", "cpu", "--json").stdout)
    assert part["copies"]["n"] == 7


def test_sources_that_are_named_otherwise_are_not_looked_for(folders: Path, tmp_path: Path) -> None:
    """REAL is the training folder itself, the run's DATA the folder above: its ids have `train/` before them."""
    made = Path(shutil.copytree(folders / "made", tmp_path / "made"))
    files = sorted(path.relative_to(made) for path in made.rglob("*.png"))
    for prefix, own in (("train/", None), ("", 5)):
        rows = [{"file_name": str(file), "source_id": f"{prefix}{file}", "class_name": file.parts[0]} for file in files]
        table = pa.Table.from_pylist([row | {"partner_id": row["source_id"]} for row in rows])
        pq.write_table(table, made / "metadata.parquet")
        asked = ["audit", folders / "real", made, "--test", folders / "test", "--planted", 0, "--device", "cpu"]
        record = json.loads(dinv(*asked, "--json").stdout)
        assert record["copies"]["count"] == 5 and record["by_source"]["sources"]["n"] == 20
        assert record["by_source"]["of_their_own_source"] == own
        assert ("5 of the 5 images are nearest to their own" in dinv(*asked).output) == (own == 5)


def test_an_audit_replaces_no_file_of_another(folders: Path, tmp_path: Path) -> None:
    """Said before images are read: GENERATED is not there."""

    def refused(out: Path) -> str:
        found = dinv("audit", folders / "real", tmp_path / "nowhere", "--out", out, "--device", "cpu")
        assert found.exit_code == (7 if out.is_file() else 2), found.output
        return str(found.output)

    out = tmp_path / "out"
    out.mkdir()
    for content in ("mine", "[]", "3", '{"title": "audit of 2024"}'):
        (out / "audit.json").write_text(content)
        assert "its audit.json is no such record" in refused(out)
        assert (out / "audit.json").read_text() == content
    (out / "audit.json").unlink()
    (out / "audit.png").write_bytes(b"mine")
    assert "its audit.png has no audit.json beside it" in refused(out)
    file = tmp_path / "a-file"
    file.touch()
    assert f"{file}: cannot be written" in refused(file)


def test_an_audit_replaces_no_record_of_a_run_and_leaves_no_older_picture(folders: Path, tmp_path: Path) -> None:
    real, test, out = folders / "real", folders / "test", tmp_path / "out"
    out.mkdir()
    (out / "data.json").touch()
    (out / "audit.json").write_text("mine")
    for made in (test, tmp_path / "nowhere"):  # said before images are read
        refused = dinv("audit", real, made, "--out", out, "--planted", 0, "--device", "cpu")
        assert refused.exit_code == 2 and f"--out {out}: a run folder" in refused.output
    assert (out / "audit.json").read_text() == "mine"
    (out / "data.json").unlink()
    (out / "audit.json").write_text('{"schema": 1, "false_positives": 0.01}')
    (out / "audit.png").write_bytes(b"of the audit before")
    one = ["--limit", 1, "--false-positives", 1e-9]
    found = dinv("audit", real, test, "--planted", 0, "--out", out, "--device", "cpu", "--json", *one)
    assert found.exit_code == 0 and json.loads(found.stdout)["pairs"] == [], found.output
    assert not (out / "audit.png").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--false-positives", "0"), "--false-positives 0"),
        (("--false-positives", "1.5"), "--false-positives 1.5"),
        (("--weights", "x.safetensors"), "Give --extractor too"),
        (("--extractor", "timm:resnet10t", "--weights", "{pickle}"), "not a state dict"),
        (("--test", "{missing}"), "missing"),
    ],
)
def test_bad_input_is_one_line(folders: Path, tmp_path: Path, options: tuple[str, str], said: str) -> None:
    pickle = tmp_path / "weights.bin"
    torch.save({"a": torch.zeros(1)}, pickle)
    given = [one.format(pickle=pickle, missing=tmp_path / "missing") for one in options]
    found = dinv("audit", folders / "real", folders / "made", *given)
    assert found.exit_code == 2 and said in found.output, found.output
    assert len([line for line in found.output.strip().splitlines() if line.startswith("error:")]) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--weights", "x.safetensors"), "Give --extractor too"),
        (("--extractor", "nothing"), "--extractor nothing: not known"),
        (("--extractor", "timm:resnet10t", "--weights", "x.safetensors"), "x.safetensors"),
    ],
)
def test_an_extractor_is_looked_for_before_images_are_read(
    run: Path, bench: Bench, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    """Images that are not there would else be what is said."""
    for found in (dinv("audit", tmp_path / "real", tmp_path / "made", *options), _without_data(run, bench, *options)):
        assert found.exit_code == 2 and said in found.output, found.output


def _without_data(run: Path, bench: Bench, *options: object) -> Any:
    """`dinv audit` of a run whose images are away."""
    moved = bench.data.with_name("moved")
    shutil.move(bench.data, moved)
    try:
        return dinv("audit", run, *options)
    finally:
        shutil.move(moved, bench.data)


def test_a_run_whose_sources_are_gone_is_not_audited(run: Path, bench: Bench, tmp_path: Path) -> None:
    found = _without_data(run, bench)
    assert found.exit_code == 2 and str(bench.data) in found.output
    assert not (run / "audit.json").exists()
    assert "not a run folder" in dinv("audit", tmp_path).output
    assert "go with REAL and GENERATED" in dinv("audit", run, "--out", tmp_path).output
