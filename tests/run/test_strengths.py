"""`--noise-strength auto`: the strength of each image is what its probes say, once, to the same bits, and is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from coloured_images import COLOURS, picture
from harness import TRAIN, Bench, Kill, assert_same, content, finish, kill_during

from diffusion_inversion.config.fidelity import FilterSettings
from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import DataSettings, InvertSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.config.tuning import read_tuning
from diffusion_inversion.data.images import LabelledImages, resize, to_uint8
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import ConfigMismatchError, DataError, UsageError
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.measure.copies.views import pixel_view
from diffusion_inversion.measure.copies.watch import Watch
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.fidelity.judging import Judges
from diffusion_inversion.run.fidelity.stage import filtered, judges_for
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.layout import identify
from diffusion_inversion.run.plan.forecast import left, seconds
from diffusion_inversion.run.plan.steps import Steps
from diffusion_inversion.run.replicates import replicate
from diffusion_inversion.run.strengths import MOST_MISSED, PROBE_STEPS, PROBES, ROUNDS, strengths_of
from diffusion_inversion.run.strengths_record import strength_images, strengths_record
from diffusion_inversion.run.tune import prepared
from diffusion_inversion.run.verify import verify
from diffusion_inversion.sample import sampling
from diffusion_inversion.sample.sampling import sample
from diffusion_inversion.sample.strengths import LADDER, strength_at
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.sample.variants import draw_images, plan_variant
from diffusion_inversion.sweep.drawn import draw
from diffusion_inversion.train.choosing import Material

CPU = torch.device("cpu")
NAMES = tuple(sorted(COLOURS))
DATA = DataSettings(data="digits")
AUTO = SampleSettings(noise_strength="auto")


@pytest.fixture(scope="module")
def drawn(coloured: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after stage 2; not to be changed."""
    run = tmp_path_factory.mktemp("drawn") / "run"
    finish(coloured, run, "auto_noise")
    return run


def test_each_strength_is_a_limit_that_its_probes_show(coloured: Bench, drawn: Path) -> None:
    """Probes drawn anew, one image at a time, keep the class at the level that was found and miss it at the next."""
    embeddings, real = read_embeddings(drawn), open_splits(drawn).train
    settings = SampleSettings(variants=1, inference_steps=2, guidance_scales=(1.0, 2.0), noise_strength=0.0)
    judges, generator = Judges(real.resized(16), CPU), coloured.generator()

    def kept(row: int, level: int) -> int:
        strength = strength_at(level, embeddings.at()[row])
        own = settings.model_copy(update={"noise_strength": strength})
        plans = [plan_variant(embeddings, generator, own, row, 1_000_000 + probe) for probe in range(PROBES)]
        images = resize(to_uint8(draw_images(embeddings, generator, plans, own)), 16)
        labels = embeddings.labels[[row] * PROBES]
        return PROBES - int(judges.opinion(images, labels, [embeddings.ids[row]] * PROBES).failed.sum())

    found = {one.source: one for one in strengths_of(drawn, embeddings)}
    assert len(found) == len(embeddings) == 30 and settings.inference_steps < PROBE_STEPS
    levels = set()
    for row, source in list(enumerate(embeddings.ids))[::2]:
        one = found[source]
        assert one.level is not None and one.strength == strength_at(one.level, embeddings.at()[row])
        assert one.kept == kept(row, one.level) and (one.kept >= PROBES - MOST_MISSED or one.level == 0)
        if one.level < len(LADDER) - 1:
            assert kept(row, one.level + 1) < PROBES - MOST_MISSED
        levels.add(one.level)
    assert len(levels) > 1, "they differ, else this shows nothing"
    table = SyntheticStore(drawn, NAMES).table("source_id", "noise_strength").to_pylist()
    assert len(table) == 60 and all(row["noise_strength"] == found[row["source_id"]].strength for row in table)


def test_variants_are_those_of_their_number(coloured: Bench, drawn: Path, tmp_path: Path) -> None:
    """An image of strength 0.25, say, is the one that --noise-strength 0.25 draws."""
    embeddings = read_embeddings(drawn)
    one = max(strengths_of(drawn, embeddings), key=lambda found: found.strength)
    settings = SampleSettings(
        variants=2, inference_steps=2, batch_size=40, guidance_scales=(1.0, 2.0), noise_strength=one.strength
    )
    sample(embeddings, coloured.generator(), tmp_path / "fixed", settings)

    def files(run: Path) -> dict[int, str]:
        rows = SyntheticStore(run, NAMES).table("source_id", "variant", "sha256").to_pylist()
        return {row["variant"]: row["sha256"] for row in rows if row["source_id"] == one.source}

    assert files(tmp_path / "fixed") == files(drawn)
    with pytest.raises(UsageError, match="noise_strength=auto: found for the images of a run alone"):
        sample(embeddings, coloured.generator(), tmp_path / "auto", AUTO)


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_same_bits(coloured: Bench, drawn: Path, tmp_path: Path) -> None:
    """Killed with a part of the three units on record, before any image was drawn."""
    run = Path(shutil.copytree(drawn, tmp_path / "run"))
    shutil.rmtree(run / "synthetic")
    manifests = [Manifest(one / "strengths" / "manifest.jsonl") for one in (run, drawn)]
    manifests[0].rewrite(manifests[1].records()[:1])
    assert kill_during(coloured, run, "auto_noise", Kill("recorded", 1))
    assert len(manifests[0].units()) < 3 and not (run / "synthetic").exists()
    finish(coloured, run, "auto_noise")
    assert_same(run, drawn)
    assert verify(run).findings == () and all(identify(name) is not None for name in content(run))
    assert manifests[0].units() == manifests[1].units() and len(manifests[0].units()) == 3


def test_many_images_of_a_sweep_go_on_after_a_kill(
    coloured: Bench, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are kept in Parquet by their number, which the search for strengths has to know when it comes again."""
    monkeypatch.setattr(sampling, "PACKED_FROM", 60)
    auto = AUTO.model_copy(update={"variants": 2, "inference_steps": 1, "batch_size": 2})
    home, train = tmp_path / "home", open_splits(drawn)

    def drawing() -> list[str]:
        assert draw(drawn, home, auto, DATA, coloured.generator(), lambda data: train) == {"images": 60}
        store = SyntheticStore(home, NAMES)
        assert (store.storage, store.count) == ("parquet", 60)
        return sorted(store.table("sha256")["sha256"].to_pylist())

    whole = drawing()
    manifest = SyntheticStore(home, NAMES).manifest
    manifest.rewrite(manifest.records()[:1])  # killed after the first unit
    assert drawing() == whole


def test_it_stays_as_it_was_found_and_goes_with_what_is_forgotten(coloured: Bench, drawn: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(drawn, tmp_path / "run"))
    with run_lock(run), pytest.raises(ConfigMismatchError, match=r"noise_strength: was .auto., now 0\.1"):
        pipeline.sample_stage(run, coloured.generator(), SampleSettings(variants=2, inference_steps=2))
    with run_lock(run), pytest.raises(ConfigMismatchError, match=r"interpolation: was 0\.1, now 0\.3"):
        other = AUTO.model_copy(update={"interpolation": 0.3, "inference_steps": 2})
        pipeline.sample_stage(run, coloured.generator(), other, sources=open_splits(run).train)
    assert content(run) == content(drawn)
    gone = open_splits(run).train.ids[0]
    forget(run, [gone])
    assert not (run / "strengths").exists() and gone not in read_embeddings(run).ids
    run = Path(shutil.copytree(drawn, tmp_path / "again"))
    with run_lock(run):
        pipeline.restart(run, "sample")
    assert strengths_of(run) == []


def test_without_images_to_judge_by_nothing_is_begun(coloured: Bench, drawn: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(drawn, tmp_path / "run"))
    with run_lock(run):
        pipeline.restart(run, "sample")
        with pytest.raises(UsageError, match=r"the training images of .* cannot be read"):
            pipeline.sample_stage(run, coloured.generator(), AUTO)
    real = open_splits(drawn).train
    with pytest.raises(DataError, match=r"too few to judge labels by: .*--noise-strength auto"):
        Judges(real.subset(range(6)), CPU)
    with pytest.raises(UsageError, match=r"--tune sample\.interpolation: with --noise-strength auto"):
        prepared(read_tuning(["interpolation=0.1,0.4"]), AUTO, TrainSettings())
    with pytest.raises(UsageError, match="--noise-strength auto without --tune"):
        read_tuning(["noise_strength=0.1,auto"])


def test_what_is_drawn_again_has_the_strength_of_its_source(coloured: Bench, drawn: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(drawn, tmp_path / "run"))
    store = SyntheticStore(run, NAMES)
    made, real = Material(store.read(), store.sources()), open_splits(run).train.resized(16)
    settings = FilterSettings(filter="redraw")
    with run_lock(run):
        filtered(run, lambda: made, settings, judges_for(run, real, settings, CPU), coloured.generator())
    again = SyntheticStore(run, NAMES, "redrawn").table("source_id", "noise_strength").to_pylist()
    strength = {one.source: one.strength for one in strengths_of(run)}
    assert again and all(row["noise_strength"] == strength[row["source_id"]] for row in again)


def test_the_report_has_it(coloured: Bench, drawn: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(drawn, tmp_path / "run"))
    splits = open_splits(run)
    settings = TRAIN.model_copy(update={"seeds": (0,), "arms": ("real", "real+synthetic")})
    with run_lock(run):
        results = pipeline.train_stage(run, splits, settings, "cpu")
        pipeline.report_stage(run, splits, results, settings, "dinv run data")
    found, page = json.loads((run / "run.json").read_text())["strengths"], (run / "report.html").read_text()
    assert found["images"] == found["judged"] == sum(sum(one["counts"]) for one in found["classes"]) == 30
    least, most = found["lowest"], found["highest"]
    assert max(one["level"] for one in least) <= min(one["level"] for one in most) and len(least) == len(most) == 4
    assert "How much noise does each image bear?" in page
    assert all(one["file"] in page for one in (*least, *most)) and page.count("training image</figcaption>") >= 8


def test_a_source_to_which_balance_gives_no_variants_is_shown_without(drawn: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(drawn, tmp_path / "run"))
    store, record = SyntheticStore(run, NAMES), strengths_record(run, NAMES)
    assert record is not None
    full = record["lowest"][0]["file"]
    counts = {source: 2 * (source != full) for source in read_embeddings(run).ids}
    store.finish(2, counts, "class")
    (real, none), *others = strength_images(run, open_splits(run).train, record)
    assert real.shape == (3, 16, 16) and len(none) == 0 and all(len(made) == 2 for _, made in others)


def test_a_plan_counts_the_probes(tmp_path: Path) -> None:
    plan = replicate(tmp_path / "run", 0, DATA, InvertSettings(), AUTO, TrainSettings())
    todo = left(plan, 10, own=False)
    plain = replicate(tmp_path / "run", 0, DATA, InvertSettings(), SampleSettings(), TrainSettings())
    fixed = left(plain, 10, own=False)
    assert (todo.searched, fixed.searched) == (10, 0)
    steps = Steps(0, 0, 0, 16.0, 1.0, 0, 0, 0, 0, 0, 0, 0)
    took = [seconds(steps, one, 1, 10, InvertSettings(), AUTO, TrainSettings())["stage 2"] for one in (todo, fixed)]
    assert took[0] - took[1] == pytest.approx(10 * ROUNDS * PROBES * (PROBE_STEPS + 1)) and ROUNDS == 4


def test_a_watch_sees_copies_and_nothing_else() -> None:
    """Known images come back as copies, mirrored ones too; others of the same kind do not, at about the rate."""
    pixels = torch.from_numpy(np.stack([picture((120, 120, 120), seed) for seed in range(80)])).permute(0, 3, 1, 2)
    ids = tuple(map(str, range(60)))
    real = LabelledImages("grey", ids, ids, torch.zeros(60, dtype=torch.int64), ("grey",), pixels[:60].contiguous(), 16)
    watch = Watch(real, [pixel_view(CPU)], false_positives=0.05, neighbours=10, seed=0)
    assert watch.copies(pixels[:60]).all() and watch.copies(pixels[:60].flip(-1)).all()
    assert int(watch.copies(pixels[60:]).sum()) <= 4
    parts = [watch.copies(pixels[start : start + 7]) for start in range(0, 80, 7)]
    assert torch.equal(torch.cat(parts), watch.copies(pixels)), "an image does not know of those beside it"
