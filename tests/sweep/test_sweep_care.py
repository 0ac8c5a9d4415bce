"""Sweeps that share a folder, meet other data, lose files: what is done again, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import dinv
from harness import Bench
from image_files import noise, save
from sweeps import sweep, write_sweep

from diffusion_inversion.errors import UsageError
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.sweep import read_plan
from diffusion_inversion.sweep.plan import cells
from diffusion_inversion.sweep.work import Workshop

NOISE = '[grid]\n"sample.noise_strength" = [0.1, 0.2]\n'


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / f"{name}.json").read_text())["rows"]
    return found


def test_files_of_one_folder_do_not_take_images_from_each_other(bench: Bench, tmp_path: Path) -> None:
    many = write_sweep(tmp_path / "many.toml", bench, NOISE, variants=3)
    few = write_sweep(tmp_path / "few.toml", bench, NOISE, variants=2)
    assert sweep(many, tmp_path / "out").exit_code == 0
    before = rows(tmp_path / "out", "many")
    assert sweep(few, tmp_path / "out").exit_code == 0
    assert [row["synthetic_images"] for row in rows(tmp_path / "out", "few")] == [24, 24]
    for images in (tmp_path / "out" / "images").iterdir():
        assert SyntheticStore(images, ()).complete() == 3, "the smaller file leaves the larger one's images"
    more_seeds = many.read_text().replace("seeds = [0]", "seeds = [0, 1]")
    many.write_text(more_seeds)
    assert sweep(many, tmp_path / "out").exit_code == 0
    after = rows(tmp_path / "out", "many")
    assert [row["accuracies"][0] for row in after] == [row["accuracies"][0] for row in before]


def test_other_images_are_refused(bench: Bench, tmp_path: Path) -> None:
    data = Path(shutil.copytree(bench.data, tmp_path / "data"))
    file = write_sweep(tmp_path / "care.toml", bench, NOISE, data=data)
    assert sweep(file, tmp_path / "out").exit_code == 0
    (tmp_path / "again").mkdir()
    for part in ("train", "test"):
        image = next((data / part).rglob("*.png"))
        content = image.read_bytes()
        image.unlink()
        refused = sweep(file, tmp_path / "out")
        assert refused.exit_code == 5, refused.output
        assert f"the {part} images are not those" in refused.stderr
        image.write_bytes(content)
    assert sweep(file, tmp_path / "out").exit_code == 0


def test_vectors_of_other_images_are_refused_whatever_they_are_tested_on(bench: Bench, tmp_path: Path) -> None:
    """Which test images there are makes no difference to vectors, so these are those of the file before."""
    train = Path(shutil.copytree(bench.data / "train", tmp_path / "train"))
    file = write_sweep(tmp_path / "care.toml", bench, NOISE, data=train)
    done = sweep(file, tmp_path / "out", "--test", bench.data / "test")
    assert done.exit_code == 0, done.output
    other = shutil.copytree(bench.data / "test", tmp_path / "other")
    first, second, *_ = sorted(train.rglob("*.png"))
    content = first.read_bytes()

    def require_refused(count: int) -> None:
        refused = sweep(file, tmp_path / "out", "--test", other)
        assert refused.exit_code == 5, refused.output
        said = f"{train}: {count} of the {len(list(train.rglob('*.png')))} training images are not those whose vectors"
        assert said in refused.stderr and "Restore them, or give another --out." in refused.stderr
        assert len(list((tmp_path / "out" / "results" / "splits").iterdir())) == 1, "before any job"

    save(first, noise(16, 16, 3))
    require_refused(1)
    save(first.with_name("new.png"), noise(16, 16, 3))
    require_refused(2)
    first.write_bytes(content)
    require_refused(1)
    first.with_name("new.png").rename(second)
    require_refused(1)
    shutil.rmtree(train)
    shutil.copytree(bench.data / "train", train)
    again = sweep(file, tmp_path / "out", "--test", other)
    assert again.exit_code == 0 and "vectors:" not in again.stderr and "images:" not in again.stderr, again.output


def test_what_repair_took_back_is_made_again(bench: Bench, tmp_path: Path) -> None:
    file = write_sweep(tmp_path / "care.toml", bench, NOISE)
    assert sweep(file, tmp_path / "out").exit_code == 0
    before = rows(tmp_path / "out", "care")
    kept = {path: path.read_bytes() for path in (tmp_path / "out").glob("images/*/synthetic/*/*.png")}
    lost = sorted(kept)[0]
    lost.write_bytes(b"damaged")
    dinv("repair", lost.parents[2])
    shutil.rmtree(tmp_path / "out" / "results" / "classifiers")
    again = sweep(file, tmp_path / "out")
    assert again.exit_code == 0, again.output
    assert rows(tmp_path / "out", "care") == before
    assert {path: path.read_bytes() for path in kept} == kept


def test_an_arm_reads_only_what_it_needs(bench: Bench, tmp_path: Path) -> None:
    """Synthetic images do not go through the VAE, and neither mixing nor a fraction makes the arm real another."""
    cases = '[[cases]]\nname = "a"\nset = { "autoencode.train" = 16 }\n'
    cases += '[[cases]]\nname = "b"\nset = { "train.mixing" = "sequential" }\n'
    file = write_sweep(tmp_path / "care.toml", bench, cases, arms=("synthetic", "real"))
    done = sweep(file, tmp_path / "out")
    assert done.exit_code == 0, done.output
    results = tmp_path / "out" / "results"
    assert len(list((results / "classifiers").iterdir())) == 3, "real twice, synthetic once"
    assert len(list((results / "autoencoded").iterdir())) == 1


def test_vectors_do_not_depend_on_the_test_images(bench: Bench, tmp_path: Path) -> None:
    file = write_sweep(tmp_path / "care.toml", bench, '[grid]\n"data.test_limit" = [4, 6]\n')
    assert sweep(file, tmp_path / "out").exit_code == 0
    count = {kind.name: len(list(kind.iterdir())) for kind in (tmp_path / "out" / "results").iterdir()}
    assert count == {"splits": 2, "vectors": 1, "images": 1, "classifiers": 2}


def test_rows_of_equal_labels_stay_apart(bench: Bench, tmp_path: Path) -> None:
    """Cases a and b share one arm real, c and d another; the cases are all they differ in."""
    names = {"a": (1, "default"), "b": (2, "default"), "c": (1, "none"), "d": (2, "none")}
    cases = "".join(
        f'[[cases]]\nname = "{name}"\nset = {{ "sample.variants" = {variants}, '
        f'"train.augmentations" = ["{augmented}"] }}\n'
        for name, (variants, augmented) in names.items()
    )
    file = write_sweep(tmp_path / "care.toml", bench, cases, arms=("real", "synthetic"))
    done = sweep(file, tmp_path / "out")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "care.md").read_text()
    assert text.count("| 12 |") == 6, text
    assert "c; d" in text


@pytest.mark.parametrize("where", ["relative", "absolute"])
def test_a_path_in_the_file_is_the_same_from_any_folder(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    file = write_sweep(tmp_path / "care.toml", bench, NOISE)
    assert sweep(file, tmp_path / "out").exit_code == 0
    if where == "relative":
        monkeypatch.chdir(bench.data.parent)
        file.write_text(file.read_text().replace(str(bench.data), bench.data.name))
    count = len(list((tmp_path / "out" / "results").rglob("*.json")))
    assert sweep(file, tmp_path / "out").exit_code == 0
    assert len(list((tmp_path / "out" / "results").rglob("*.json"))) == count


def test_paths_that_vary_are_the_same_from_any_folder_too(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a file may name its data there alone: in the grid, or in every case."""
    file = tmp_path / "care.toml"
    texts = [
        '[grid]\n"data.data" = [{}]\n"data.test" = [{}]\n',
        '[[cases]]\nname = "one"\nset = {{ "data.data" = {}, "data.test" = {} }}\n',
    ]
    monkeypatch.chdir(bench.data.parent)
    found = []
    for text in texts:
        for folder in (bench.data, Path(bench.data.name)):
            given = [json.dumps(str(folder / part)) for part in ("train", "test")]
            alone = write_sweep(file, bench, text.format(*given)).read_text().replace(f'data = "{bench.data}"\n', "")
            file.write_text(alone)
            plan = read_plan(file)
            workshop = Workshop(plan, tmp_path / "out", bench.generator(), "cpu")
            workshop.add(cells(plan))
            found.append([*workshop.jobs])
    assert found[0] and all(names == found[0] for names in found)
    (tmp_path / "link").symlink_to(bench.data)
    link = str(tmp_path / "link" / "train")
    write_sweep(file, bench, f'[grid]\n"data.data" = ["{link}"]\n')
    assert cells(read_plan(file))[0].data.data == link, "jobs of absolute paths keep the names that they had"
    text = texts[1].format('"data"', '"data"') + '[[cases]]\nname = "two"\nset = {}\n'
    file.write_text(write_sweep(file, bench, text).read_text().replace(f'data = "{bench.data}"\n', ""))
    with pytest.raises(UsageError, match="names no data"):
        read_plan(file)
