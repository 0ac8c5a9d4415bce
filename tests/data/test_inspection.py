"""Inspection finds what loading refuses, all of it, and shows it so that no name can mislead."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from image_files import class_folders, noise, save

from diffusion_inversion.data.datasets import load_splits
from diffusion_inversion.data.inspection import inspect
from diffusion_inversion.errors import DataError, UsageError


def broken(folder: Path) -> tuple[Path, Path]:
    """A training and a test folder with a problem of every kind."""
    train = class_folders(folder / "one", {"cat": 4, "dog": 3})
    test = class_folders(folder / "two", {"cat": 3, "dog": 3})
    whole = save(train / "cat/cut.png", noise(64, 64, 3)).read_bytes()
    (train / "cat/cut.png").write_bytes(whole[: len(whole) // 2])
    (train / "dog/void.png").touch()
    (train / "dog/notes.txt").touch()
    save(train / "loose.png")
    (test / "dog/copy.png").write_bytes((train / "cat/000.png").read_bytes())
    (test / "cat/text.jpg").write_text("text")
    return train, test


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    train, test = broken(tmp_path)
    found = inspect(str(train), test=str(test))
    assert not found.usable and found.how == "given" and found.size == 8
    fatal = {(p.file, p.cause.split(":")[0]) for part in (found.train, found.test) for p in part.problems if p.fatal}
    assert fatal == {
        ("cat/cut.png", "unreadable"),
        ("dog/void.png", "the file is empty"),
        ("loose.png", "image outside a class folder"),
        ("cat/text.jpg", "unreadable"),
        ("dog/copy.png", "same pixels as training image cat/000.png"),
    }
    assert ("dog/notes.txt", False) in {(p.file, p.fatal) for p in found.train.problems}
    assert (found.train.images, found.train.usable) == (9, 7)
    assert found.train.classes == {"cat": 5, "dog": 4}
    assert found.test.formats == {"PNG RGB": 7}
    with pytest.raises(DataError):
        load_splits(train, test=test)


def test_usable_means_that_loading_works(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 10, "dog": 10})
    save(tmp_path / "cat/wide.png", noise(12, 30, 3))
    found = inspect(str(tmp_path))
    splits = load_splits(tmp_path)
    assert found.usable and found.how == splits.how == "holdout"
    assert (found.train.usable, found.test.usable) == (len(splits.train), len(splits.test))
    assert found.size == splits.train.size
    assert max(found.train.sides[2], found.test.sides[2]) == 12


def test_notes_are_those_of_loading(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 10, "dog": 10})
    (tmp_path / "cat/Thumbs.db").touch()
    (tmp_path / "cat/x.png").write_bytes((tmp_path / "cat/000.png").read_bytes())
    found = inspect(str(tmp_path), drop_duplicates=True)
    splits = load_splits(tmp_path, drop_duplicates=True)
    assert [*found.train.problems, *found.test.problems] == [*splits.train.problems, *splits.test.problems]


def test_classes_that_differ_do_not_end_it(tmp_path: Path) -> None:
    train, test = broken(tmp_path)
    (test / "dog").rename(test / "wolf")
    found = inspect(str(train), test=str(test))
    causes = [problem.cause for problem in found.train.problems if problem.fatal]
    assert any("classes of train and test differ" in cause for cause in causes)
    assert any("unreadable" in cause for cause in causes)
    assert any("unreadable" in problem.cause for problem in found.test.problems)


def test_empty_and_one_class_are_fatal_problems(tmp_path: Path) -> None:
    empty = inspect(str(tmp_path))
    assert "no images" in [problem.cause for problem in empty.train.problems]
    assert not empty.usable and empty.train.sides == (0, 0, 0)
    assert empty.table()
    one = inspect(str(class_folders(tmp_path, {"cat": 5})))
    [problem] = [problem for problem in one.train.problems if "one class, cat" in problem.cause]
    assert problem.remedy.startswith("add a folder for each other class") and not one.usable


def test_what_names_no_data_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        inspect(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="size"):
        inspect("digits", size=0)


def test_no_name_misleads_a_terminal_or_spreadsheet(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 6, "dog": 6})
    hostile = ["\x1b[2J\nfake  line.png", "\u202egnp.exe.png", "=1+1.png", "@SUM(A1).png", "+1.png", "-1.png", "猫.png"]
    for name in hostile:
        (tmp_path / "cat" / name).write_bytes(b"text")
    (tmp_path / "=cmd|x.txt").touch()
    found = inspect(str(tmp_path))
    text = found.table()
    assert not set("\x1b\u202e\r") & set(text)
    assert r"cat/\x1b[2J\nfake  line.png" in text and r"\u202egnp.exe.png" in text and "猫.png" in text

    found.write_csv(tmp_path / "problems.csv")
    content = (tmp_path / "problems.csv").read_bytes().decode()
    rows = list(csv.reader(content.splitlines()))
    assert rows[0] == ["split", "file", "severity", "cause", "remedy"]
    assert len(rows) == 1 + len(found.train.problems) + len(found.test.problems)
    assert not set("\x1b\u202e") & set(content)
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    assert "'=cmd|x.txt" in {row[1] for row in rows}
    json.dumps(found.record(), allow_nan=False)
    assert found.record()["usable"] is found.usable is False


def test_table_is_aligned_whatever_the_width_of_letters(tmp_path: Path) -> None:
    from rich.cells import cell_len

    class_folders(tmp_path, {"cat": 6, "dog": 6})
    for name in ("猫猫.txt", "plain.txt", "e\u0301.txt"):
        (tmp_path / "cat" / name).touch()
    lines = [line for line in inspect(str(tmp_path)).table().splitlines() if "no image by its suffix" in line]
    assert len(lines) == 3
    assert len({cell_len(line[: line.index("no image")]) for line in lines}) == 1


def test_memory_does_not_grow_with_the_pixels(tmp_path: Path) -> None:
    """Thumbnails of 3 KB are kept, never 100 pictures of 1.5 MB."""
    import tracemalloc

    pixels = noise(700, 700, 3)
    for row in range(40):
        pixels[row, row] ^= 255
        save(tmp_path / "ab"[row % 2] / f"{row:03d}.bmp", pixels)
    tracemalloc.start()
    found = inspect(str(tmp_path), allow_near_duplicates=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.train.usable + found.test.usable == 40
    assert peak < 20e6  # NumPy's arrays are traced: 40 pictures are 59 MB
