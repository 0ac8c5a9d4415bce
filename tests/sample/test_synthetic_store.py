"""The store of stage 2 as columns and pixels: equal to what its records and files say one by one."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import DataError
from diffusion_inversion.sample import packed, png
from diffusion_inversion.sample.columns import COLUMNS, EARLIER
from diffusion_inversion.sample.drawing import draw_jobs
from diffusion_inversion.sample.png import encode_png, read_pngs
from diffusion_inversion.sample.synthetic import SyntheticStore, job_name, read_images

CLASSES = ("cat", "dog")
VARIANTS = 3
MIXED = {
    "further_ids": ["train/08.png", "train/09.png"],
    "further_versions": ["8", "9"],
    "mixture_weights": [0.4, 0.3, 0.2, 0.1],
}


def pictures(count: int, size: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def row(source: int, variant: int, **changes: Any) -> dict[str, Any]:
    return {
        **EARLIER, "source_id": f"train/{source:02d}.png", "variant": variant, "label": source % 2,
        "partner_id": f"train/{source + 2:02d}.png", "partner_label": source % 2, "interpolation": 0.1,
        "noise_strength": 0.25, "guidance_scale": 1.0 + variant, "inversion_step": 50, "scheduler": "ddim",
        "inference_steps": 20, "seed": 3, "generator": "mini", "generator_hash": "0" * 64,
        "source_version": f"{source:016x}", "partner_version": f"{source + 2:016x}", **changes,
    }  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> SyntheticStore:
    """Two units of unlike settings; the second has soft labels and sorts before the first."""
    found = SyntheticStore(tmp_path, CLASSES)
    plain = [row(source, variant) for source in (4, 5) for variant in range(VARIANTS)]
    soft = {"partner": "other-class", "group_size": 16, "resolution": 64, "guidance_interval": [0.25, 1.0]}
    blended = [
        row(source, variant, **soft, partner_label=1 - source % 2, label_weight=0.7, **(MIXED if variant else {}))
        for source in (0, 1) for variant in range(VARIANTS)
    ]  # fmt: skip
    for rows, images in ((plain, pictures(12)[:6]), (blended, pictures(12)[6:])):
        found.commit(images, rows)
    found.finish(VARIANTS)
    return found


def one_by_one(store: SyntheticStore) -> Iterator[dict[str, Any]]:
    """The table by its definition: a row for each image, from the columns of its unit and what is shared there."""
    for record in store.manifest.units().values():
        for place, (name, digest) in enumerate(record["files"].items()):
            own = {key: values[place] for key, values in record["columns"].items()}
            known = {**EARLIER, **record["shared"], **own, "file_name": name, "class_name": CLASSES[own["label"]]}
            yield {key: known[key] for key in COLUMNS} | {"sha256": digest}


def test_the_table_is_what_the_records_say_one_by_one(store: SyntheticStore) -> None:
    rows = list(one_by_one(store))
    assert store.table().to_pylist() == rows
    assert store.table("variant", "sha256").to_pylist() == [{k: r[k] for k in ("variant", "sha256")} for r in rows]


def test_metadata_has_the_bytes_that_rows_one_by_one_give(store: SyntheticStore) -> None:
    rows = sorted(one_by_one(store), key=lambda row: row["file_name"])
    named = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
    table = pa.Table.from_pylist([{key: row[key] for key in COLUMNS} for row in rows])
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(named)}), buffer)
    assert (store.folder / "metadata.parquet").read_bytes() == buffer.getvalue()


def test_read_is_in_the_order_of_the_names_and_of_the_first_variants(store: SyntheticStore) -> None:
    by_name = sorted(zip(one_by_one(store), pictures(12), strict=True), key=lambda pair: pair[0]["file_name"])
    for wanted in (1, VARIANTS):
        kept = [(entry, image) for entry, image in by_name if entry["variant"] < wanted]
        counts = {f"train/{source:02d}.png": wanted for source in (0, 1, 4, 5)}
        found = store.read(counts)
        assert found.ids == tuple(entry["file_name"] for entry, _ in kept)
        assert torch.equal(found.images, torch.stack([image for _, image in kept]))
        assert found.labels.tolist() == [entry["label"] for entry, _ in kept]
        assert found.soft is not None
        assert found.soft.second.tolist() == [entry["partner_label"] for entry, _ in kept]
        assert found.soft.weight.tolist() == pytest.approx([entry["label_weight"] for entry, _ in kept])
        assert store.sources(counts) == [
            (entry["source_id"], entry["partner_id"], *(entry["further_ids"] or ())) for entry, _ in kept
        ]


def test_remove_leaves_the_others_as_they_were(store: SyntheticStore) -> None:
    rows = list(one_by_one(store))
    gone = [rows[1]["file_name"], *(entry["file_name"] for entry in rows[6:])]
    assert store.remove([*gone, "cat/never-there.png"]) == 7
    assert list(one_by_one(store)) == [entry for entry in rows if entry["file_name"] not in gone]
    there = {entry["file_name"] for entry in rows if (store.folder / entry["file_name"]).exists()}
    assert there == {entry["file_name"] for entry in rows} - {*gone}
    (unit,) = store.manifest.units().values()
    assert unit["count"] == 5 and len(unit["ids"]) == 5


def test_a_store_without_images_is_empty(tmp_path: Path) -> None:
    empty = SyntheticStore(tmp_path, CLASSES)
    assert len(empty.table()) == 0 and empty.table().column_names == [*COLUMNS, "sha256"]
    assert read_images(empty.folder, CLASSES, [], [], []).images.shape == (0, 3, 0, 0)


def test_columns_that_do_not_fit_together_are_refused(store: SyntheticStore) -> None:
    records = store.manifest.records()
    for change in ({"eta": "none"}, {"eta": 2**70}):
        store.manifest.rewrite([{**r, "shared": r["shared"] | change} if i == 1 else r for i, r in enumerate(records)])
        with pytest.raises(DataError, match=r"manifest\.jsonl: eta of the units"):
            SyntheticStore(store.run, CLASSES).table()
        assert len(SyntheticStore(store.run, CLASSES).table("label")) == 12
    first = {key: value for key, value in records[0]["shared"].items() if key != "seed"}
    store.manifest.rewrite([{**records[0], "shared": first}, *records[1:]])
    with pytest.raises(DataError, match=r"seed of the units"):
        SyntheticStore(store.run, CLASSES).table()


@pytest.mark.parametrize(
    "columns",
    [
        {"further_versions": [["8"] for _ in range(6)]}, {"further_ids": [None] * 6}, {"rival_label": [2, *[None] * 5]},
    ],
)  # fmt: skip
def test_partners_without_versions_and_rivals_of_no_class_are_refused(
    store: SyntheticStore, columns: dict[str, Any]
) -> None:
    first, second, *rest = store.manifest.records()
    store.manifest.rewrite([first, {**second, "columns": second["columns"] | columns}, *rest])
    with pytest.raises(DataError, match="lists of different lengths, an unknown label"):
        SyntheticStore(store.run, CLASSES).table("further_ids")


# --- files ------------------------------------------------------------------------------------------------------------


def written(folder: Path, files: list[bytes]) -> tuple[list[str], list[str]]:
    """Write the files; return their names and hashes."""
    import hashlib

    names = [f"{place:03d}.png" for place in range(len(files))]
    for name, data in zip(names, files, strict=True):
        (folder / name).write_bytes(data)
    return names, [hashlib.sha256(data).hexdigest() for data in files]


def test_many_files_are_read_in_order_as_pillow_reads_them(tmp_path: Path) -> None:
    images = pictures(3 * png._AT_ONCE + 1, size=16)
    names, hashes = written(tmp_path, [encode_png(image) for image in images])
    found = read_pngs(tmp_path, names, hashes, "")
    theirs = [np.array(Image.open(tmp_path / name).convert("RGB")) for name in names]
    assert torch.equal(found, torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2))
    assert torch.equal(found, images)


def saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


ODD = {
    "grey": (saved(Image.new("L", (8, 8))), "not a PNG of 8-bit RGB"),
    "16 bits": (saved(Image.fromarray(np.zeros((8, 8), np.uint16))), "not a PNG of 8-bit RGB"),
    "one pixel": (saved(Image.new("RGB", (1, 1))), "1 x 1 px, others 8 x 8"),  # would be repeated over the image
    "higher": (saved(Image.new("RGB", (8, 9))), "8 x 9 px, others 8 x 8"),
    "text": (b"text", "not a PNG of 8-bit RGB"),
    "empty": (b"", "not a PNG of 8-bit RGB"),
    "cut": (encode_png(pictures(1)[0])[:80], "cannot be decoded"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_file_that_stage_2_never_wrote_is_named(tmp_path: Path, kind: str) -> None:
    data, cause = ODD[kind]
    names, hashes = written(tmp_path, [encode_png(pictures(1)[0])] * 100 + [data])
    with pytest.raises(DataError, match=f"100.png: {cause}.* Do this."):
        read_pngs(tmp_path, names, hashes, "Do this.")


def test_a_header_that_promises_too_much_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    data = bytearray(encode_png(pictures(1)[0]))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    names, hashes = written(tmp_path, [bytes(data)])
    with pytest.raises(DataError, match=r"000.png: 60000 x 60000 px, above 64 megapixels"):
        read_pngs(tmp_path, names, hashes, "")


def test_of_several_bad_files_the_first_is_named_and_no_thread_is_left(tmp_path: Path) -> None:
    names, hashes = written(tmp_path, [encode_png(image) for image in pictures(5 * png._AT_ONCE)])
    for place in (300, 130, 131):
        (tmp_path / names[place]).write_bytes(b"other")
    with pytest.raises(DataError, match=r"130\.png: changed since it was written"):
        read_pngs(tmp_path, names, hashes, "")
    (tmp_path / names[129]).unlink()
    with pytest.raises(DataError, match=r"129\.png: listed in the manifest but missing"):
        read_pngs(tmp_path, names, hashes, "")
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


@pytest.mark.parametrize(("room", "on_record"), [((4, 3), [4, 2, 2]), ((3, 3), 2), ((4, 4), None)])
def test_batches_of_a_unit_are_drawn_again_as_each_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: tuple[int, int], on_record: int | list[int] | None
) -> None:
    """Memory falls short after the first batch of a Parquet unit, or before it. Images tell how many were one batch."""
    jobs = [job_name(f"train/{source:02d}.png", variant) for source in range(4) for variant in range(3)]
    store, done = SyntheticStore(tmp_path, CLASSES), 0
    monkeypatch.setattr(packed, "BATCHES", 3)  # a file that few images fill

    def draw(items: list[tuple[int, int]]) -> Tensor:
        nonlocal done
        if len(items) > room[done >= 4]:
            raise MemoryError
        done += len(items)
        return torch.full((len(items), 3, 8, 8), len(items) / 10)

    def drawn() -> dict[str, Any]:
        with run_lock(tmp_path):
            draw_jobs(
                store, jobs, 4, 8, None, storage="parquet", draw=draw, describe=lambda item: row(*item),
                plan=lambda source, variant, attempt: (int(source[6:8]), variant),
            )  # fmt: skip
        (unit,) = store.manifest.units().values()
        return dict(unit)

    first = drawn()
    assert first.get("at_once") == on_record
    store.manifest.append({"event": "drop", "unit": first["unit"]})
    room = (4, 4)
    assert drawn() == first, "the bits are those on record, though there is room now"
