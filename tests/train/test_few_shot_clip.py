"""What `--clip` takes and what it refuses: one line each, before anything is computed."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_clip import build_clip

from diffusion_inversion.errors import UsageError
from diffusion_inversion.train.few_shot import clip_files
from diffusion_inversion.train.few_shot.clip import Clip
from diffusion_inversion.train.few_shot.prompts import check_classes

CPU = torch.device("cpu")
TEMPLATES = ("a photo of a {class}.",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "clip"))


def refused(source: object) -> str:
    with pytest.raises(UsageError) as error:
        Clip.load(str(source), CPU)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_are_those_of_the_folder_whatever_their_precision(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    loaded = Clip.load(str(folder), CPU)
    assert all(torch.equal(loaded.model.state_dict()[name], tensor) for name, tensor in state.items())
    ids = torch.arange(40)[None]
    state |= {"text_model.embeddings.position_ids": ids}  # as files of 2022 have
    save_file(
        {name: t.half() if t.is_floating_point() else t for name, t in state.items()}, folder / "model.safetensors"
    )
    half = Clip.load(str(folder), CPU)
    assert half.hash != loaded.hash and half.model.logit_scale.dtype == torch.float32
    tokens = torch.tensor([[0, 70, 71, 1]])
    torch.testing.assert_close(half.text_features(tokens), loaded.text_features(tokens), rtol=1e-2, atol=1e-2)


def test_pixels_are_normalised_as_the_folder_says(folder: Path) -> None:
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(config | {"image_mean": [0.5, 0.5, 0.25]}))
    assert Clip.load(str(folder), CPU).mean == (0.5, 0.5, 0.25)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {"image_std": [0.5, 0.4, 0.3]}}))
    (folder / "preprocessor_config.json").unlink()
    assert Clip.load(str(folder), CPU).std == (0.5, 0.4, 0.3)
    (folder / "processor_config.json").write_text(json.dumps({"image_std": [0, 1, 1]}))
    assert "image_mean and image_std" in refused(folder)


def test_pickles_parts_and_other_models_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    kept = weights.read_bytes()
    weights.unlink()
    assert "no model.safetensors; pytorch_model.bin is not read (pickles are never loaded" in refused(folder)
    weights.write_bytes(kept)
    (folder / "pytorch_model.bin").unlink()
    state = load_file(weights)
    del state["visual_projection.weight"]
    save_file(state, weights)
    assert "1 lacking, such as visual_projection.weight" in refused(folder)
    weights.write_bytes(b"no weights")
    assert "model.safetensors" in refused(folder)
    weights.write_bytes(kept)
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    assert "model_type='siglip', expected 'clip'" in refused(folder)
    (folder / "config.json").unlink()
    assert "config.json is missing" in refused(folder)
    assert "no such folder, and not a hub id" in refused(tmp_path / "none")
    assert "no such folder, and not a hub id" in refused(weights)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("text_config", {"num_hidden_layers": 10**6}),
        ("text_config", {"vocab_size": 10**12}),
        ("vision_config", {"image_size": -16}),
        ("vision_config", {"hidden_act": "os.system"}),
        ("vision_config", {"num_hidden_layers": "2"}),
        ("vision_config", {"patch_size": [8, 8]}),
        ("text_config", {"hidden_size": 64}),
    ],
)
def test_a_config_that_does_not_fit_costs_nothing(folder: Path, part: str, changes: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    assert str(folder) in refused(folder)


def test_code_of_others_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    assert "auto_map asks for other code" in refused(folder)


def test_without_a_network_a_hub_id_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def no_network(*ignored: object, **also: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert "owner/clip: neither here nor to be fetched from the hub" in refused("owner/clip")


def test_mini_clip_is_the_embedded_one_whatever_lies_here(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "mini-clip")
    config = json.loads((tmp_path / "mini-clip" / "config.json").read_text())
    (tmp_path / "mini-clip" / "config.json").write_text(json.dumps(config | {"mine": 1}))
    monkeypatch.setattr(clip_files, "MINI_CLIP", tmp_path / "package" / "mini-clip")
    error = refused("mini-clip")
    assert "its weights are not in this package" in error and "dinv pretrain --stage clip" in error
    assert error.endswith("For the folder here give --clip ./mini-clip.")
    here = Clip.load("./mini-clip", CPU)
    shutil.copytree(folder, tmp_path / "package" / "mini-clip")
    embedded = Clip.load("mini-clip", CPU)
    assert embedded.name == "mini-clip" and embedded.hash == Clip.load(str(folder), CPU).hash != here.hash


@pytest.mark.skipif(not (clip_files.MINI_CLIP / clip_files.WEIGHTS).is_file(), reason="mini-clip is not embedded here")
def test_what_is_embedded_is_small_and_is_what_its_card_says() -> None:
    files = [path for path in clip_files.MINI_CLIP.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 16 << 20
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]
    loaded, card = Clip.load("mini-clip", CPU), (clip_files.MINI_CLIP / "README.md").read_text()
    assert loaded.words is not None and f"taught {len(loaded.words):,} words" in card
    assert loaded.hash in card and "not measured" not in card


@pytest.mark.parametrize(
    ("names", "learned", "said"),
    [
        (("cat", "_"), None, r"class '_': .*reads no words in it"),
        (("cat", "<|endoftext|>"), None, "reads no words in it"),
        (("cat", "Cat"), None, "classes 'cat' and 'Cat': .*reads the same in both"),
        (("red_car", "red car"), None, "reads the same in both"),
        (("cat", "x" * 60), None, r"its longest prompt has \d\d tokens, .* reads 40"),
        (("cat", "dog"), 36, "its prompt with 36 learned vectors has 42 tokens, .* reads 40"),
    ],
)
def test_class_names_that_clip_cannot_read(whole: Path, names: tuple[str, ...], learned: Any, said: str) -> None:
    clip = Clip.load(str(whole), CPU)
    check_classes(clip, ("cat", "dog"), TEMPLATES, 20)
    with pytest.raises(UsageError, match=said) as error:
        check_classes(clip, names, TEMPLATES, learned)
    assert "\n" not in str(error.value)
