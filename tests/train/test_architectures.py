"""The networks are the published ones, at the resolutions that their table states, and they learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_inversion.config.training import ARCHITECTURES, TrainSettings
from diffusion_inversion.errors import ConfigMismatchError, DataError, UsageError
from diffusion_inversion.generator.features import load_lite0
from diffusion_inversion.train.architectures import ZeroPadShortcut, build_network, form_of
from diffusion_inversion.train.arms import check_settings
from diffusion_inversion.train.classifiers import Classifier, require_form


def parameters(name: str, classes: int, side: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_network(name, classes, side).parameters())


@pytest.mark.parametrize(
    ("name", "small"),
    [
        # He et al. 2016, table 6: 0.27 M and 0.85 M; these are the exact counts with option-A shortcuts.
        ("resnet20", 269_722),
        ("resnet56", 853_018),
        # The paper's code, to the parameter.
        ("resnet18", 11_173_962),
        ("vgg16", 14_728_266),
        ("shufflenetv2", 352_042),
        # torchvision's ImageNet counts below, less 990 rows of 1,281: only strides differ.
        ("mobilenetv2", 2_236_682),
        ("efficientnetb0", 4_020_358),
    ],
)
def test_small_forms_have_the_published_parameter_counts(name: str, small: int) -> None:
    assert parameters(name, 10, 32) == parameters(name, 10, 64) == small


@pytest.mark.parametrize(
    ("name", "side", "count", "stem", "last"),
    [
        # Channels and sides of the first convolution's and of the last feature map in the paper's code (models/*.py),
        # and its parameters, where the blocks are the same.
        ("resnet18", 28, 11_173_962, (64, 32, 32), (512, 4, 4)),
        ("resnet18", 32, 11_173_962, (64, 32, 32), (512, 4, 4)),
        ("resnet18", 96, 11_181_642, (64, 48, 48), (512, 6, 6)),
        ("resnet18", 256, 11_181_642, (64, 128, 128), (512, 8, 8)),
        ("shufflenetv2", 32, 352_042, (24, 32, 32), (192, 2, 2)),
        ("shufflenetv2", 96, 352_042, (24, 96, 96), (192, 6, 6)),
        ("vgg16", 96, 14_728_266, (64, 96, 96), (512, 3, 3)),
        ("mobilenetv2", 96, None, (32, 96, 96), (320, 6, 6)),
        ("efficientnetb0", 96, None, (32, 96, 96), (320, 6, 6)),
    ],
)
def test_networks_are_those_of_the_papers_code(
    name: str, side: int, count: int | None, stem: tuple[int, ...], last: tuple[int, ...]
) -> None:
    places = {
        "resnet18": ("conv1", "layer4"), "shufflenetv2": ("conv1.0", "stage4"), "vgg16": ("features.0", "features"),
        "mobilenetv2": ("features.0.0", "features.17"), "efficientnetb0": ("features.0.0", "features.7"),
    }  # fmt: skip
    with torch.device("meta"):
        network = build_network(name, 10, side)
        seen: list[tuple[int, ...]] = []
        for place in places[name]:
            network.get_submodule(place).register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[1:])))
        network(torch.zeros(2, 3, side, side))
    assert seen == [stem, last]
    assert count in (None, parameters(name, 10, side))


def test_a_classifier_of_a_network_that_was_changed_since_is_refused(tmp_path: Path) -> None:
    """Files of earlier versions have no form: their weights may fit, but the network is another."""
    for name, side, changed in (
        ("resnet18", 28, True), ("resnet18", 32, False), ("resnet18", 64, False), ("resnet18", 80, True),
        ("resnet18", 97, False), ("mobilenetv2", 96, True), ("mobilenetv2", 32, False), ("resnet20", 96, False),
        ("shufflenetv2", 128, True), ("efficientnetb0", 65, True), ("vgg16", 32, False), ("timm:resnet18", 96, False),
    ):  # fmt: skip
        assert form_of(name, side) == (2 if changed else 1), (name, side)
    path = tmp_path / "now.safetensors"
    Classifier("resnet18", ("a", "b"), 28).save(path)
    assert Classifier.load(path).image_size == 28
    require_form(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["classifier"])
    del header["form"]
    earlier = tmp_path / "earlier.safetensors"
    save_file(load_file(path), earlier, metadata={"classifier": json.dumps(header)})
    with pytest.raises(DataError, match="an earlier version trained it with another form of resnet18 at 28 px"):
        Classifier.load(earlier)
    with pytest.raises(ConfigMismatchError, match="another form of resnet18"):
        require_form(earlier)
    require_form(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("name", "large"),
    [
        ("resnet18", 11_689_512), ("vgg16", 138_365_992), ("mobilenetv2", 3_504_872), ("shufflenetv2", 1_366_792),
        ("efficientnetb0", 5_288_548), ("timm:resnet18", 11_689_512), ("timm:vit_tiny_patch16_224", 5_717_416),
    ],
)  # fmt: skip
def test_above_96_px_they_are_those_of_torchvision_and_timm(name: str, large: int) -> None:
    assert parameters(name, 1000, 224) == large


LAST = {
    "resnet20": "blocks", "resnet56": "blocks", "resnet18": "layer4", "vgg16": "features", "mobilenetv2": "features",
    "shufflenetv2": "conv5", "efficientnetb0": "features",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("resnet20", (8, 16, 32)), ("resnet56", (8, 16, 32)), ("resnet18", (4, 8, 4)), ("vgg16", (1, 2, 4)),
        ("mobilenetv2", (4, 8, 4)), ("shufflenetv2", (2, 4, 4)), ("efficientnetb0", (2, 4, 4)),
    ],
)  # fmt: skip
def test_the_last_feature_map_has_the_stated_resolution(name: str, sides: tuple[int, int, int]) -> None:
    found = []
    for side in (32, 64, 128):
        with torch.device("meta"):
            network = build_network(name, 7, side)
            seen: list[int] = []
            network.get_submodule(LAST[name]).register_forward_hook(lambda _m, _i, out, s=seen: s.append(out.shape[-1]))
            assert network(torch.zeros(2, 3, side, side)).shape == (2, 7)
        found += seen
    assert tuple(found) == sides


@pytest.mark.parametrize(("name", "layers"), [("resnet20", 20), ("resnet56", 56)])
def test_cifar_resnets_have_their_layers_in_three_resolutions(name: str, layers: int) -> None:
    with torch.device("meta"):
        network = build_network(name, 10, 32)
        assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in network.modules()) == layers
        shapes: list[tuple[int, ...]] = []
        for module in network.get_submodule("blocks").children():
            module.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
        network(torch.zeros(2, 3, 32, 32))
    n = (layers - 2) // 6
    assert shapes == [(16, 32, 32)] * n + [(32, 16, 16)] * n + [(64, 8, 8)] * n


@pytest.mark.parametrize("side", [7, 8])
def test_option_a_shortcut_subsamples_and_pads_channels_with_zeros(side: int) -> None:
    x = torch.randn(2, 4, side, side)
    out = ZeroPadShortcut()(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert out.shape[1] == 8 and not out[:, :2].any() and not out[:, 6:].any()


@pytest.mark.parametrize("name", [*ARCHITECTURES, "timm:convnext_atto"])
def test_one_gradient_step_lowers_the_loss_on_its_batch(name: str) -> None:
    torch.manual_seed(0)
    classifier = Classifier(name, ("a", "b", "c"), 32).train()
    for module in classifier.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # else the second loss is of another network
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def loss() -> Tensor:
        torch.manual_seed(1)  # stochastic depth
        return F.cross_entropy(classifier(images), labels)

    before = loss()
    before.backward()
    gradients = [p.grad for p in classifier.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter -= 0.005 / norm * parameter.grad
    # To first order it falls by 0.005 times the norm of the gradient.
    fall = (before - loss()).item()
    assert 0.2 < fall / (0.005 * norm.item()) < 2


@pytest.mark.parametrize("side", [8, 33])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "vgg16"])
def test_images_of_odd_and_tiny_sides_are_classified(name: str, side: int) -> None:
    with torch.device("meta"):
        assert build_network(name, 3, side)(torch.zeros(2, 3, side, side)).shape == (2, 3)


def test_lite0_begins_with_the_weights_of_imagenet_and_a_head_of_the_seed() -> None:
    """On enlarged images, normalised as it was trained: the features of `lite0`, which other tests hold to timm's."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(build_network("lite0", 5, 32).eval())
    enlarged = F.interpolate(images, size=(128, 128), mode="bilinear")
    lite0 = load_lite0()
    features = lite0.forward_head(lite0.forward_features(enlarged * 2 - 1), pre_logits=True)
    for network in networks:
        head = network.get_submodule("network.classifier")
        assert head.out_features == 5 and all(p.requires_grad for p in network.parameters())
        assert torch.allclose(network((images - 0.5) / 0.25), head(features), atol=1e-4)
    heads = [network.get_submodule("network.classifier").weight for network in networks]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_lite0_enlarges_small_images_alone() -> None:
    with torch.device("meta"):
        assert [build_network("lite0", 3, side).side for side in (8, 64, 128, 200)] == [128, 128, 128, 200]


@pytest.mark.parametrize(("name", "small", "large"), [("timm:inception_v3", 32, 96), ("timm:vgg11", 28, 32)])
def test_images_that_shrink_to_nothing_in_a_network_are_refused_before_training(
    name: str, small: int, large: int
) -> None:
    """Such networks can be built, and fail in their first step."""
    settings = TrainSettings(architecture=name)
    with pytest.raises(UsageError, match=f"architecture={name}: takes no images of {small} px .*--size"):
        check_settings(settings, ("a", "b"), small)
    check_settings(settings, ("a", "b"), large)


def test_a_network_that_reads_numbers_is_not_judged_by_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))[:, None] * torch.ones(2) * float(x.max() > 0)

    # In place of a network of timm's, one that branches on the values of its input.
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Reads())
    check_settings(TrainSettings(architecture="timm:resnet10t"), ("a", "b"), 17)


def test_what_cannot_be_built_is_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match="at least 32 px"):
        build_network("vgg16", 10, 28)
    with pytest.raises(UsageError, match=r"near it: .*resnet18"):
        build_network("timm:resnet1", 10, 32)
    for outside in ("timm:hf-hub:timm/resnet18.a1_in1k", "timm:local-dir:/tmp/x"):
        with pytest.raises(UsageError, match="no such network"):
            build_network(outside, 10, 32)
    for unknown in ("vgg", "timm:", "auto"):
        with pytest.raises(UsageError, match="resnet20, resnet56"):
            build_network(unknown, 10, 32)
    with pytest.raises(ValueError, match="resnet20, resnet56"):
        TrainSettings(architecture="vgg")
    assert TrainSettings(architecture="timm:convnext_atto").architecture == "timm:convnext_atto"
