"""A first look shows what a run would draw, is the same each time, and leaves no trace in the run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import INVERT, SAMPLE, TRAIN, Bench, content
from toy import toy_images
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.cli.command import is_watched
from diffusion_inversion.config.planning import PreviewSettings
from diffusion_inversion.config.settings import DataSettings
from diffusion_inversion.config.tuning import Tuning
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.run.images import load
from diffusion_inversion.run.place import default_folder
from diffusion_inversion.run.plan import start
from diffusion_inversion.run.preview import MADE_BY, Wanted, chosen_rows, files_of, look, plain, stronger
from diffusion_inversion.run.reconstructions import likeness_of
from diffusion_inversion.run.replicates import replicate
from diffusion_inversion.run.stages import run_all
from diffusion_inversion.run.verify import verify
from diffusion_inversion.sample.sampling import drawn, sample


def run(bench: Bench, folder: Path, **more: Any) -> dict[str, str]:
    with run_lock(folder):
        run_all(
            folder, DataSettings(data=str(bench.data)), bench.generator(), invert=INVERT, sample=SAMPLE, train=TRAIN,
            command="dinv run", **more,
        )  # fmt: skip
    return content(folder)


def preview(bench: Bench, *more: object) -> Any:
    small = [
        "--generator", bench.checkpoint, "--dtype", "float32", "--init", "random", "--steps", 2, "--inference-steps", 2,
        "--train-steps", 3, "--train-batch-size", 4, "--seeds", "0,1", "--images", 3,
    ]  # fmt: skip
    return CliRunner().invoke(app, [str(one) for one in ("preview", bench.data, *small, *more)])


def test_images_are_spread_over_classes_and_have_partners() -> None:
    images = toy_images(9, classes=3)  # labels 0, 1, 2, 0, 1, 2, ...
    assert chosen_rows(images, 3) == ([0, 1, 2], [3, 4, 5])
    assert chosen_rows(images, 6) == ([0, 3, 1, 4, 2, 5], []), "two of a class are each other's partners"
    assert chosen_rows(images, 4) == ([0, 3, 1, 2], [4, 5])
    assert chosen_rows(images, 100)[1] == []


def test_stronger_settings_stay_in_their_ranges() -> None:
    found = stronger(SAMPLE.model_copy(update={"noise_strength": 0.2, "interpolation": -0.4}), 3.0)
    assert (found.noise_strength, found.interpolation) == (pytest.approx(0.6), -1.0)
    assert stronger(SAMPLE.model_copy(update={"noise_strength": 5.0}), 3.0).noise_strength == 10.0
    auto = SAMPLE.model_copy(update={"noise_strength": "auto"})
    assert plain(auto).noise_strength == 0.1 and stronger(auto, 3.0).noise_strength == pytest.approx(0.3)


def test_a_reconstruction_that_is_its_source_has_no_distance() -> None:
    images = toy_images(4, size=32).images
    assert likeness_of(images, images, torch.device("cpu")) == (0.0,) * 4
    far = likeness_of(images[[1, 0, 3, 2]], images, torch.device("cpu"))
    assert far is not None and min(far) > 0.3, "the unit is the distance between two images"
    assert likeness_of(images[:1], images[:1], torch.device("cpu")) is None


@pytest.mark.slow
def test_the_picture_is_the_same_each_time_and_nothing_else_is_written(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = preview(bench)
    assert done.exit_code == 0, done.output
    name = default_folder(str(bench.data)).name
    picture, page = (tmp_path / "runs" / f"{name}-preview{suffix}" for suffix in (".png", ".html"))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {picture, page}
    first, text = picture.read_bytes(), page.read_text()
    assert "plan: about" in done.stdout and str(picture.relative_to(tmp_path)) in done.stdout
    assert "not in it: --copies redraw (up to " in done.stdout and "not in it: --copies redraw (up to " in text
    assert text.count('class="card"') == 3 and text.count('class="made"') == 3 * 4 and "of memory at most" in text
    assert 'src="http' not in text and "at 3 times the strength" in text
    assert "as they come" in text and "least like their source" not in text
    assert preview(bench).exit_code == 0 and picture.read_bytes() == first, "a preview may take the place of another"
    other = preview(bench, "--stronger", 1, "--copies", "off", "--filter", "drop")
    assert other.exit_code == 0 and "plan: not in it: --filter drop\n" in other.stdout
    assert picture.read_bytes() != first


def test_what_a_run_refuses_and_files_of_others_are_refused_before_any_work(bench: Bench, tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"a photograph")
    done = preview(bench, "--out", mine)
    assert done.exit_code == 2 and "is no preview" in done.stderr and mine.read_bytes() == b"a photograph"
    refused = preview(bench, "--image-size", 64, "--out", tmp_path / "other")
    assert refused.exit_code == 2 and "image_size=64: larger than the 16 px" in refused.stderr
    assert not (tmp_path / "other").exists()
    assert files_of(tmp_path / "a.html") == (tmp_path / "a.png", tmp_path / "a.html")


def test_variants_drawn_alone_are_those_of_the_run(bench: Bench, tmp_path: Path) -> None:
    embeddings = invert(toy_images(8), bench.generator(), tmp_path, INVERT)
    made = sample(embeddings, bench.generator(), tmp_path, SAMPLE)
    jobs = [(row, variant) for variant in range(SAMPLE.variants) for row in range(len(embeddings))]
    batches = [jobs[first : first + SAMPLE.batch_size] for first in range(0, len(jobs), SAMPLE.batch_size)]
    found = torch.cat(list(drawn(embeddings, bench.generator(), SAMPLE, batches, "look")))
    assert len(made) == len(found)
    ours, theirs = ({image.numpy().tobytes() for image in images} for images in (found, made.images))
    assert ours == theirs


def test_a_run_that_is_looked_at_first_has_the_same_bits(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(bench, tmp_path / "plain")
    wanted = Wanted(PreviewSettings(images=2), files_of(tmp_path / "looks"), "dinv run")
    capsys.readouterr()
    looked = run(bench, tmp_path / "looked", preview=wanted)
    said = capsys.readouterr().err
    assert "plan: about" in said and f"preview: {tmp_path}/looks/preview.png" in said
    assert MADE_BY.encode() in wanted.files[0].read_bytes() and wanted.files[1].exists()
    same = {name for name in plain if name.endswith((".safetensors", ".png"))}
    assert {name: plain[name] for name in same} == {name: looked[name] for name in same} and same
    assert not verify(tmp_path / "looked").foreign
    wanted.files[0].unlink()
    run(bench, tmp_path / "looked", preview=wanted)
    assert not wanted.files[0].exists(), "a run that was begun is not looked at"
    monkeypatch.setattr(start, "MOST", 0.0)
    data = DataSettings(data=str(bench.data))
    slow = replicate(tmp_path / "slow", 0, data, INVERT, SAMPLE, TRAIN)
    splits = load(slow.folder, data, None)
    start.begin([slow], splits, bench.generator(), side=16, own=None, limit=None, tuning=Tuning(), preview=wanted)
    assert "preview: left out, it would take about" in capsys.readouterr().err and not wanted.files[0].exists()


def test_stronger_variants_are_farther_from_the_reconstruction(bench: Bench) -> None:
    images = toy_images(8)
    asked, before = PreviewSettings(images=4, stronger=20.0), torch.random.get_rng_state()
    found = look(images, bench.generator(), INVERT, SAMPLE, asked, side=16)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.reconstruction is not None and [len(one) for one in found.variants] == [4] * 4
    assert found.captions is not None and found.captions[0] != found.captions[3]
    variants = torch.stack(list(found.variants)).double()  # two of the run's, two stronger ones, with the same noise
    moved = (variants[:, 2:] - variants[:, :2]).abs().mean()
    none = look(images, bench.generator(), INVERT, SAMPLE, PreviewSettings(images=4, stronger=1.0), side=16)
    same = torch.stack(list(none.variants))
    assert moved > 0 and torch.equal(same[:, 2:], same[:, :2])


def test_nobody_is_shown_a_picture_who_asked_for_json(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(sys, "argv", ["dinv", "run", "photos"])
    assert is_watched()
    monkeypatch.setattr(sys, "argv", ["dinv", "run", "photos", "--json"])
    assert not is_watched()
