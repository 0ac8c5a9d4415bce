"""The corpus of the recipe: read and parted alike everywhere; what is wrong with it is one line before any training."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_pretrain import NAMES, write_corpus

from diffusion_inversion.errors import DataError
from diffusion_inversion.pretrain import recipe
from diffusion_inversion.pretrain.corpus import Corpus, hold_out, load_corpus
from diffusion_inversion.sample.png import encode_png

IMAGE = {"bytes": encode_png(torch.zeros(3, 32, 32, dtype=torch.uint8)), "path": None}


def test_a_corpus_is_read_and_parted_alike_everywhere(corpus: Corpus, tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "corpus.parquet", corpus.images, corpus.labels.tolist())
    read = load_corpus(path, 32)
    assert torch.equal(read.images, corpus.images) and torch.equal(read.labels, corpus.labels) and read.names == NAMES
    kept, held = hold_out(read, 5)
    expected = torch.randperm(16, generator=torch.Generator().manual_seed(1))[:5].sort().values
    assert torch.equal(held.images, corpus.images[expected]) and len(kept.labels) == 11
    with pytest.raises(DataError, match="16 images, 16 of them are held out"):
        hold_out(read, 16)


def test_bad_corpora_get_one_line(corpus: Corpus, tmp_path: Path) -> None:
    labels = corpus.labels.tolist()
    nameless = write_corpus(tmp_path / "nameless.parquet", corpus.images, labels, names=None)
    good = write_corpus(tmp_path / "good.parquet", corpus.images, labels)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    table = pq.read_table(good)
    cells = table["image"].to_pylist()
    cells[3]["bytes"] = cells[3]["bytes"][:40]
    pq.write_table(table.set_column(0, "image", pa.array(cells)), tmp_path / "torn.parquet")
    for path, size, message in (
        (tmp_path / "none.parquet", 32, "no such file"),
        (tmp_path / "bad.parquet", 32, "not a parquet file"),
        (nameless, 32, "no class names"),
        (tmp_path / "torn.parquet", 32, r"torn\.parquet: image 3 cannot be decoded"),
        (good, 64, "32 x 32 px, expected 64 x 64"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            load_corpus(path, size)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="16 images to train on, fewer than a batch of 128"):
        recipe.pretrain(good, good, tmp_path / "out", size=32, device="cpu")


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("label", [0, 1, -1], "row 2 has the label -1, how the hub marks an image without one"),
        ("label", [0, 2, 1], "row 1 has the label 2, which is none of the 2 classes"),
        ("label", [1.5, 0.0, 1.0], "row 0 has the label 1.5, .* from 0 to 1"),
        ("label", [0, None, 1], "row 1 has the label None"),
        ("label", ["0", "1", "1"], "row 0 has the label '0'"),
        ("label", [False, True, True], "row 0 has the label False"),
        ("image", [IMAGE, None, IMAGE], "row 1 has no image but null"),
        ("image", [IMAGE, IMAGE, IMAGE | {"bytes": None, "path": "a.png"}], "row 2 has no image but a path alone"),
        ("image", [IMAGE["bytes"]] * 3, "row 0 has no image but bytes"),
        ("image", ["a.png"] * 3, "row 0 has no image but str"),
    ],
)
def test_a_cell_that_is_no_image_or_label_gets_one_line(
    tmp_path: Path, column: str, cells: list[object], message: str
) -> None:
    """A label of -1 would take the last class's prompts, without a word."""
    path = write_corpus(tmp_path / "corpus.parquet", torch.zeros(3, 3, 32, 32, dtype=torch.uint8), [0, 1, 1])
    assert load_corpus(path, 32).labels.tolist() == [0, 1, 1]
    table = pq.read_table(path)
    place = table.column_names.index(column)
    metadata = table.schema.metadata
    pq.write_table(table.set_column(place, column, pa.array(cells)).replace_schema_metadata(metadata), path)
    with pytest.raises(DataError, match=rf"corpus\.parquet: {message}") as caught:
        load_corpus(path, 32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [(), ("goldfish", ""), ("goldfish", 7), "goldfish"], ids=str)
def test_names_that_make_no_prompts_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = write_corpus(tmp_path / "corpus.parquet", torch.zeros(2, 3, 32, 32, dtype=torch.uint8), [0, 1], names)
    with pytest.raises(DataError, match="no class names"):
        load_corpus(path, 32)
