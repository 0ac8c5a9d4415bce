"""`dinv grow`: rounds that add what is needed, to the same bits after a kill, measured without test images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from harness import GROW, SAMPLE, TRAIN, Bench, Kill, content, finish, invert, kill_during
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.config.commands import AuditSettings, ExportSettings
from diffusion_inversion.config.fidelity import FilterSettings
from diffusion_inversion.config.growing import GrowSettings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.engine.manifest import Manifest
from diffusion_inversion.errors import ConfigMismatchError, UsageError
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.export.images import SyntheticImages
from diffusion_inversion.run.export.stage import export
from diffusion_inversion.run.fidelity.stage import trained_on
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.grow import grow
from diffusion_inversion.run.growth import CANDIDATE_STEPS, CANDIDATES
from diffusion_inversion.run.growth_end import PATIENCE, SHARES, real_sizes, why_ended
from diffusion_inversion.run.growth_record import RoundRecord
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.layout import identify
from diffusion_inversion.run.methods import images_made, sources_of_images
from diffusion_inversion.run.verify import verify
from diffusion_inversion.sample.columns import COLUMNS
from diffusion_inversion.sample.sampling import sample
from diffusion_inversion.sample.synthetic import SyntheticStore, parse_job
from diffusion_inversion.train.choosing import Folds


@pytest.fixture(scope="module")
def drawn(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after stage 2; not to be changed."""
    run = tmp_path_factory.mktemp("drawn") / "run"
    with run_lock(run):
        invert(bench, run)
        pipeline.sample_stage(run, bench.generator(), SAMPLE, sources=open_splits(run).train)
    return run


@pytest.fixture(scope="module")
def whole(bench: Bench, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that grew by 9 images in two rounds; not to be changed."""
    run = Path(shutil.copytree(drawn, tmp_path_factory.mktemp("grown") / "run"))
    finish(bench, run, "grown")
    return run


def rounds(run: Path) -> list[RoundRecord]:
    found: list[RoundRecord] = json.loads((run / "growth.json").read_text())["rounds"]
    return found


def untimed(found: list[RoundRecord]) -> list[dict[str, object]]:
    return [{name: value for name, value in one.items() if name not in ("seconds", "drawing")} for one in found]


def test_rounds_add_what_was_asked_for(bench: Bench, drawn: Path, whole: Path, tmp_path: Path) -> None:
    """As many of each class as the round wanted, the best of three times as many candidates, in full."""
    found, names = rounds(whole), read_embeddings(whole).class_names
    assert [sum(one["wanted"]) for one in found] == [6, 3] and [one["synthetic"] for one in found] == [24, 30]
    scored = {}
    for unit in Manifest(whole / "growth" / "manifest.jsonl").units().values():
        scored |= dict(zip(unit["ids"], zip(unit["kept"], unit["doubt"], strict=True), strict=True))
    labels = dict(zip(open_splits(whole).train.ids, open_splits(whole).train.labels.tolist(), strict=True))
    for one in found:
        chosen = set(one["chosen"])
        classes = [labels[parse_job(job)[0]] for job in one["chosen"]]
        assert [classes.count(label) for label in range(len(names))] == one["wanted"]
        assert sum(one["candidates"].values()) == CANDIDATES * sum(one["wanted"]) and chosen <= scored.keys()
        assert one["kept"] == sum(scored[job][0] for job in chosen)
    first = {
        job for job in scored if parse_job(job)[1] < SAMPLE.variants + found[0]["candidates"].get(parse_job(job)[0], 0)
    }
    for label, count in enumerate(found[0]["wanted"]):
        own = sorted((not scored[job][0], -scored[job][1]) for job in first if labels[parse_job(job)[0]] == label)
        taken = sorted(
            (not scored[j][0], -scored[j][1]) for j in found[0]["chosen"] if labels[parse_job(j)[0]] == label
        )
        assert taken == own[:count]
    # An image that was added is the variant of its number, as stage 2 would have drawn it.
    most = max(parse_job(job)[1] for one in found for job in one["chosen"]) + 1
    sample(read_embeddings(whole), bench.generator(), tmp_path, SAMPLE.model_copy(update={"variants": most}))
    own_rows, all_rows = (
        {
            (row["source_id"], row["variant"]): row["sha256"]
            for row in store.table("source_id", "variant", "sha256").to_pylist()
        }
        for store in (SyntheticStore(whole, names, "grown"), SyntheticStore(tmp_path, names))
    )
    assert len(own_rows) == 9 and own_rows.items() <= all_rows.items()


def test_the_end_says_what_it_brought(whole: Path) -> None:
    ended = json.loads((whole / "growth.json").read_text())["ended"]
    assert ended["reason"] == "9 images were added" and ended["added"] == 9 and ended["images"] == 12
    low, gain, high = ended["gain"][1], ended["gain"][0], ended["gain"][2]
    assert low <= gain <= high and gain == pytest.approx(ended["accuracy"] - rounds(whole)[0]["accuracy"])
    assert "2 times as many real images would bring" in ended["sentence"] and "synthetic ones" in ended["sentence"]
    assert verify(whole).findings == () and all(identify(name) is not None for name in content(whole))


def test_the_law_is_fitted_at_the_sizes_that_were_trained_on(whole: Path) -> None:
    """A share of each class is rounded up: of five images an eighth is one, not 0.6; equal sizes count once."""
    ended, train = json.loads((whole / "growth.json").read_text())["ended"], open_splits(whole).train
    folds, made = Folds(whole, train, "cpu"), trained_on(whole, train.class_names, lambda: open_splits(whole), "cpu")
    last = [part for part in real_sizes(folds, made)[-1] if part.training]
    each = sum(len(part.synthetic) for part in last) / sum(len(part.training) for part in last)
    assert ended["variants_per_source"] == pytest.approx(each) and each < len(made.synthetic) / 12
    sizes = []
    for share in (*SHARES, 1.0):
        parts = [folds.part(made, number, share) for number in folds.numbers]
        sizes.append(None if None in parts else fmean(len(part.training) for part in parts if part is not None))
    distinct = dict.fromkeys(size for size in sizes if size is not None)
    assert ended["real"] == pytest.approx([12 * size / max(distinct) for size in distinct])
    assert len(ended["real"]) == len(ended["real_accuracies"]) and ended["real"][0] > 12 * SHARES[0]


@pytest.mark.parametrize("kill", [Kill("recorded", 9)], ids=str)
def test_a_killed_run_goes_on_with_the_same_bits(
    bench: Bench, drawn: Path, whole: Path, tmp_path: Path, kill: Kill
) -> None:
    run = Path(shutil.copytree(drawn, tmp_path / "run"))
    assert kill_during(bench, run, "grown", kill)
    finish(bench, run, "grown")
    left, right = (rounds(one) for one in (run, whole))
    assert untimed(left) == untimed(right)
    ours, theirs = content(run), content(whole)
    assert {k: v for k, v in ours.items() if k.startswith("grown/")} == {
        k: v for k, v in theirs.items() if k.startswith("grown/")
    }


def test_what_was_grown_is_trained_on_and_shown(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    splits = open_splits(run)
    made, made_of = images_made(run, splits.train.class_names), sources_of_images(run, splits.train.class_names)
    assert len(made) == len(made_of) == 33 and [one[0] for one in made_of] == list(made.source_ids)
    settings = TRAIN.model_copy(update={"seeds": (0,), "arms": ("real", "real+synthetic")})
    with run_lock(run):
        results = pipeline.train_stage(run, splits, settings, "cpu")
        pipeline.report_stage(run, splits, results, settings, "dinv run data")
        for changes in ({"filtering": FilterSettings(filter="drop")}, {}):
            other = settings if changes else settings.model_copy(update={"online": 3})
            with pytest.raises(UsageError, match="images were grown in"):
                pipeline.train_stage(run, splits, other, "cpu", **changes)  # type: ignore[arg-type]
    found, page = json.loads((run / "run.json").read_text())["growth"], (run / "report.html").read_text()
    assert found["synthetic"] == [24, 30, 33] and sum(found["wanted"]) == found["added"] == 9
    assert found["sentence"] in page and "What did growing bring, and what would more?" in page
    gone = splits.train.ids[0]
    forget(run, [gone])
    assert not (run / "grown").exists() and not (run / "growth").exists() and not (run / "growth.json").exists()


def test_it_goes_on_with_another_end_and_the_same_settings_alone(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    with run_lock(run):
        more = grow(run, open_splits(run), GrowSettings(images=11, round_images=6), GROW, bench.generator(), "cpu")
        assert more["added"] == 11 and [sum(one["wanted"]) for one in rounds(run)] == [6, 3, 2]
        assert [one["chosen"] for one in rounds(run)][:2] == [one["chosen"] for one in rounds(whole)]
        other = GROW.model_copy(update={"steps": 3})
        with pytest.raises(ConfigMismatchError, match=r"steps: was 2, now 3"):
            grow(run, open_splits(run), GrowSettings(images=20), other, bench.generator(), "cpu")
        pipeline.restart(run, "train")
        assert len(rounds(run)) == 3, "what trains on it can begin anew"
        pipeline.restart(run, "sample")
        assert not (run / "grown").exists() and not (run / "growth.json").exists()


def test_scores_of_other_classifiers_are_not_taken_for_these(
    bench: Bench, drawn: Path, whole: Path, tmp_path: Path
) -> None:
    """A call that was killed while candidates were scored may be followed by one with other settings."""
    other, end = GROW.model_copy(update={"steps": 3}), GrowSettings(images=6)
    fresh, killed = (Path(shutil.copytree(run, tmp_path / run.parent.name)) for run in (drawn, whole))
    Ledger(killed).drop("growth.json")
    shutil.rmtree(killed / "grown")
    for run in (fresh, killed):
        with run_lock(run):
            grow(run, open_splits(run), end, other, bench.generator(), "cpu")
    assert untimed(rounds(fresh)) == untimed(rounds(killed))
    [first, *_], again = (list(Manifest(run / "growth" / "manifest.jsonl").units().values()) for run in (fresh, killed))
    [same] = [unit for unit in again if unit["ids"] == first["ids"]]
    assert same["doubt"] == first["doubt"] and same["by"] == first["by"]


def test_rounds_of_other_images_are_not_compared(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    splits = open_splits(run)
    changed = replace(splits, train=replace(splits.train, images=255 - splits.train.images))
    with run_lock(run), pytest.raises(ConfigMismatchError, match="images: was"):
        grow(run, changed, GrowSettings(images=20), GROW, bench.generator(), "cpu")


def record(accuracy: float, added: int = 10, seconds: float = 60.0) -> RoundRecord:
    return {
        "synthetic": 0, "accuracy": accuracy, "correct": "", "wanted": [], "candidates": {},
        "chosen": ["a"] * added, "kept": 0, "seconds": seconds,
    }  # fmt: skip


def test_it_ends_at_whichever_end_comes_first() -> None:
    both = GrowSettings(images=30, target_gain=2.0, time_limit=300)
    before = [record(0.50), record(0.51)]
    assert why_ended(both, before, 0.519, 5.0) is None
    assert why_ended(both, before, 0.521, 5.0) == "the gain of 2 points was reached"
    assert why_ended(both, [*before, record(0.51)], 0.51, 5.0) == "30 images were added"
    assert "beyond" in str(why_ended(both, before, 0.51, 130.0)), "another round would take 60 s"
    target = GrowSettings(target_gain=2.0)
    worse = [record(0.50), *[record(0.49)] * (PATIENCE - 1)]
    assert why_ended(target, worse, 0.49, 5.0) == "3 rounds in turn brought no more"
    assert why_ended(target, worse, 0.505, 5.0) is None and why_ended(target, [], 0.9, 5.0) is None
    with pytest.raises(ValueError, match="no end was given"):
        GrowSettings(round_images=5)


def test_a_time_limit_has_room_for_the_end() -> None:
    """Another round, its measurement, and the classifiers of the law after it: 2 x 60 + 60 + 5 + what these take."""
    limited, before = GrowSettings(time_limit=300), [record(0.50), record(0.51)]
    assert why_ended(limited, before, 0.51, 5.0, 115.0) is None
    assert why_ended(limited, before, 0.51, 5.0, 116.0) == "another round would go beyond 5:00"
    # Of a first round it is known that it takes no less than its measurement.
    assert why_ended(limited, [], 0.5, 100.0, 100.0) is None and why_ended(limited, [], 0.5, 100.0, 101.0)


def test_the_time_of_a_round_has_that_of_its_images(bench: Bench, whole: Path, tmp_path: Path) -> None:
    """Also of those that a killed call drew: they count at the pace of the others."""
    assert all(0 < one.get("drawing", 0) <= one["seconds"] for one in rounds(whole))
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    kept = json.loads((run / "growth.json").read_text())
    killed = kept["rounds"][-1]
    del killed["drawing"]
    Ledger(run).commit("growth.json", (text := json.dumps(kept)).encode(), note={"copy": text})
    store = SyntheticStore(run, read_embeddings(run).class_names, "grown")
    jobs = store.table("file_name", "source_id", "variant").to_pylist()
    lost = next(row for row in jobs if (row["source_id"], row["variant"]) == parse_job(killed["chosen"][0]))
    store.remove([lost["file_name"]])
    finish(bench, run, "grown")
    again = rounds(run)[-1]
    assert again["drawing"] > 0 and again["seconds"] == pytest.approx(killed["seconds"] + again["drawing"], abs=0.06)
    assert untimed(rounds(run)) == untimed(rounds(whole))


def test_the_command_line_has_it(bench: Bench, drawn: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(drawn, tmp_path / "run"))
    found = CliRunner().invoke(app, ["grow", str(run)])
    assert found.exit_code != 0 and "no end was given" in found.stderr
    arguments = ["--images", "2", "--train-steps", "2", "--train-batch-size", "4", "--architecture", "resnet20"]
    found = CliRunner().invoke(app, ["grow", str(run), *arguments])
    assert found.exit_code == 0, found.stderr
    assert "2 images were added to" in found.stdout and "times as many real images would bring" in found.stdout


def test_candidates_are_drawn_at_few_steps() -> None:
    assert CANDIDATE_STEPS < 16 and torch.tensor(CANDIDATES).item() == 3


def test_what_stage_2_draws_later_is_one_image(bench: Bench, whole: Path, tmp_path: Path) -> None:
    """Variants go on where stage 2 ended, and so does stage 2 when it is asked for more: no image counts twice."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    grown = {job for one in rounds(run) for job in one["chosen"]}
    more = SAMPLE.model_copy(update={"variants": SAMPLE.variants + 1})
    with run_lock(run):
        pipeline.sample_stage(run, bench.generator(), more, sources=open_splits(run).train)
    twice = {job for job in grown if parse_job(job)[1] == SAMPLE.variants}
    names = read_embeddings(run).class_names
    made = images_made(run, names)
    assert twice and len(made) == 12 * more.variants + len(grown - twice) == len(sources_of_images(run, names))
    assert len({*made.hashes}) == len(made)


ONE = TRAIN.model_copy(update={"seeds": (0,), "arms": ("real", "real+synthetic")})
REDRAW = AuditSettings(planted=0, device="cpu")


def reported(bench: Bench, run: Path, copies: AuditSettings | None = None) -> None:
    with run_lock(run):
        splits = open_splits(run)
        results = pipeline.train_stage(run, splits, ONE, "cpu", copies=copies, generator=bench.generator())
        pipeline.report_stage(run, splits, results, ONE, f"dinv train {run} --copies redraw --restart")


def test_what_is_lost_is_drawn_again(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    reported(bench, run)
    before = content(run)
    lost, changed, *_ = sorted((run / "grown").rglob("*.png"))
    lost.unlink()
    changed.write_bytes(changed.read_bytes()[:-9])
    done = CliRunner().invoke(app, ["repair", str(run), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert content(run) == before and verify(run).findings == ()


def test_an_export_has_what_grew_and_says_what_the_figures_are_of(bench: Bench, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    reported(bench, run)
    found = {one.name for one in SyntheticImages.of(run)}
    stage2 = {path.relative_to(run / "synthetic").as_posix() for path in (run / "synthetic").rglob("*.png")}
    added = {path.relative_to(run / "grown").as_posix() for path in (run / "grown").rglob("*.png")}
    assert found == stage2 | added and len(added) == 9 and len(found) == 33
    done = export(run, ExportSettings(to="imagefolder", out=tmp_path / "out"))
    assert done.count == 33 == len(list((tmp_path / "out").rglob("*.png")))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`dinv grow` added 9 of them" in card and "measured before" not in card
    assert json.loads((run / "run.json").read_text())["stages"]["sample"]["grown"] == 9
    with run_lock(run):
        grow(run, open_splits(run), GrowSettings(images=11, round_images=6), GROW, bench.generator(), "cpu")
    assert export(run, ExportSettings(to="parquet", out=tmp_path / "more")).count == 35
    assert "These figures were measured before `dinv grow` added some" in (tmp_path / "more" / "README.md").read_text()


def test_what_copies_a_training_image_is_not_grown_with(bench: Bench, drawn: Path, tmp_path: Path) -> None:
    """Copies of stage 2 are trained on as they were drawn again; one that grew is left out, of exports too."""
    run = Path(shutil.copytree(drawn, tmp_path / "run"))
    splits = open_splits(run)
    names, pixels = splits.train.class_names, dict(zip(splits.train.ids, splits.train.images, strict=True))

    def plant(folder: str, count: int) -> set[str]:
        store = SyntheticStore(run, names, folder)
        rows = sorted(store.table(*COLUMNS).to_pylist(), key=lambda row: row["file_name"])[:count]
        files = {row.pop("file_name") for row in rows}
        store.remove(files)
        for row in rows:
            del row["class_name"]
        store.commit(torch.stack([pixels[row["source_id"]] for row in rows]), rows)
        return files

    first = plant("synthetic", 5)
    SyntheticStore(run, names).finish(SAMPLE.variants)
    reported(bench, run, REDRAW)
    with run_lock(run):
        asked = GrowSettings(images=4, round_images=4)
        found = grow(run, splits, asked, GROW, bench.generator(), "cpu")
        made = trained_on(run, names, lambda: splits, "cpu", bench.generator())
    ids = {name.partition(" (")[0] for name in made.synthetic.ids}
    assert not first & ids and {f"redrawn/{name}" for name in first} & ids
    assert found["synthetic"] == len(made.synthetic) and rounds(run)[0]["synthetic"] == len(made.synthetic) - 4
    (copy,) = plant("grown", 1)
    assert f"grown/{copy}" in ids
    with run_lock(run):
        made = trained_on(run, names, lambda: splits, "cpu", bench.generator())
    assert f"grown/{copy}" not in {name.partition(" (")[0] for name in made.synthetic.ids}
    left = {one.name for one in SyntheticImages.of(run)}
    assert copy not in left
    assert len(list((run / "grown").rglob("*.png"))) == 4


def test_a_run_that_was_trained_with_a_filter_does_not_grow(bench: Bench, drawn: Path, tmp_path: Path) -> None:
    """Its images are others than those that would be trained on afterwards, which has no filter."""
    run = Path(shutil.copytree(drawn, tmp_path / "run"))
    text = json.dumps({"schema": 1, "settings": {"filter": "drop"}})
    Ledger(run).commit("filter.config.json", text.encode(), note={"copy": text})
    with pytest.raises(UsageError, match=r"--filter drop, which images that are grown go without"), run_lock(run):
        grow(run, open_splits(run), GrowSettings(images=2), GROW, bench.generator(), "cpu")


def test_hints_name_the_command_that_the_run_was_trained_with(bench: Bench, drawn: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(drawn, tmp_path / "run"))
    said = CliRunner().invoke(app, ["audit", str(run), "--planted", "0", "--device", "cpu"])
    assert f"`dinv train {run}` shows it in the report" in said.stdout
    reported(bench, run, REDRAW)
    said = CliRunner().invoke(app, ["audit", str(run), "--planted", "0", "--device", "cpu"])
    assert f"`dinv train {run} --copies redraw` shows it in the report" in said.stdout, "and nothing is deleted for it"
