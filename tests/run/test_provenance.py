"""Where an image comes from: what its file says, ids of sources as salted hashes, and what is no model's work."""

from __future__ import annotations

import hmac
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command_line import dinv
from drawn import drawn
from PIL import Image

from diffusion_inversion.config.commands import ExportSettings, PushSettings
from diffusion_inversion.engine.frozen_settings import freeze_settings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.errors import DataError
from diffusion_inversion.run.export.images import SyntheticImages
from diffusion_inversion.run.export.publish import write_publication
from diffusion_inversion.run.export.stage import OF_IMAGES, export
from diffusion_inversion.run.verify import discard, verify
from diffusion_inversion.sample.png import encode_png
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.sample.xmp import GENERATED, is_generated, packet, with_xmp

IPTC, DC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "http://purl.org/dc/elements/1.1/"
DINV, RDF = "diffusion-inversion:xmp/1.0/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


def said(png: bytes, namespace: str, name: str) -> list[str]:
    """Texts of a property, as another program reads them: the packet by Pillow, its XML by minidom."""
    packed = Image.open(io.BytesIO(png)).info.get("xmp", b"<x/>")
    found = minidom.parseString(packed).getElementsByTagNameNS(namespace, name)
    return ["".join(text.data for text in _texts(one)) for one in found]


def _texts(node: Any) -> Iterator[Any]:
    for child in node.childNodes:
        yield from [child] if child.nodeType == child.TEXT_NODE else _texts(child)


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.fixture(scope="module")
def ids(finished: Path) -> list[str]:
    """Ids of the sources of the finished run, such as train/cat/000.png."""
    return sorted({*pq.read_table(finished / "synthetic" / "metadata.parquet")["source_id"].to_pylist()})


def test_every_image_of_a_run_says_that_a_model_drew_it(finished: Path) -> None:
    hash_of = json.loads((finished / "generator.json").read_text())["hash"]
    files = sorted((finished / "synthetic").rglob("*.png"))
    assert len(files) == 24
    for file in files:
        png = file.read_bytes()
        assert said(png, IPTC, "DigitalSourceType") == [GENERATED]
        assert said(png, IPTC, "AISystemVersionUsed") == [hash_of] and said(png, DINV, "method") == ["inversion"]
        assert said(png, IPTC, "AISystemUsed") == said(png, DC, "source") == []  # folders move, ids stay in the table


def test_an_export_has_the_hash_of_the_source_and_the_pixels_of_the_run(run: Path, tmp_path: Path) -> None:
    export(run, ExportSettings(to="imagefolder", out=tmp_path / "out"))
    salt = json.loads((run / "export-salt.json").read_text())["salt"]
    name = json.loads((run / "generator.json").read_text())["name"]
    own = {
        (row["source_id"], row["variant"]): row for row in pq.read_table(run / "synthetic/metadata.parquet").to_pylist()
    }
    by_hash = {hmac.new(salt.encode(), one.encode(), "sha256").hexdigest()[:32]: one for one, _ in own}
    rows = pq.read_table(tmp_path / "out" / "metadata.parquet").to_pylist()
    assert len(rows) == len(own) == 24
    for row in rows:
        original = own[by_hash[row["source_id"]], row["variant"]]
        assert by_hash[row["partner_id"]] == original["partner_id"] and row["class_name"] == original["class_name"]
        assert row["source_version"] != original["source_version"] and row["seed"] == original["seed"]
        png = (tmp_path / "out" / row["file_name"]).read_bytes()
        assert np.array_equal(pixels(png), pixels((run / "synthetic" / original["file_name"]).read_bytes()))
        assert said(png, DC, "source") == [row["source_id"]] and said(png, IPTC, "AISystemUsed") == [name]
        assert said(png, IPTC, "DigitalSourceType") == [GENERATED]


@pytest.mark.parametrize("how", ["hashed", "none"])
def test_no_exported_byte_has_an_id_or_the_salt(run: Path, ids: list[str], tmp_path: Path, how: Any) -> None:
    for to in OF_IMAGES:
        export(run, ExportSettings(to=to, out=tmp_path / "out" / to, source_ids=how))
    write_publication(run, PushSettings(hub_id="a/b", out=tmp_path / "out" / "push", source_ids=how))
    out = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    salt = json.loads((run / "export-salt.json").read_text())["salt"]
    table = pq.read_table(run / "synthetic" / "metadata.parquet")
    stems = [name.partition("/")[2].partition("-v")[0] for name in table["file_name"].to_pylist()]
    secrets = {*ids, *stems, *table["source_version"].to_pylist(), salt, "export-salt"}
    for file in out:
        content = plain(file) + str(file.relative_to(tmp_path)).encode()
        assert not [one for one in secrets if one.encode() in content], file


def plain(file: Path) -> bytes:
    """What a file holds, also where parquet has compressed it."""
    if file.suffix != ".parquet":
        return file.read_bytes()
    return file.read_bytes() + repr(pq.read_table(file).to_pylist()).encode()


def test_vectors_that_were_asked_for_have_hashed_ids_too(run: Path, ids: list[str], tmp_path: Path) -> None:
    from safetensors import safe_open

    def named(how: Any) -> Any:
        export(run, ExportSettings(to="safetensors", out=tmp_path / how, with_vectors=True, source_ids=how))
        with safe_open(tmp_path / how / "vectors.safetensors", "pt") as file:
            return json.loads(file.metadata()["embeddings"])["ids"]

    sources = SyntheticImages.of(run, "hashed").table["source_id"].to_pylist()
    assert {*named("hashed")} == {*sources} and named("none") is None and {*named("plain")} == {*ids}


def test_the_same_run_gives_the_same_hashes_and_another_run_others(run: Path) -> None:
    def hashes(folder: Path) -> list[str]:
        return list(SyntheticImages.of(folder, "hashed").table["source_id"].to_pylist())

    first = hashes(run)
    assert hashes(run) == first and len({*first}) == 12
    assert verify(run).findings == () and verify(run).foreign == ()
    Ledger(run).drop("export-salt.json")  # what a run has that exported nothing yet
    assert {*hashes(run)}.isdisjoint(first)


def test_a_salt_that_was_damaged_is_not_replaced_by_another(run: Path) -> None:
    first = SyntheticImages.of(run, "hashed").table["source_id"].to_pylist()
    (run / "export-salt.json").write_text("{}")
    with pytest.raises(DataError, match="changed since it was written"):
        SyntheticImages.of(run, "hashed")
    discard(run, verify(run))
    assert SyntheticImages.of(run, "hashed").table["source_id"].to_pylist() == first


def test_without_ids_nothing_says_which_images_have_a_source_in_common(run: Path, tmp_path: Path) -> None:
    export(run, ExportSettings(to="webdataset", out=tmp_path / "out", source_ids="none"))
    (shard,) = (tmp_path / "out").glob("*.tar")
    with tarfile.open(shard) as tar:
        about = [json.load(tar.extractfile(one)) for one in tar if one.name.endswith("json")]  # type: ignore[arg-type]
        pngs = [tar.extractfile(one).read() for one in tar if one.name.endswith("png")]  # type: ignore[union-attr]
    assert len({one["file_name"] for one in about}) == 24
    assert not {key for one in about for key in one} & {"source_id", "partner_id", "source_version", "partner_version"}
    assert [said(png, DC, "source") for png in pngs] == [[]] * 24
    sizes = [Image.open(io.BytesIO(png)).size for png in pngs]
    assert sizes == [(16, 16)] * 24 and all(said(png, IPTC, "DigitalSourceType") == [GENERATED] for png in pngs)


@pytest.mark.parametrize("how", ["hashed", "none", "plain"])
def test_the_noise_that_is_a_sources_own_is_as_good_as_its_name(finished: Path, tmp_path: Path, how: Any) -> None:
    """`--noise-strength auto` gives each source a number to six digits, in proportion to its vector's norm."""
    own = {"cat/0.png": 0.312871, "cat/1.png": 0.298443, "dog/0.png": 0.305129}
    run = drawn(tmp_path / "run", finished, [(one[:3], one, {"noise_strength": own[one]}) for one in own])
    for asked, kept in (("auto", how == "plain"), (0.3, True)):
        freeze_settings(run, "sample", {"settings": {"noise_strength": asked}}, begun=False)
        export(run, ExportSettings(to="imagefolder", out=tmp_path / str(asked), source_ids=how))
        columns = pq.read_table(tmp_path / str(asked) / "metadata.parquet").column_names
        assert ("noise_strength" in columns) == kept and ("source_id" in columns) == (how != "none")


def test_images_of_a_pool_are_no_models_work(run: Path, tmp_path: Path) -> None:
    """A photograph that was found: its licence is named, and nothing says that it was generated."""
    found = SyntheticStore(run, ("cat", "dog")).manifest
    records = []
    for record in found.records():
        if record["event"] == "commit":
            many = len(record["ids"])
            licences = ["CC BY 2.0" if one.endswith("#0") else "" for one in record["ids"]]  # of 12 nobody knows
            columns = record["columns"] | {"pool_id": ["secret/pool.jpg"] * many, "licence": licences}
            record = record | {"columns": columns, "shared": record["shared"] | {"method": "retrieval"}}
        records.append(record)
    found.rewrite(records)
    done = export(run, ExportSettings(to="fiftyone", out=tmp_path / "out", licence="MIT"))
    assert "licence of 12 images of toy: CC-BY-2.0 (attribution)" in done.licences
    card = (tmp_path / "out" / "README.md").read_text()
    assert "found in a pool of photographs" in card and "- synthetic" not in card and "drawn by" not in card
    picture, rights = (tmp_path / "out" / "samples.png").read_bytes(), []
    assert b"trainedAlgorithmicMedia" not in picture and said(picture, DC, "rights") == []
    for file in sorted((tmp_path / "out" / "data").iterdir()):
        png = file.read_bytes()
        assert said(png, IPTC, "DigitalSourceType") == said(png, IPTC, "AISystemUsed") == []
        assert b"trainedAlgorithmicMedia" not in png and b"secret" not in png
        assert said(png, DINV, "method") == ["retrieval"]
        rights += said(png, DC, "rights")
    assert rights == ["CC BY 2.0"] * 12, "--licence is not theirs"


def test_a_report_has_a_line_for_each_licence(finished: Path) -> None:
    lines = json.loads((finished / "run.json").read_text())["licences"]
    unknown = "none named; find out before you pass images on"
    assert lines == [f"licence of the source data: {unknown}", f"licence of the generator toy: {unknown}"]
    assert lines[1] in (finished / "report.html").read_text()


def test_methods_that_draw_and_those_that_do_not() -> None:
    assert all(map(is_generated, ("inversion", "prompts", "lecf", "gan", "gan-inversion")))
    assert not any(map(is_generated, ("retrieval", "", "a method of tomorrow")))
    assert b"trainedAlgorithmicMedia" not in packet("retrieval", generator="a pool", generator_hash="00")


def test_names_of_others_are_text_in_the_packet() -> None:
    """Markup, control characters and whatever XML cannot hold: read back as text, once, in the right place."""
    png = encode_png(torch.full((3, 5, 7), 9, dtype=torch.uint8))
    evil = '</rdf:li><dc:source>x</dc:source>&amp;"\x00\x1b\ud800\ufffe\n漢'
    marked = with_xmp(png, packet("prompts", generator=evil, sources=[evil, "b"], rights=evil))
    (source,) = said(marked, DC, "source")
    assert source == re.sub("[\x00\x1b\ud800\ufffe]", "\ufffd", evil)
    assert said(marked, RDF, "li") == [source, source, "b"] and said(marked, IPTC, "AISystemUsed") == [source]
    again = with_xmp(marked, packet("gan"))
    assert said(again, DINV, "method") == ["gan"] and again.count(b"iTXt") == 1
    assert np.array_equal(pixels(again), pixels(png)) and with_xmp(again, packet("gan")) == again
    Image.open(io.BytesIO(again)).verify()  # every checksum
    with pytest.raises(DataError, match="not a PNG"):
        with_xmp(b"GIF89a", packet("gan"))


def test_the_command_says_what_it_hides(run: Path, tmp_path: Path) -> None:
    done = dinv("push", run, "a/b", "--out", tmp_path / "a", "--dry-run")
    assert done.exit_code == 0 and "names files of your data" not in done.stdout, done.output
    done = dinv("push", run, "a/b", "--out", tmp_path / "b", "--dry-run", "--source-ids", "plain")
    assert done.exit_code == 0 and "rows name files of your data" in done.stdout
    refused = dinv("export", run, "--to", "parquet", "--out", tmp_path / "c", "--source-ids", "md5")
    assert refused.exit_code == 2 and "hashed" in refused.stderr and not (tmp_path / "c").exists()
