"""The downstream networks, in the form that the side of the images calls for.

Up to 64 px the small forms, to 96 px the middle ones of the paper's code (github.com/yongchaoz/diffusion_inversion,
`models/`, after github.com/kuangliu/pytorch-cifar), above it torchvision's own. Blocks, widths and initial weights are
torchvision's at every size; the other forms change only this:

| name | up to 64 px | 65 to 96 px | side at the end, from 32; 96 px | parameters, 10 classes |
|---|---|---|---|---|
| resnet20, resnet56 | He et al. 2016, section 4.2, at every size | the same | 8; 24 | 269,722; 853,018 |
| resnet18 | stem: 3x3, stride 1, no max-pooling; 28 px padded by 3 | no max-pooling | 4; 6 | 11,173,962; 11,181,642 |
| vgg16 (batch norm; from 32 px) | one linear layer on pooled features, not three | the same | 1; 3 | 14,728,266 |
| mobilenetv2 | stem and second stage: stride 1 | stem: stride 1 | 4; 6 | 2,236,682 |
| shufflenetv2 (x0.5) | stem: stride 1 | the same | 2; 6 | 352,042 |
| efficientnetb0 | stem: stride 1 | the same | 2; 6 | 4,020,358 |

The paper's text names the networks alone. Its code has ResNet at 28, 32, 96 and 256 px only, and the others for STL-10
(96 px); up to 64 px its MobileNetV2 is used here as its comments give it for CIFAR-10. mobilenetv2 and efficientnetb0
differ from it, which has 2,296,490 and 3,599,686 parameters: it adds projections where channels change at stride 1, and
leaves EfficientNet's last 1x1 convolution out. Its initial weights are PyTorch's defaults.
`timm:<name>` is that network of timm as it is, without pretrained weights. `lite0` alone begins with pretrained ones:
EfficientNet-Lite0 of ImageNet (`generator/features.py`) with a new last layer, on images enlarged to 128 px.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.training import known_architecture
from ..errors import UsageError
from ..generator.features import INPUT_SIZE, load_lite0

SMALL_IMAGE = 64  # px: up to this side a network has its small form
MIDDLE_IMAGE = 96  # px: up to this side its middle one
_MEDMNIST = 28  # px: ResNet18's stem pads such images by 3, to 32
_SMALLEST_VGG = 32  # px: VGG16 halves the side five times


def build_network(architecture: str, classes: int, image_size: int) -> nn.Module:
    """Make a network with initial weights from PyTorch's global generator; those of `lite0` are pretrained.

    It maps float images (B, 3, S, S), S = image_size, to logits (B, classes). Raises UsageError for an unknown name
    or a side that the network cannot take.
    """
    try:
        known_architecture(architecture)
    except ValueError as error:
        raise UsageError(f"architecture={architecture!r}: {error}.") from error
    if architecture.startswith("timm:"):
        return timm_network(architecture.removeprefix("timm:"), classes, image_size)
    builders: dict[str, Callable[[int, int], nn.Module]] = {
        "resnet20": lambda classes, _: cifar_resnet(20, classes),
        "resnet56": lambda classes, _: cifar_resnet(56, classes),
        "resnet18": resnet18,
        "vgg16": vgg16,
        "mobilenetv2": mobilenetv2,
        "shufflenetv2": shufflenetv2,
        "efficientnetb0": efficientnetb0,
        "lite0": PretrainedLite0,
    }
    return builders[architecture](classes, image_size)


def form_of(architecture: str, image_size: int) -> int:
    """Which form of a network this version builds: 2 where earlier versions built another one, with other results."""
    middle = SMALL_IMAGE < image_size <= MIDDLE_IMAGE
    if architecture == "resnet18":
        return 2 if middle or image_size == _MEDMNIST else 1
    if architecture in ("vgg16", "mobilenetv2", "efficientnetb0"):
        return 2 if middle else 1
    return 2 if architecture == "shufflenetv2" else 1


class ZeroPadShortcut(nn.Module):
    """He et al. 2016, option A: take every second pixel, double the channels with zeros; no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 2C, H/2, W/2), halves rounded up."""
        half = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


def cifar_resnet(depth: int, classes: int) -> nn.Module:
    """ResNet of He et al. 2016 section 4.2, depth = 6n + 2 (20, 56), with option-A shortcuts.

    Float images (B, 3, H, W), H and W from 8 up, to logits (B, classes). Three stages of n torchvision `BasicBlock`s,
    16, 32 and 64 channels at full, half and quarter resolution: at 512 px it costs 256 times as much as at 32 px.
    """
    from torchvision.models.resnet import BasicBlock

    blocks: list[nn.Module] = []
    channels = 16
    for width in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            halve = width != channels
            blocks.append(BasicBlock(channels, width, 2 if halve else 1, ZeroPadShortcut() if halve else None))
            channels = width
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(16),
            relu=nn.ReLU(inplace=True),
            blocks=nn.Sequential(*blocks),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(64, classes),
        )
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnet18(classes: int, image_size: int) -> nn.Module:
    """torchvision's ResNet18; without max-pooling up to 96 px, up to 64 px with a stem of 3x3 and stride 1.

    That stem pads images of 28 px by 3, so that they go on at 32 px.
    """
    from torchvision import models

    network: nn.Module = models.resnet18(weights=None, num_classes=classes)
    if image_size <= SMALL_IMAGE:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=3 if image_size == _MEDMNIST else 1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    if image_size <= MIDDLE_IMAGE:
        network.maxpool = nn.Identity()
    return network


def vgg16(classes: int, image_size: int) -> nn.Module:
    """torchvision's VGG16 with batch norm, from 32 px up; up to 96 px with one linear layer on the pooled features.

    Raises UsageError below 32 px.
    """
    from torchvision.models.vgg import VGG, cfgs, make_layers

    if image_size < _SMALLEST_VGG:
        raise UsageError(
            f"architecture=vgg16: {image_size} px is too small, it halves the side five times. Give images of at "
            f"least {_SMALLEST_VGG} px, or use another architecture."
        )
    layers = make_layers(cfgs["D"], batch_norm=True)
    if image_size > MIDDLE_IMAGE:
        network: nn.Module = VGG(layers, num_classes=classes)
        return network
    return nn.Sequential(
        OrderedDict(
            features=VGG(layers, num_classes=1).features,
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(512, classes),
        )
    )


def mobilenetv2(classes: int, image_size: int) -> nn.Module:
    """torchvision's MobileNetV2; up to 96 px the stem has stride 1, up to 64 px the second stage too."""
    from torchvision import models

    network: nn.Module = models.mobilenet_v2(weights=None, num_classes=classes)
    if image_size <= MIDDLE_IMAGE:
        _keep_resolution(network, "features.0.0")
    if image_size <= SMALL_IMAGE:
        _keep_resolution(network, "features.2.conv.1.0")
    return network


def shufflenetv2(classes: int, image_size: int) -> nn.Module:
    """torchvision's ShuffleNetV2 x0.5; up to 96 px the stem has stride 1."""
    from torchvision import models

    network: nn.Module = models.shufflenet_v2_x0_5(weights=None, num_classes=classes)
    if image_size <= MIDDLE_IMAGE:
        _keep_resolution(network, "conv1.0")
    return network


def efficientnetb0(classes: int, image_size: int) -> nn.Module:
    """torchvision's EfficientNet-B0; up to 96 px the stem has stride 1."""
    from torchvision import models

    network: nn.Module = models.efficientnet_b0(weights=None, num_classes=classes)
    if image_size <= MIDDLE_IMAGE:
        _keep_resolution(network, "features.0.0")
    return network


class PretrainedLite0(nn.Module):
    """EfficientNet-Lite0 that begins with ImageNet's weights, all of which are trained further; a new last layer.

    Images below 128 px are enlarged to that; larger ones stay as they are. On a CPU it computes in float32, channels
    last, which is 1.5 times as fast for it as bfloat16.
    """

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__()
        self.side = max(image_size, INPUT_SIZE)
        if torch.get_default_device().type == "meta":  # a shape to read a file into: its weights come from there
            import timm

            self.network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        else:
            self.network = load_lite0().requires_grad_(True)
        self.network.reset_classifier(classes)  # type: ignore[operator]  # timm's own method
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # TensorFlow's .01 would leave ImageNet's statistics in a short training
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S), normalised by a mean and a standard deviation of .5 and .25 (`classifiers.py`), to logits."""
        x = F.interpolate(x / 2, size=(self.side, self.side), mode="bilinear")
        with torch.autocast("cpu", enabled=False):
            logits: Tensor = self.network(x.contiguous(memory_format=torch.channels_last))
        return logits


def timm_network(name: str, classes: int, image_size: int) -> nn.Module:
    """timm's network `name` without pretrained weights; one of a fixed input size is made for `image_size`.

    Raises UsageError for a name that timm's own list lacks, or a side that the network cannot be made for.
    """
    import timm

    # is_model knows timm's own networks alone: no name of a hub repository or a folder gets through.
    if not timm.is_model(name):
        near = timm.list_models(f"{name.split('.')[0][:6]}*")[:5]
        raise UsageError(
            f"architecture=timm:{name}: timm {timm.__version__} has no such network"
            + (f"; near it: {', '.join(near)}." if near else ". timm.list_models() lists those it has.")
        )
    config = timm.get_pretrained_cfg(name)
    fixed = config is not None and config.fixed_input_size
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes, **({"img_size": image_size} if fixed else {})
        )
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"architecture=timm:{name}: cannot be made for images of {image_size} px ({error}). Use another network, "
            "or load the images at another --size."
        ) from error
    return network


def _keep_resolution(network: nn.Module, place: str) -> None:
    convolution = network.get_submodule(place)
    if not isinstance(convolution, nn.Conv2d) or convolution.stride != (2, 2):
        raise UsageError(
            f"torchvision's {place} is not the convolution of stride 2 it was; install the tested version."
        )
    convolution.stride = (1, 1)
