"""Images of a GAN and of class prompts as cells of a sweep, beside real ones; classes keep their numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from harness import Bench
from sweeps import sweep
from toy import toy_images

from diffusion_inversion.config.commands import GanInvertSettings, GanSampleSettings, GanSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.errors import UsageError
from diffusion_inversion.pretrain.gan.training import train_gan
from diffusion_inversion.run.methods import images_store
from diffusion_inversion.sweep import elsewhere, read_plan
from diffusion_inversion.sweep.pictures import COLUMNS, first_of_classes
from diffusion_inversion.sweep.plan import cells, replicates
from diffusion_inversion.sweep.ways import OfGan
from diffusion_inversion.sweep.work import Workshop

FILE = """
title = "One footing"
generator = "{toy}"
replicates = 2
[data]
data = "{train}"
test = "{test}"
root = "{root}"
[sample]
resolution = 32
[train]
architecture = "resnet20"
steps = 1
batch_size = 4
seeds = [0]
arms = ["synthetic"]
[[cases]]
name = "real images"
set = {{ "train.arms" = ["real"] }}
[[cases]]
name = "GAN"
set = {{ "gan.weights" = "{gan}", "gan.variants" = 2 }}
[[cases]]
name = "GAN inversion"
set = {{ "gan.weights" = "{gan}", "gan.how" = "invert", "gan.steps" = 1, "gan.starts" = 1 }}
[[cases]]
name = "class prompts"
[cases.set]
"prompts.prompts" = "a photo of a {{class}}"
"prompts.variants" = 3
"prompts.inference_steps" = 1
"prompts.resolution" = 32
"""
NAMES = ["dog", "cat"]  # not in the order of the alphabet, which that of prompts is


def write_table(path: Path, rows: range) -> Path:
    import datasets as hf

    images = toy_images(12, 32)
    columns = {
        "image": [images.images[row].permute(1, 2, 0).numpy() for row in rows],
        "label": [NAMES.index(images.class_names[int(images.labels[row])]) for row in rows],
    }
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=NAMES)})
    hf.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


@pytest.fixture
def file(bench: Bench, tmp_path: Path) -> Path:
    train, test = (
        write_table(tmp_path / "train.parquet", range(6)),
        write_table(tmp_path / "test.parquet", range(6, 12)),
    )
    gan_of(train, tmp_path / "gan", 1)
    path = tmp_path / "ways.toml"
    given = {"toy": bench.checkpoint, "train": train, "test": test, "root": tmp_path / "root"}
    path.write_text(FILE.format(gan=tmp_path / "gan", **given))
    return path


def drawn(out: Path) -> list[Path]:
    return [folder for folder in (out / "images").iterdir() if (folder / "synthetic").is_dir()]


def gan_of(table: Path, out: Path, steps: int) -> None:
    settings = GanSettings(steps=steps, width=2, latent_dim=4, batch_size=4, discriminator_steps=1)
    train_gan(load_images(str(table)), out, settings, torch.device("cpu"))


def test_images_of_a_gan_and_of_prompts_are_cells_beside_real_ones(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = sweep(file, out)
    assert done.exit_code == 0, done.output
    record = json.loads((out / "ways.json").read_text())
    found = {row["at"]["case"]: row["synthetic_images"] for row in record["rows"] if row["arm"] == "synthetic"}
    assert found == {"GAN": 12, "GAN inversion": 6, "class prompts": 6}
    assert "; GAN gan, files " in record["generator"], "the GAN is named in all that is shown"
    methods = [images_store(folder, ()).table("method").column(0).to_pylist() for folder in drawn(out)]
    assert sorted({one for rows in methods for one in rows}) == ["gan", "gan-inversion", "prompts"]
    assert len(methods) == 6, "each replicate draws anew"
    assert "](ways-images.png)" in (out / "ways.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
    assert sweep(file, out).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
    for image in (out / "images").rglob("*.png"):  # results do not need them any more, nor does the page
        image.unlink()
    (out / "ways-images.png").unlink()
    again = sweep(file, out)
    assert again.exit_code == 0 and "left out of the picture of all images" in again.output
    assert not (out / "ways-images.png").exists() and "ways-images" not in (out / "ways.md").read_text()
    (tmp_path / "gan").rename(tmp_path / "earlier")
    gan_of(tmp_path / "train.parquet", tmp_path / "gan", 2)
    elsewhere._gan.cache_clear()  # another call of the command is another process
    assert sweep(file, out).exit_code == 0, "other weights give images of their own"
    assert len(drawn(out)) == 10


def test_classes_of_prompts_keep_the_numbers_of_the_data(bench: Bench, file: Path, tmp_path: Path) -> None:
    assert sweep(file, tmp_path / "out").exit_code == 0
    plan = read_plan(file)
    workshop = Workshop(plan, tmp_path / "out", bench.generator(), "cpu")
    for cell in cells(plan)[1:]:
        for drawn_cell in replicates(plan, cell):
            images = workshop.made(drawn_cell).synthetic
            folders = [image_id.partition("/")[0] for image_id in images.ids]
            assert images.class_names == tuple(NAMES)
            assert [NAMES.index(name) for name in folders] == images.labels.tolist()
    for folder in drawn(tmp_path / "out"):
        store = images_store(folder, tuple(NAMES))
        made, shown = store.read(), first_of_classes(store, NAMES)
        there = [one for one in shown if one is not None]
        assert len(there) == min(len(made), COLUMNS)
        labels = [made.labels[(made.images == one).flatten(1).all(1).nonzero()[0, 0]] for one in there]
        assert [store.class_names[one] for one in labels] == [
            NAMES[n % 2] for n, one in enumerate(shown) if one is not None
        ]


def test_a_replicate_draws_with_a_seed_of_its_own_from_the_same_weights(file: Path) -> None:
    plan = read_plan(file)
    kinds = (GanSampleSettings, GanInvertSettings)
    for cell, kind in zip(cells(plan)[1:3], kinds, strict=True):
        first, second = (one.way for one in replicates(plan, cell))
        assert isinstance(first, OfGan) and isinstance(second, OfGan)
        assert first.weights == second.weights and first.settings.seed != second.settings.seed
        assert type(first.settings) is type(second.settings) is kind


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"gan.how" = "invert"', '"gan.how" = "paint"', "gan.how='paint': give sample"),
        ('"gan.variants" = 2', '"gan.steps" = 2', "gan.steps=2|steps=2"),
        ('"prompts.prompts" = "a photo of a {class}"', '"prompts.seed" = 1', "prompts.prompts: missing"),
        ('"gan.variants" = 2', '"prompts.prompts" = "{class}"', "prompts and gan: a cell's images are made in one way"),
    ],
)
def test_what_a_section_cannot_mean_is_refused(file: Path, old: str, new: str, said: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=said):
        cells(read_plan(file))


def test_weights_and_prompts_that_do_not_fit_are_refused_before_anything_is_computed(
    file: Path, tmp_path: Path
) -> None:
    text, lines = file.read_text(), tmp_path / "prompts.txt"
    gan_of(tmp_path / "test.parquet", tmp_path / "tested", 1)
    lines.write_text("dog\ta dog\nbird\ta bird\n")
    for old, new, said in (
        ("resolution = 32", "resolution = 16", "draws 32 px, and the arms have 16 px"),
        ('gan"', 'nowhere"', "nowhere: no such file"),
        ('gan"', 'tested"', "tested: was trained on 6 of the 6 test images"),
        ('"a photo of a {class}"', f'"{lines}"', "class 'bird' (2 in all) is either without a prompt"),
    ):
        assert old in text
        file.write_text(text.replace(old, new))
        refused = sweep(file, tmp_path / "out")
        assert refused.exit_code != 0 and said in refused.output
        assert not list((tmp_path / "out").rglob("*.png"))
