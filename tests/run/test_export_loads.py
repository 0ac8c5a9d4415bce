"""What `datasets` makes of an export by its folder alone, whatever words are in the names of classes and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drawn import drawn

from diffusion_inversion.config.commands import ExportSettings
from diffusion_inversion.run.export.stage import OF_IMAGES, export

CLASSES = ("train", "cat", "val", "test", "__none", "a[b] *")


@pytest.fixture(scope="module")
def of_words(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose classes and sources are called as splits are."""
    sources = [(name, f"eval/{name}/test {number}.png", {}) for name in CLASSES for number in range(2)]
    return drawn(tmp_path_factory.mktemp("words") / "run", finished, sources)


@pytest.mark.parametrize("to", OF_IMAGES)
def test_no_word_in_a_path_makes_a_split(of_words: Path, tmp_path: Path, to: Any) -> None:
    from datasets import load_dataset

    export(of_words, ExportSettings(to=to, out=tmp_path / "out", source_ids="plain"))
    found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"] and len(found["train"]) == 4 * len(CLASSES)
    rows = found["train"]
    if to in ("imagefolder", "parquet"):
        assert rows.features["label"].names == list(CLASSES)
        assert [CLASSES[label] for label in rows["label"][:]] == rows["class_name"][:]
        assert all(row["image"] is not None for row in rows)
    if to == "webdataset":
        assert sorted(rows["cls"][:]) == sorted([*range(len(CLASSES))] * 4)


def test_the_call_that_documents_show_opens_a_runs_own_folder(of_words: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    files = {"train": ["*/*.png", "metadata.parquet"]}
    folder, kept = str(of_words / "synthetic"), str(tmp_path)
    rows = load_dataset("imagefolder", data_dir=folder, data_files=files, cache_dir=kept)["train"]
    assert len(rows) == 4 * len(CLASSES) and rows.features["label"].names == list(CLASSES)
    assert [CLASSES[label] for label in rows["label"][:]] == rows["class_name"][:]
    assert all(row["image"] is not None for row in rows)
