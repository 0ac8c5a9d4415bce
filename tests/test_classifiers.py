"""The networks are the published ones, and a saved classifier is the same classifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffusion_inversion.classifiers import Classifier, ZeroPadShortcut, choose_architecture, resnet18, resnet20
from diffusion_inversion.errors import DataError, UsageError


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def uint8(batch: int, side: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_parameter_counts_are_the_published_ones() -> None:
    # He et al. 2016, table 6: 0.27 M for ResNet-20; 269,722 is the exact count with option-A shortcuts.
    assert parameters(resnet20(10)) == 269_722
    # The usual CIFAR form of ResNet18: 11.17 M; torchvision documents 11,689,512 for ImageNet.
    assert parameters(resnet18(10, image_size=32)) == 11_173_962
    assert parameters(resnet18(1000, image_size=224)) == 11_689_512


def test_resnet20_has_twenty_layers_in_three_resolutions() -> None:
    network = resnet20(10)
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in network.modules()) == 20
    sides: list[tuple[int, ...]] = []
    for module in network.get_submodule("blocks").children():
        module.register_forward_hook(lambda _m, _i, out: sides.append(tuple(out.shape[1:])))
    network(torch.zeros(2, 3, 32, 32))
    assert sides == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


@pytest.mark.parametrize("side", [7, 8])
def test_option_a_shortcut_subsamples_and_pads_channels_with_zeros(side: int) -> None:
    x = torch.randn(2, 4, side, side)
    out = ZeroPadShortcut()(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert out.shape[1] == 8 and not out[:, :2].any() and not out[:, 6:].any()


@pytest.mark.parametrize(("side", "stem_side"), [(8, 8), (64, 64), (65, 17), (128, 32)])
def test_resnet18_keeps_full_resolution_up_to_64_px(side: int, stem_side: int) -> None:
    network = resnet18(3, side)
    seen: list[int] = []
    network.get_submodule("layer1").register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].shape[-1]))
    network(torch.zeros(2, 3, side, side))
    assert seen == [stem_side]


@pytest.mark.parametrize("architecture", ["resnet20", "resnet18"])
@pytest.mark.parametrize("side", [8, 33, 512])
def test_images_of_any_side_are_classified(architecture: str, side: int) -> None:
    classifier = Classifier(architecture, ("a", "b", "c"), side).eval()  # type: ignore[arg-type]
    with torch.inference_mode():
        logits = classifier(uint8(1, side))
    assert logits.shape == (1, 3) and logits.isfinite().all()


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


@pytest.mark.parametrize("architecture", ["resnet20", "resnet18"])
def test_a_saved_classifier_is_bit_equal_when_loaded(architecture: str, tmp_path: Path) -> None:
    classifier = Classifier(architecture, ("cat", "dög"), 16)  # type: ignore[arg-type]
    classifier(uint8(4, 16))  # moves the batch statistics off their initial values
    classifier.provenance = {"seed": 3, "settings": {"steps": 7}}
    classifier.eval()
    path = tmp_path / "deep" / "c.safetensors"
    first = classifier.save(path)
    loaded = Classifier.load(path)
    assert (loaded.architecture, loaded.class_names, loaded.image_size) == (architecture, ("cat", "dög"), 16)
    assert loaded.provenance == classifier.provenance and not loaded.training
    states = classifier.state_dict(), loaded.state_dict()
    assert list(states[0]) == list(states[1]) and all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert torch.equal(classifier(uint8(5, 16, 1)), loaded(uint8(5, 16, 1)))
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
    with pytest.raises(UsageError, match="resnet20, resnet18"):
        Classifier("vgg", ("a", "b"), 16)  # type: ignore[arg-type]
