"""The networks are the published ones, and a saved classifier is the same classifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.train.classifiers import Classifier, choose_architecture


def uint8(batch: int, side: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_pixels_are_scaled_to_mean_half_and_deviation_quarter() -> None:
    classifier = Classifier("resnet20", ("a", "b"), 8)
    seen: list[Tensor] = []
    classifier.network.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[1] = 255
    classifier(images)
    assert torch.equal(seen[0][0], torch.full((3, 8, 8), -2.0)) and torch.equal(seen[0][1], torch.full((3, 8, 8), 2.0))


def test_auto_means_resnet20_on_a_cpu_and_resnet18_on_a_gpu() -> None:
    assert choose_architecture("auto", torch.device("cpu")) == "resnet20"
    assert choose_architecture("auto", torch.device("cuda")) == "resnet18"
    assert choose_architecture("resnet18", torch.device("cpu")) == "resnet18"


SWIN = "timm:swin_tiny_patch4_window7_224"  # has tables that no state dict holds


@pytest.mark.parametrize("architecture", ["resnet20", "resnet18", "efficientnetb0", "lite0", SWIN])
def test_a_saved_classifier_is_bit_equal_when_loaded(architecture: str, tmp_path: Path) -> None:
    classifier = Classifier(architecture, ("cat", "dög"), 32)
    classifier(uint8(4, 32))  # moves the batch statistics off their initial values
    classifier.provenance = {"seed": 3, "settings": {"steps": 7}}
    classifier.eval()
    path = tmp_path / "deep" / "c.safetensors"
    first = classifier.save(path)
    loaded = Classifier.load(path)
    assert (loaded.architecture, loaded.class_names, loaded.image_size) == (architecture, ("cat", "dög"), 32)
    assert loaded.provenance == classifier.provenance and not loaded.training
    states = classifier.state_dict(), loaded.state_dict()
    assert list(states[0]) == list(states[1]) and all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert torch.equal(classifier(uint8(5, 32, 1)), loaded(uint8(5, 32, 1)))
    assert loaded.save(tmp_path / "again.safetensors") == first, "the same classifier must give the same bytes"
    with safe_open(path, "pt") as handle:
        assert json.loads(handle.metadata()["classifier"])["class_names"] == ["cat", "dög"]


def test_what_is_not_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.safetensors"):
        Classifier.load(tmp_path / "nothing.safetensors")
    torn = tmp_path / "torn.safetensors"
    Classifier("resnet20", ("a", "b"), 8).save(torn)
    torn.write_bytes(torn.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"torn\.safetensors"):
        Classifier.load(torn)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="format"):
        Classifier.load(tmp_path / "other.safetensors")


def test_wrong_input_is_refused_with_the_remedy() -> None:
    classifier = Classifier("resnet20", ("a", "b"), 16)
    for images in (uint8(2, 32), uint8(2, 16).float(), uint8(2, 16)[0], uint8(2, 16)[:, :1]):
        with pytest.raises(UsageError, match=r"resized\(16\)"):
            classifier(images)
    with pytest.raises(DataError, match="at least two"):
        Classifier("resnet20", ("only",), 16)
    with pytest.raises(UsageError, match="resnet20, resnet56"):
        Classifier("vgg", ("a", "b"), 16)
