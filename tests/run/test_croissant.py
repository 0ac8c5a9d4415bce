"""croissant.json: MLCommons' own validator finds no fault in it, and its loader opens the folder by it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_inversion.config.commands import ExportSettings, PushSettings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.run.export.publish import write_publication
from diffusion_inversion.run.export.stage import export


def opened(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The data set as mlcroissant has it, and the rows of its images, texts decoded."""
    found = mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert not found.metadata.issues.errors
    rows = [
        {key.partition("/")[2]: one.decode() if isinstance(one, bytes) else one for key, one in row.items()}
        for row in found.records(record_set="images")
    ]
    return found, rows


def by_source(rows: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["source_id"], row["variant"]): row for row in rows}


@pytest.mark.parametrize("to", ["parquet", "imagefolder"])
def test_its_loader_opens_the_folder(run: Path, tmp_path: Path, to: Any) -> None:
    export(run, ExportSettings(to=to, out=tmp_path / to, source_ids="plain", licence="cc-by-4.0"))
    found, rows = opened(tmp_path / to)
    own = by_source(pq.read_table(run / "synthetic" / "metadata.parquet").to_pylist())
    assert len(own) == 24 and by_source(rows).keys() == own.keys()
    for key, row in by_source(rows).items():
        same = ("label", "class_name", "partner_id", "seed", "guidance_scale", "generator_hash", "label_weight")
        assert {name: row[name] for name in same} == {name: own[key][name] for name in same}
        pixels = np.asarray(Image.open(run / "synthetic" / own[key]["file_name"]))
        assert np.array_equal(np.asarray(row["image"]), pixels)
    classes = list(found.records(record_set="classes"))
    assert classes == [{"classes/label": 0, "classes/name": "cat"}, {"classes/label": 1, "classes/name": "dog"}]
    about = json.loads((tmp_path / to / "croissant.json").read_text())
    assert about["license"] == "https://spdx.org/licenses/CC-BY-4.0.html"
    assert "Drawn by the generator toy, licence: not known" in about["rai:dataCollection"]


def test_names_and_licences_of_others_are_text_in_it(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "data.json").read_text())
    evil = 'a "quoted"\n</script> {"@id": "x"} \u202e'
    record |= {"name": evil, "licence": evil}
    Ledger(run).commit("data.json", json.dumps(record).encode(), note={"source": record["source"]})
    write_publication(run, PushSettings(hub_id="some/one", out=tmp_path / "out"))
    found, rows = opened(tmp_path / "out")
    assert len(rows) == 24 and found.metadata.url == "https://huggingface.co/datasets/some/one"
    about = json.loads((tmp_path / "out" / "croissant.json").read_text())
    assert '"quoted"' in about["name"] and "\u202e" not in (tmp_path / "out" / "croissant.json").read_text()
    assert all(row["source_id"] not in record["train"]["ids"] for row in rows)
    assert Image.open(io.BytesIO((tmp_path / "out" / "samples.png").read_bytes())).size == (8 * 96, 2 * 96)
