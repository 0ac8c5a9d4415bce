"""Whether a generator is too coarse is said before the work: planted cases, the interval, what is kept and shown."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command_line import dinv
from harness import Bench, finish, write_images
from torch import Tensor, nn
from toy import toy_images
from training_toys import toy

from diffusion_inversion.cli.summary import summarise
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import DataError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run.coarseness import (
    COARSENESS_FILE,
    FOLDS,
    Coarseness,
    affordable,
    again,
    coarseness,
    cross_validated,
    drawn,
    folds,
    loss_interval,
    measure,
)
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.verify import discard, verify

FOUND = Coarseness("mini", 64, 64, 64, 400, 8, "accuracy", 0.84, 0.738, 0.785, 0.06, 0.144, 20.0)


class Planted(nn.Module):
    """An autoencoder in diffusers' form whose latents are the images, and which decodes them by `decoded`."""

    def __init__(self, decoded: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.decoded, self.config = decoded, SimpleNamespace(scaling_factor=1.0)

    def encode(self, images: Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=images, logvar=torch.zeros_like(images)))

    def decode(self, latents: Tensor) -> Any:
        return SimpleNamespace(sample=self.decoded(latents))


def with_autoencoder(bench: Bench, decoded: Callable[[Tensor], Tensor]) -> Generator:
    found = copy.copy(bench.generator())
    found.vae = Planted(decoded)
    return found


def identity(latents: Tensor) -> Tensor:
    return latents


def colourless(latents: Tensor) -> Tensor:
    """Grey: what tells the classes of `toy` apart is gone."""
    return latents.mean(1, keepdim=True).expand_as(latents)


def test_an_autoencoder_that_destroys_the_classes_is_called_too_coarse(bench: Bench) -> None:
    images = toy(60, 0, size=16)
    found = measure(images, with_autoencoder(bench, colourless), resolution=16, used=16)
    assert found.plain > 0.95 and found.through < 0.6 and found.within < 0.6
    assert found.too_coarse and 0 < found.low < found.loss < found.high <= 1
    assert found.loss == pytest.approx(found.plain - found.through)
    said = found.warning
    assert said is not None and said.startswith("toy keeps too little of these images: a probe on their features loses")
    assert f"({100 * found.plain:.1f} -> {100 * found.through:.1f} %, 5 folds of 60 training images)" in said


def test_an_autoencoder_that_keeps_all_is_not(bench: Bench) -> None:
    found = measure(toy(60, 0, size=16), with_autoencoder(bench, identity), resolution=16, used=16)
    assert found.loss == 0 and found.plain == found.through == found.within
    assert found.low < 0 < found.high and not found.too_coarse and found.warning is None


def test_a_loss_is_too_coarse_beyond_chance_and_above_three_points_alone() -> None:
    assert FOUND.too_coarse
    assert not replace(FOUND, low=-0.001).too_coarse
    assert not replace(FOUND, through=FOUND.plain - 0.029, low=0.01).too_coarse
    balanced = replace(FOUND, measure="balanced accuracy", own=96, used=32)
    assert "at 64 px of their 96 px, seen at 32 px (balanced accuracy 84.0 -> 73.8 %," in balanced.sentence


def test_the_interval_holds_the_truth() -> None:
    """Both sides learn from noisy views of one truth that are distributed alike: the expected loss is 0."""
    stream = np.random.default_rng(0)
    labels = torch.arange(100) % 4
    fold = np.arange(100) // 4 % FOLDS
    held = []
    for _ in range(60):
        truth = (stream.normal(size=(4, 40)) * 0.5)[labels.numpy()] + stream.normal(size=(100, 40))
        views = [torch.from_numpy(truth + 0.7 * stream.normal(size=truth.shape)) for _ in range(2)]
        plain, through = (cross_validated(view, views[0], labels, fold) for view in views)
        _, low, high, _ = loss_interval({"plain": plain, "through": through}, labels)
        held.append(low <= 0 <= high)
    assert 0.89 <= np.mean(held) <= 1


def test_the_interval_is_that_of_paired_differences_over_the_images() -> None:
    plain = torch.tensor([True] * 50 + [False] * 50)
    through = torch.tensor([True] * 30 + [False] * 70)
    labels = torch.arange(100) % 2
    rates, low, high, name = loss_interval({"plain": plain, "through": through}, labels)
    error = (100 / 99 * 0.2 * 0.8 / 100) ** 0.5  # 20 of 100 differences are 1, the others 0
    assert name == "accuracy" and (rates["plain"], rates["through"]) == (0.5, 0.3)
    assert (low, high) == pytest.approx((0.2 - 1.984 * error, 0.2 + 1.984 * error), abs=1e-4)
    uneven = torch.tensor([0] * 80 + [1] * 20)
    rates, low, high, name = loss_interval({"plain": plain, "through": through}, uneven)
    assert name == "balanced accuracy" and rates["plain"] == pytest.approx(50 / 80 / 2)
    assert (low + high) / 2 == pytest.approx(rates["plain"] - rates["through"])


def test_images_are_drawn_evenly_by_their_ids() -> None:
    images = toy(90, 0)
    some = images.subset([row for row in range(90) if images.labels[row] != 2 or row < 12])  # 30, 30 and 4 images
    found = drawn(some, 44)
    assert found.labels.bincount().tolist() == [22, 22], "the class of 4 is left out"
    shuffled = some.subset(torch.randperm(len(some), generator=torch.Generator().manual_seed(3)).tolist())
    assert drawn(shuffled, 44).ids == found.ids and set(found.ids) < set(drawn(some).ids)
    with pytest.raises(DataError, match="39 images are in classes of at least 5; it takes 40"):
        drawn(images, 39)
    many = replace(images, class_names=(*images.class_names, *(f"more {k}" for k in range(15))))
    many = replace(many, labels=torch.arange(90) % 18)
    assert len(drawn(many, 45).labels.unique()) == 9, "five of each, so nine classes"


def test_equal_and_nearly_equal_images_share_a_fold() -> None:
    images = toy_images(50, size=32)
    pixels = images.images.clone()
    pixels[25:] = (pixels[:25].int() + 4).clamp(max=255).to(torch.uint8)  # the same pictures, a little brighter
    labels = images.labels.clone()
    labels[25:] = labels[:25]
    fold = folds(replace(images, images=pixels, labels=labels))
    assert (fold[:25] == fold[25:]).all() and set(fold.tolist()) == set(range(FOLDS))
    assert max(np.bincount(fold)) <= 14


def test_folds_need_groups_of_every_class() -> None:
    images = toy(50, 0, size=16)
    labels = torch.arange(50) % 2
    few = replace(images, labels=labels, groups=tuple(f"video {row // 2 % 4}" for row in range(50)))
    with pytest.raises(DataError, match=r"of 4 group\(s\).* it takes 5"):
        folds(few)
    one = tuple("one" if label else f"other {row // 10}" for row, label in enumerate(labels.tolist()))
    with pytest.raises(DataError, match="without one fold a single class is left"):
        folds(replace(images, labels=labels, groups=one))


def test_inspect_says_that_groups_are_too_few(bench: Bench, tmp_path: Path) -> None:
    """Each class is of one patient."""
    write_images(tmp_path / "train", toy(60, 0, size=16), range(60))
    write_images(tmp_path / "test", toy(12, 1, size=16), range(12))
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    patients = tmp_path / "patients.csv"
    patients.write_text("".join(f"{file.as_posix()},{'-'.join(file.parts[:2])}\n" for file in files))
    device = ("--device", "cpu", "--dtype", "float32")
    looked = dinv("inspect", tmp_path, "--groups", patients, "--generator", bench.checkpoint, *device)
    assert looked.exit_code == 0, looked.output
    assert "keeps of these images is not known: the images are of 3 group(s)" in looked.output


def test_a_large_autoencoder_on_a_cpu_is_not_waited_for(bench: Bench) -> None:
    assert affordable(bench.generator(), 16) == 400
    with pytest.raises(DataError, match="on a CPU the autoencoder of toy takes too long at 65536 px"):
        affordable(bench.generator(), 1 << 16)


def test_it_is_measured_once_and_again_where_images_came_or_the_file_was_lost(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, generator = toy(60, 0, size=16), with_autoencoder(bench, colourless)
    first = coarseness(tmp_path, images, generator, 16, 16)
    assert first is not None and "note: toy keeps too little of these images" in capsys.readouterr().err
    path = tmp_path / COARSENESS_FILE
    content = path.read_bytes()
    assert coarseness(tmp_path, images, generator, 16, 16) == first
    assert path.read_bytes() == content, "with its seconds: it was not measured again"
    said = capsys.readouterr().err
    assert "keeps too little" in said and "autoencoder:" not in said
    path.write_bytes(b"{}")
    with run_lock(tmp_path):
        discard(tmp_path, verify(tmp_path))
        again(tmp_path, images, generator)
    assert json.loads(path.read_text())["found"] | {"seconds": 0} == vars(first) | {"seconds": 0}
    assert not verify(tmp_path).findings
    more = coarseness(tmp_path, toy(80, 0, size=16), generator, 16, 16)
    assert more is not None and more.images == 80


def test_a_failure_is_a_note(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(latents: Tensor) -> Tensor:
        raise RuntimeError("out of memory\nwith a long trace")

    assert coarseness(tmp_path, toy(60, 0, size=16), with_autoencoder(bench, broken), 16, 16) is None
    assert "note: how much toy keeps of these images is not known: out of memory.\n" in capsys.readouterr().err
    assert coarseness(tmp_path, toy(12, 0), bench.generator(), 16, 8) is None
    said = capsys.readouterr().err
    assert "is not known: 0 images are in classes of at least 5; it takes 40, in two classes or more" in said
    assert not (tmp_path / COARSENESS_FILE).exists()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coarse")
    write_images(folder / "train", toy(60, 0, size=16), range(60))
    write_images(folder / "test", toy(12, 1, size=16), range(12))
    write_images(folder / "other", toy(24, 2, size=16), range(24))
    return folder


def test_invert_and_inspect_say_it_of_training_images_alone(bench: Bench, data: Path, tmp_path: Path) -> None:
    short = ("--generator", bench.checkpoint, "--steps", 1, "--init", "random", "--device", "cpu", "--dtype", "float32")
    found = []
    for test in ("test", "other"):
        done = dinv("invert", data / "train", "--test", data / test, "--out", tmp_path / test, *short)
        assert done.exit_code == 0, done.output
        assert done.stderr.index("autoencoder") < done.stderr.index("invert:"), "before stage 1"
        found.append(json.loads((tmp_path / test / COARSENESS_FILE).read_text()))
        found[-1]["found"].pop("seconds")
    assert found[0] == found[1], "whatever the test images are"
    looked = dinv(
        "inspect", data / "train", "--test", data / "test", "--generator", bench.checkpoint, "--device", "cpu", "--json"
    )
    assert looked.exit_code == 0, looked.output
    record = json.loads(looked.stdout)
    assert "5 folds of 60 training images" in record["coarseness"]["sentence"]
    assert record["coarseness"]["plain"] == pytest.approx(found[0]["found"]["plain"])


def test_it_stands_beside_the_verdict_and_goes_when_an_image_is_forgotten(run: Path, bench: Bench) -> None:
    size = json.loads((run / "sample.config.json").read_text())["settings"]["image_size"]

    def report(found: Coarseness) -> tuple[Any, str, str]:
        text = json.dumps({"made_with": {}, "found": vars(found)})
        Ledger(run).commit(COARSENESS_FILE, text.encode(), note={"resolution": 16, "used": size})
        finish(bench, run, "report")
        record: Any = json.loads((run / "run.json").read_text())
        text = summarise(run, record)["text"]
        return record["verdict"], " ".join((run / "report.html").read_text().split()), text

    verdict, page, text = report(replace(FOUND, used=size))
    assert verdict["coarseness"]["too_coarse"] and verdict["coarseness"]["loss"] == pytest.approx(0.102)
    assert "mini keeps too little of these images</strong>: a probe on their features loses 10.2 points" in page
    assert "mini keeps too little of these images: a probe on their features loses 10.2 points [6.0, 14.4]" in text
    verdict, page, text = report(replace(FOUND, used=size, low=-0.01))
    assert not verdict["coarseness"]["too_coarse"] and "No loss that matters was seen" in page
    assert "keeps too little" not in text
    assert "coarseness" not in report(replace(FOUND, used=size + 1))[0], "measured for classifiers of another size"
    forget(run, read_embeddings(run).ids[:1])
    assert not (run / COARSENESS_FILE).exists() and not verify(run).findings
