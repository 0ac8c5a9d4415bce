"""`dinv push`: the folder that is published, and its way to the hub, of whose HTTP API the test has a small one."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.config.commands import PushSettings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.errors import DinvError, UsageError
from diffusion_inversion.run.export.card import card
from diffusion_inversion.run.export.describe import grid, origin_of
from diffusion_inversion.run.export.images import SyntheticImages
from diffusion_inversion.run.export.publish import _refused, upload, write_publication

ID = "someone/cells"


class FakeHub(ThreadingHTTPServer):
    """What a data set's creation and one commit need: it keeps the files that are sent to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.allowed = True
        self.lfs = False  # whether parquet files go the way of large ones
        self.large: dict[str, bytes] = {}  # content by its hash: what git-lfs keeps beside the repository
        self.sent: list[str] = []  # hashes of what was uploaded there

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        if self.path != f"/api/datasets/{ID}":
            return self.answer(404, {"error": self.path})
        private = self.server.created[ID].get("visibility") == "private"
        return self.answer(
            200, {"id": ID, "private": private, "siblings": [{"rfilename": n} for n in self.server.files]}
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.server.allowed:
            return self.answer(403, {"error": "no"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            address = {"url": f"{self.server.address}/datasets/{name}", "name": name, "id": "1"}
            if name in self.server.created:
                return self.answer(409, {"error": "You already created this dataset repo", **address})
            self.server.created[name] = asked
            return self.answer(200, address)
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path == f"/api/datasets/{ID}/preupload/main":
            names = [one["path"] for one in json.loads(body)["files"]]
            modes = ["lfs" if name.endswith(".parquet") and self.server.lfs else "regular" for name in names]
            files = [{"path": name, "uploadMode": mode} for name, mode in zip(names, modes, strict=True)]
            return self.answer(200, {"files": [{**one, "shouldIgnore": False} for one in files]})
        if self.path == f"/datasets/{ID}.git/info/lfs/objects/batch":  # git-lfs, docs/api/batch.md
            asked = json.loads(body)["objects"]
            missing = [one["oid"] for one in asked if one["oid"] not in self.server.large]
            upload = {one: {"upload": {"href": f"{self.server.address}/lfs/{one}"}} for one in missing}
            found = [{**one, **({"actions": upload[one["oid"]]} if one["oid"] in upload else {})} for one in asked]
            return self.answer(200, {"transfer": "basic", "objects": found})
        if self.path == f"/api/datasets/{ID}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "deletedFile":
                    del self.server.files[line["value"]["path"]]
                if line["key"] == "lfsFile":
                    self.server.files[line["value"]["path"]] = self.server.large[line["value"]["oid"]]
            url = f"{self.server.address}/datasets/{ID}/commit/1"
            return self.answer(200, {"commitOid": "1" * 40, "commitUrl": url})
        return self.answer(404, {"error": self.path})

    def do_PUT(self) -> None:
        content, name = self.rfile.read(int(self.headers["Content-Length"])), self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == name
        self.server.large[name] = content
        self.server.sent.append(name)
        self.answer(200, {})

    def answer(self, status: int, record: dict[str, Any]) -> None:
        content = json.dumps(record).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("push") / "cells"
    assert write_publication(finished, asked(out)).count == 24
    return out


def asked(out: Path, **given: Any) -> PushSettings:
    return PushSettings(hub_id=ID, out=out, **{"source_ids": "plain", **given})


def test_the_folder_is_a_data_set_with_its_card(finished: Path, folder: Path, tmp_path: Path) -> None:
    from datasets import load_dataset
    from huggingface_hub import DatasetCard

    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["README.md", "croissant.json", "data/train-00000-of-00001.parquet", "samples.png"]
    rows = load_dataset(str(folder), cache_dir=str(tmp_path))["train"]
    assert len(rows) == 24 and rows.features["label"].names == ["cat", "dog"]
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "unknown" and card.data.task_categories == ["image-classification"]
    record = json.loads((finished / "run.json").read_text())
    for arm, found in record["arms"].items():
        assert f"| {arm} | {100 * found['mean']:.1f} ± {100 * found['std']:.1f} % (n=2) |" in card.text
    assert "Verdict: **not enough evidence**" in card.text and "| cat | 12 |" in card.text
    assert record["generator"]["hash"] in card.text and "Learned vectors" in card.text


def test_names_of_others_are_text_in_the_card(run: Path, tmp_path: Path) -> None:
    """The name of a data set is that of a folder: it makes no header, no markup and no cell."""
    record = json.loads((run / "data.json").read_text())
    record |= {"name": "a\n---\n<img src=x> | [b](javascript:c)", "licence": "CC BY-NC 4.0: *no* trade"}
    Ledger(run).commit("data.json", json.dumps(record).encode(), note={"source": record["source"]})
    Ledger(run).drop("run.json")
    write_publication(run, asked(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    header, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert "license: other" in header and "Not measured." in body
    assert "<img" not in body and "[b](" not in body and "\n---\n" not in body
    assert r"CC-BY-NC-4.0 (attribution, non-commercial)" in body and "<img" not in json.dumps(body)


def test_no_path_of_data_is_published(run: Path, tmp_path: Path) -> None:
    record, data = json.loads((run / "data.json").read_text()), "hf:/home/me/clinic/cells"
    record |= {"name": data, "source": record["source"] | {"data": data}}
    Ledger(run).commit("data.json", json.dumps(record).encode(), note={"source": record["source"]})
    write_publication(run, asked(tmp_path / "out"))
    for name in ("README.md", "croissant.json"):
        text = (tmp_path / "out" / name).read_text()
        assert "cells" in text and "clinic" not in text


def test_the_card_says_what_an_audit_and_a_filter_found(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    record["copies"] = {"copies": {"count": 6, "n": 24, "low": 0.1, "high": 0.5}, "rate": 0.01}
    record["fidelity"] = {"filter": "drop", "failed": 3, "judged": 20}
    Ledger(run).commit("run.json", json.dumps(record).encode())
    write_publication(run, asked(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "6 of 24 synthetic images are nearer to a training image" in text
    assert "trained with --filter drop. The images here are the first drawings" in text and "3 of 20 show" in text


def test_a_licence_that_the_source_excludes_is_refused_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "data.json").read_text())
    record |= {"licence": "CC BY-NC-SA 4.0: non-commercial use only"}
    Ledger(run).commit("data.json", json.dumps(record).encode(), note={"source": record["source"]})
    command = ["push", str(run), ID, "--out", str(tmp_path / "out"), "--dry-run"]
    refused = CliRunner().invoke(app, [*command, "--licence", "apache-2.0"])
    assert refused.exit_code == 2 and not (tmp_path / "out").exists(), refused.output
    assert "without non-commercial, share-alike of the source data (CC-BY-NC-SA-4.0)" in refused.stderr
    assert "Ask for cc-by-nc-sa-4.0, or leave --licence out." in refused.stderr
    done = CliRunner().invoke(app, [*command, "--licence", "cc-by-nc-sa-4.0", "--json"])
    lines = json.loads(done.stdout)["licences"]
    assert "licence of the source data: CC-BY-NC-SA-4.0 (attribution, non-commercial, share-alike)" in lines
    assert "licence of the generator toy: none named; find out before you pass images on" in lines
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-nc-sa-4.0" in text and "## Licences\n- Licence of the source data: CC-BY-NC-SA-4.0" in text
    again = CliRunner().invoke(app, ["export", str(run), "--to", "coco-classification", "--out", str(tmp_path / "b")])
    assert again.exit_code == 0 and "licence of the source data: CC-BY-NC-SA-4.0" in again.stdout
    assert "license: other" in (tmp_path / "b" / "README.md").read_text()


def test_the_picture_has_a_row_for_each_class(finished: Path) -> None:
    images = SyntheticImages.of(finished)
    picture = np.asarray(Image.open(io.BytesIO(grid(images))))
    assert picture.shape == (2 * 96, 8 * 96, 3)
    of_class = [[one for one in images if one.label == label] for label in (0, 1)]
    for row, own in enumerate(of_class):
        shown = [own[12 * step // 8] for step in range(8)]
        for column, one in enumerate(shown):
            pixels = np.asarray(Image.open(io.BytesIO(one.png))).repeat(6, 0).repeat(6, 1)
            assert np.array_equal(picture[96 * row : 96 * (row + 1), 96 * column : 96 * (column + 1)], pixels)


def test_figures_of_other_images_are_called_so(finished: Path, folder: Path) -> None:
    record, images = json.loads((finished / "run.json").read_text()), SyntheticImages.of(finished)
    more = {**record["stages"], "sample": {**record["stages"]["sample"], "images": 2 * images.asked}}
    origin = origin_of(finished, None, "plain")
    plain, other = (
        card(images, one, origin, "imagefolder", grid=False) for one in (record, {**record, "stages": more})
    )
    said = "These figures were measured with another number of images of stage 2."
    assert said in other and said not in plain


def test_what_is_uploaded_is_the_folder(folder: Path, hub: FakeHub) -> None:
    address = upload(asked(folder), hub.address)
    assert address.endswith(f"/datasets/{ID}") and hub.created[ID]["visibility"] == "private"
    assert hub.created[ID]["type"] == "dataset"
    there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.files == there
    hub.files.clear()
    with pytest.raises(UsageError, match=r"exists already; give another name, or --update\. .* is whole\.$"):
        upload(asked(folder), hub.address)
    assert hub.files == {}
    upload(asked(folder, update=True), hub.address)
    assert hub.files == there


def test_an_update_leaves_no_image_of_the_upload_before(folder: Path, hub: FakeHub) -> None:
    """The card reads data/train-*.parquet, and the number of files is part of their names."""
    upload(asked(folder), hub.address)
    there, own = dict(hub.files), {"mine/notes.txt": b"mine", "data/mine.csv": b"mine"}
    hub.files |= {f"data/train-0000{number}-of-00002.parquet": b"before" for number in range(2)} | own
    upload(asked(folder, update=True), hub.address)
    assert hub.files == there | own


@pytest.mark.parametrize("public", [True, False])
def test_an_update_changes_nobodys_sight_of_a_data_set(folder: Path, hub: FakeHub, public: bool) -> None:
    upload(asked(folder, public=public), hub.address)
    hub.files.clear()
    found, remedy = ("public", "give --public") if public else ("private", "leave --public out")
    with pytest.raises(UsageError, match=rf"^{ID}: is {found} already, .* or {remedy}\. .* is whole\.$"):
        upload(asked(folder, public=not public, update=True), hub.address)
    assert hub.files == {}


def test_what_would_upload_it_later_keeps_it_private(folder: Path) -> None:
    """`hf upload` makes a data set that everybody sees unless it is told otherwise."""
    for public, said in ((False, "--repo-type dataset --private`"), (True, "--repo-type dataset`")):
        assert said in str(_refused(asked(folder, public=public), OSError("no network")))
    again = str(_refused(asked(folder, update=True), OSError("no network")))
    assert f"{folder} . --delete 'data/train-*.parquet' --repo-type" in again
    spaced = asked(folder).model_copy(update={"out": Path("my data")})
    assert f"hf upload {ID} 'my data' " in str(_refused(spaced, OSError("no network")))


def test_large_files_go_the_way_of_git_lfs_and_only_once(
    run: Path, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several files, as of a large set, each sent beside the commit; an upload that was cut short goes on."""
    monkeypatch.setattr("diffusion_inversion.run.export.parquet._IN_A_FILE", 5_000)
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)  # what answers it is no HTTP
    hub.lfs = True
    write_publication(run, asked(tmp_path / "out"))
    parts = sorted((tmp_path / "out" / "data").iterdir())
    assert len(parts) > 2 and parts[1].name == f"train-00001-of-{len(parts):05d}.parquet"
    one = parts[1].read_bytes()
    hub.large[hashlib.sha256(one).hexdigest()] = one  # had arrived before the connection broke
    upload(asked(tmp_path / "out"), hub.address)
    out = tmp_path / "out"
    assert hub.files == {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.*")}
    assert len(hub.sent) == len(parts) - 1
    assert hashlib.sha256(one).hexdigest() not in hub.sent


def test_a_public_data_set_is_asked_for(folder: Path, hub: FakeHub) -> None:
    upload(asked(folder, public=True), hub.address)
    assert hub.created[ID].get("visibility", "public") == "public"


def test_a_hub_that_refuses_or_is_not_there_is_named(folder: Path, hub: FakeHub) -> None:
    hub.allowed = False
    with pytest.raises(UsageError, match=r"not allowed \(403\); log in with `hf auth login`"):
        upload(asked(folder), hub.address)
    with pytest.raises(DinvError, match="the hub cannot be written"):
        upload(asked(folder), "http://127.0.0.1:1")


def test_a_dry_run_makes_the_folder_and_uploads_nothing(finished: Path, tmp_path: Path) -> None:
    command = ["push", str(finished), ID, "--out", str(tmp_path / "out"), "--dry-run", "--licence", "cc-by-4.0"]
    command += ["--source-ids", "plain"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "Nothing was uploaded" in done.stdout, done.output
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2 and "holds something already" in again.stderr
    wrong = CliRunner().invoke(app, ["push", str(finished), "cells", "--out", str(tmp_path / "b"), "--dry-run"])
    assert (
        wrong.exit_code == 2 and "HUB_ID cells: give <owner>/<name>" in wrong.stderr and not (tmp_path / "b").exists()
    )


@pytest.mark.parametrize("hub_id", ["someone/a--b", "owner/photos.git", f"owner/{'x' * 100}", "owner/-x"])
def test_a_name_that_the_hub_does_not_take_is_refused_before_anything_is_written(
    finished: Path, tmp_path: Path, hub_id: str
) -> None:
    refused = CliRunner().invoke(app, ["push", str(finished), hub_id, "--out", str(tmp_path / "out"), "--dry-run"])
    assert refused.exit_code == 2 and f"HUB_ID {hub_id}: the hub takes no such name" in refused.stderr
    assert not (tmp_path / "out").exists()
