"""How much of each image its vector keeps: true by hand, the worst first, measured once for as long as it holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import SAMPLE, Bench, finish, write_images
from toy import toy_images

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.data.images import resize, to_model_range
from diffusion_inversion.engine import state as unit_state
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.manifest import NAME
from diffusion_inversion.errors import DataError
from diffusion_inversion.generator.features import load_lite0, profile
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run import reconstructions
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.layout import LIKENESS_FILE
from diffusion_inversion.run.reconstructions import (
    REPORT_ROWS,
    WORST_ROWS,
    Likeness,
    read_likeness,
    read_reconstructions,
    shown_rows,
)
from diffusion_inversion.run.resume import resume
from diffusion_inversion.run.stages import sample_stage, sources_of
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.sample.sampling import reconstruct


def measured(run: Path) -> Likeness:
    found = read_likeness(run, read_embeddings(run))
    assert found is not None
    return found


def test_distances_are_those_of_lite0_profiles_in_units_of_the_sources_variety(run: Path, bench: Bench) -> None:
    embeddings, sources = read_embeddings(run), open_splits(run).train
    row_of = {image_id: row for row, image_id in enumerate(sources.ids)}
    ordered = sources.images[[row_of[i] for i in embeddings.ids]]
    lite0 = load_lite0()
    theirs = profile(lite0, to_model_range(ordered)).double()
    ours = profile(lite0, to_model_range(reconstruct(embeddings, bench.generator(), SAMPLE))).double()
    pairs = [(theirs[i] - theirs[j]).norm() for i in range(len(theirs)) for j in range(i)]
    expected = (ours - theirs).norm(dim=1) / torch.stack(pairs).mean()
    found = measured(run)
    assert found.sources == 12 and list(found.distances) == list(embeddings.ids)
    assert list(found.distances.values()) == pytest.approx(expected.tolist(), rel=0.02)  # bfloat16 where that is fast
    assert min(expected) > 0.3, "vectors of two steps keep little"


def test_an_image_that_is_kept_is_near_and_another_is_far() -> None:
    images = toy_images(12).images
    other = images.roll(1, 0)
    lite0 = load_lite0()
    a, b = (profile(lite0, to_model_range(part)).double() for part in (images, other))
    unit = torch.pdist(a).mean()
    assert float((a - b).norm(dim=1).mean() / unit) == pytest.approx(1, abs=0.25)
    near = profile(lite0, to_model_range(resize(resize(images, 24), 16))).double()
    assert float((near - a).norm(dim=1).mean() / unit) < 0.5


def test_the_worst_are_shown_first_then_typical_ones(run: Path) -> None:
    embeddings, found = read_embeddings(run), measured(run)
    rows, images = read_reconstructions(run, embeddings)
    assert rows == shown_rows(embeddings, found) and len(images) == len(rows) == REPORT_ROWS
    shown = [found.distances[embeddings.ids[row]] for row in rows]
    ranked = sorted(found.distances.values(), reverse=True)
    assert shown[:WORST_ROWS] == ranked[:WORST_ROWS]
    middle = (ranked[5] + ranked[6]) / 2
    left_out = [d for d in ranked[WORST_ROWS:] if d not in shown[WORST_ROWS:]]
    assert max(abs(d - middle) for d in shown[WORST_ROWS:]) <= min(abs(d - middle) for d in left_out)


def test_planted_distances_choose_the_rows(run: Path) -> None:
    embeddings = read_embeddings(run)
    planted = {image_id: float(k) for k, image_id in enumerate(embeddings.ids)}
    assert shown_rows(embeddings, Likeness(planted, 12)) == [11, 10, 9, 8, 5, 6, 4, 7]
    record = Likeness(planted, 12).record(listed=2)
    assert (record["mean"], record["median"], record["p90"]) == (5.5, 5.5, pytest.approx(9.9))
    assert [far["distance"] for far in record["worst"]] == [11.0, 10.0]


def test_the_report_has_the_numbers_and_does_not_measure_again(run: Path) -> None:
    record: Any = json.loads((run / "run.json").read_text())
    found = measured(run)
    assert record["likeness"]["n"] == 12 and record["likeness"]["worst"][0]["file"] == found.worst_first[0]
    page = " ".join((run / "report.html").read_text().split())
    assert f"mean {record['likeness']['mean']:.2f}" in page and found.worst_first[0] in page


def test_it_is_measured_once(run: Path, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / LIKENESS_FILE).read_bytes()
    lines = (run / NAME).read_text().count("\n")
    sample_stage(run, bench.generator(), SAMPLE, sources=open_splits(run).train)
    assert (run / LIKENESS_FILE).read_bytes() == before
    assert "reconstruct" not in capsys.readouterr().err
    assert (run / NAME).read_text().count("\n") <= lines + 2  # data.json was opened


def test_what_was_lost_is_measured_again_to_the_same_bits(run: Path) -> None:
    content = {name: (run / name).read_bytes() for name in (LIKENESS_FILE, "reconstructions.safetensors")}
    for name in content:
        (run / name).write_bytes(b"damaged")
        discard(run, verify(run))
        assert resume(run, "cpu") == []
        assert {part: (run / part).read_bytes() for part in content} == content


def test_a_batch_that_a_kill_cut_short_is_measured_whole(run: Path, bench: Bench) -> None:
    ledger, whole = Ledger(run), (run / LIKENESS_FILE).read_bytes()
    kept = ledger.read_json(LIKENESS_FILE)
    kept["images"] = dict(list(kept["images"].items())[:3])  # the first batch
    ledger.commit(LIKENESS_FILE, json.dumps(kept).encode())
    assert read_likeness(run, read_embeddings(run)) is None, "half of it is not shown as all"
    sample_stage(run, bench.generator(), SAMPLE, sources=open_splits(run).train)
    assert (run / LIKENESS_FILE).read_bytes() == whole


@pytest.mark.parametrize(("every", "writes"), [(unit_state.EVERY, 1), (0.0, 2)])
def test_a_stop_keeps_what_was_measured_in_one_write(
    run: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, every: float, writes: int
) -> None:
    """Not in one write a batch: each is of the whole file. A kill costs what came since the last."""
    whole, generator = (run / LIKENESS_FILE).read_bytes(), bench.generator()
    Ledger(run).drop(LIKENESS_FILE)
    monkeypatch.setattr(unit_state, "EVERY", every)
    lines, decode, calls = (run / NAME).read_text().count("\n"), generator.decode, []

    def stopped(latents: torch.Tensor) -> torch.Tensor:
        calls.append(len(latents))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(latents)

    monkeypatch.setattr(generator, "decode", stopped)
    with pytest.raises(KeyboardInterrupt):
        sample_stage(run, generator, SAMPLE, sources=open_splits(run).train)
    kept = json.loads((run / LIKENESS_FILE).read_text())["images"]
    assert list(kept.items()) == list(json.loads(whole)["images"].items())[: sum(calls[:2])]
    records = [json.loads(line) for line in (run / NAME).read_text().splitlines()[lines:]]
    commits = [record for record in records if (record["unit"], record["event"]) == (LIKENESS_FILE, "commit")]
    assert len(commits) == writes
    monkeypatch.undo()
    sample_stage(run, bench.generator(), SAMPLE, sources=open_splits(run).train)
    assert (run / LIKENESS_FILE).read_bytes() == whole


def test_without_the_data_at_hand_nothing_is_measured_but_all_else_is_done(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, images = tmp_path / "data", toy_images(12)
    write_images(data / "train", images, range(8))
    write_images(data / "test", images, range(8, 12))
    run = tmp_path / "run"
    finish(replace(bench, data=data), run, "invert")
    data.rename(tmp_path / "away")
    assert sources_of(run) is None and "is not measured" in capsys.readouterr().err
    sample_stage(run, bench.generator(), SAMPLE)
    embeddings = read_embeddings(run)
    assert read_likeness(run, embeddings) is None
    rows, drawn = read_reconstructions(run, embeddings)
    assert rows == shown_rows(embeddings, None) and len(drawn) == 8
    (tmp_path / "away").rename(data)
    sample_stage(run, bench.generator(), SAMPLE, sources=sources_of(run))
    assert read_reconstructions(run, embeddings)[0] == shown_rows(embeddings, measured(run))


def test_an_image_that_is_forgotten_leaves_no_distance(run: Path, bench: Bench) -> None:
    gone = measured(run).worst_first[0]
    forget(run, [gone])
    assert not (run / LIKENESS_FILE).exists()
    sample_stage(run, bench.generator(), SampleSettings(**SAMPLE.model_dump()), sources=open_splits(run).train)
    assert gone not in (run / LIKENESS_FILE).read_text() and len(measured(run).distances) == 11


def test_a_damaged_file_is_no_measurement(run: Path) -> None:
    (run / LIKENESS_FILE).write_text("{}")
    with pytest.raises(DataError, match="changed since"):
        read_likeness(run, read_embeddings(run))


def test_profiles_of_many_images_are_those_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstructions, "_AT_ONCE", 2)
    profiles, images = reconstructions._Profiles(16, torch.device("cpu")), torch.randint(0, 256, (5, 3, 16, 16))
    images = images.to(torch.uint8)
    alone = torch.cat([profiles(image[None]) for image in images])
    assert (profiles(images) - alone).norm(dim=1).max() < 0.1 * torch.pdist(alone).min(), "none in another's place"
