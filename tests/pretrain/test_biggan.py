"""BigGAN from a file of BigGAN-PyTorch's layout: against a restatement on its tensors, and what is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from harness import write_images
from safetensors.torch import save_file
from torch import Tensor
from toy import toy_images
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.pretrain.gan.biggan import BigGanConfig, BigGanGenerator, spectral_norm_of
from diffusion_inversion.pretrain.gan.weights import load_gan

CPU = torch.device("cpu")
NAMES = ["dog", "cat", "wolf"]
UNITS = {32: [4, 4, 4, 4], 64: [16, 16, 8, 4, 2], 128: [16, 16, 8, 4, 2, 1]}
# As the scripts for CIFAR-10 (classes in tables, no attention), for ImageNet (shared, hierarchical), and in between.
FLAGS: dict[str, dict[str, Any]] = {
    "cifar": {"resolution": 32, "G_ch": 2, "dim_z": 6, "G_attn": "0"},
    "imagenet": {
        "resolution": 64, "G_ch": 2, "dim_z": 13, "shared_dim": 3, "G_shared": True, "hier": True, "G_attn": "16_32",
        "BN_eps": 1e-4,
    },
    "shared": {"resolution": 32, "G_ch": 4, "dim_z": 5, "G_shared": True, "G_attn": "32", "G_nl": "inplace_relu"},
}  # fmt: skip


def tensors_of(flags: dict[str, Any]) -> dict[str, Tensor]:
    """Random tensors by the names and in the shapes of that code's `state_dict`."""
    draw, units, found = torch.Generator().manual_seed(0), UNITS[flags["resolution"]], dict[str, Tensor]()
    parts = len(units) if flags.get("hier") else 1
    shared = flags.get("shared_dim") or flags["dim_z"]

    def normal(name: str, *shape: int) -> None:
        found[name] = torch.randn(shape, generator=draw)

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        normal(f"{name}.weight", *shape)
        normal(f"{name}.u0", 1, shape[0])
        found[f"{name}.sv0"] = torch.ones(1)
        if bias:
            normal(f"{name}.bias", shape[0])

    def statistics(name: str, channels: int) -> None:
        normal(f"{name}.stored_mean", channels)
        found[f"{name}.stored_var"] = torch.rand(channels, generator=draw) + 0.5

    if flags.get("G_shared"):
        normal("shared.weight", len(NAMES), shared)
    layer("linear", 16 * units[0] * flags["G_ch"], flags["dim_z"] // parts)
    for index, (before, after) in enumerate(pairwise(units)):
        block, before, after = f"blocks.{index}.0", before * flags["G_ch"], after * flags["G_ch"]
        layer(f"{block}.conv1", after, before, 3, 3)
        layer(f"{block}.conv2", after, after, 3, 3)
        layer(f"{block}.conv_sc", after, before, 1, 1)
        for norm, channels in (("bn1", before), ("bn2", after)):
            for what in ("gain", "bias"):
                if flags.get("G_shared"):
                    width = shared + (flags["dim_z"] // parts if parts > 1 else 0)
                    layer(f"{block}.{norm}.{what}", channels, width, bias=False)
                else:
                    normal(f"{block}.{norm}.{what}.weight", len(NAMES), channels)
            statistics(f"{block}.{norm}", channels)
        if str(8 * 2**index) in flags["G_attn"].split("_"):
            for name, shape in {"theta": (after // 8, after), "phi": (after // 8, after), "g": (after // 2, after),
                                "o": (after, after // 2)}.items():  # fmt: skip
                layer(f"blocks.{index}.1.{name}", *shape, 1, 1, bias=False)
            normal(f"blocks.{index}.1.gamma")
    last = units[-1] * flags["G_ch"]
    normal("output_layer.0.gain", last)
    normal("output_layer.0.bias", last)
    statistics("output_layer.0", last)
    layer("output_layer.2", 3, last, 3, 3)
    return found


def write(folder: Path, flags: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "biggan.json").write_text(json.dumps(flags | {"class_names": NAMES}))
    save_file(tensors, folder / "biggan.safetensors")
    return folder


def restated(flags: dict[str, Any], t: dict[str, Tensor], z: Tensor, y: Tensor, own: bool = False) -> Tensor:
    """G(z, y) on the file's tensors, in float64; `own`: with the statistics of the batch itself."""
    t = {name: value.double() for name, value in t.items()}
    eps, parts = flags.get("BN_eps", 1e-5), len(UNITS[flags["resolution"]]) if flags.get("hier") else 1

    def weight(name: str) -> Tensor:  # divided by u W v, v and u from the stored u by one step each
        w, u = t[f"{name}.weight"], t[f"{name}.u0"]
        v = F.normalize(u @ w.flatten(1))
        return w / (F.normalize(v @ w.flatten(1).T) @ w.flatten(1) @ v.T)

    def norm(name: str, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        mean, var = (t[f"{name}.stored_{what}"].view(1, -1, 1, 1) for what in ("mean", "var"))
        if own:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True)
        return (x - mean) / (var + eps) ** 0.5 * gain[..., None, None] + bias[..., None, None]

    def conditional(name: str, x: Tensor, c: Tensor) -> Tensor:
        if flags.get("G_shared"):
            gain, bias = (torch.einsum("bi,oi->bo", c, weight(f"{name}.{what}")) for what in ("gain", "bias"))
        else:
            gain, bias = (t[f"{name}.{what}.weight"][c] for what in ("gain", "bias"))
        return norm(name, x, gain + 1, bias).clamp(min=0)

    def twice(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    z = z.double()[:, : flags["dim_z"] // parts * parts]
    zs = z.chunk(parts, 1)
    c = t["shared.weight"][y] if flags.get("G_shared") else y
    x = (zs[0] @ weight("linear").T + t["linear.bias"]).view(len(z), -1, 4, 4)
    for i in range(len(UNITS[flags["resolution"]]) - 1):
        given, b = (torch.cat([c, zs[i + 1]], 1) if parts > 1 else c), f"blocks.{i}.0"
        h = F.conv2d(twice(conditional(f"{b}.bn1", x, given)), weight(f"{b}.conv1"), t[f"{b}.conv1.bias"], padding=1)
        h = F.conv2d(conditional(f"{b}.bn2", h, given), weight(f"{b}.conv2"), t[f"{b}.conv2.bias"], padding=1)
        x = h + F.conv2d(twice(x), weight(f"{b}.conv_sc"), t[f"{b}.conv_sc.bias"])
        if (a := f"blocks.{i}.1") + ".gamma" in t:
            theta, phi, g = (F.conv2d(x, weight(f"{a}.{name}")) for name in ("theta", "phi", "g"))
            phi, g = (F.max_pool2d(part, 2).flatten(2) for part in (phi, g))
            beta = torch.einsum("bcq,bck->bqk", theta.flatten(2), phi).softmax(2)
            seen = torch.einsum("bqk,bck->bcq", beta, g).view(len(x), -1, *x.shape[2:])
            x = t[f"{a}.gamma"] * F.conv2d(seen, weight(f"{a}.o")) + x
    x = norm("output_layer.0", x, t["output_layer.0.gain"], t["output_layer.0.bias"]).clamp(min=0)
    return F.conv2d(x, weight("output_layer.2"), t["output_layer.2.bias"], padding=1).tanh()


@pytest.mark.parametrize("kind", FLAGS)
def test_images_are_those_of_the_restated_generator(kind: str, tmp_path: Path) -> None:
    flags = FLAGS[kind]
    tensors = tensors_of(flags)
    gan = load_gan(write(tmp_path / kind, flags, tensors), CPU)
    assert gan.class_names == tuple(NAMES) and gan.size == flags["resolution"] and gan.name == kind
    assert gan.latent_dim == {"cifar": 6, "imagenet": 10, "shared": 5}[kind]
    latents, labels = torch.randn(6, gan.latent_dim, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3
    found, expected = gan.images(latents, labels), restated(flags, tensors, latents, labels)
    assert found.dtype == torch.float32 and found.shape == (6, 3, gan.size, gan.size)
    assert float(expected.std()) > 0.1 and float((expected.abs() > 0.999).double().mean()) < 0.5
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(gan.images(latents[2:3], labels[2:3]), found[2:3], rtol=1e-3, atol=2e-4)
    assert float((gan.images(latents, labels.flip(0)) - found).abs().amax()) > 0.05, "images are of their classes"


@pytest.mark.parametrize(("side", "dim_z", "count"), [(128, 120, 70_433_988), (256, 119, 82_108_548)])
def test_imagenet_s_has_as_many_parameters_as_others_count(side: Literal[128, 256], dim_z: int, count: int) -> None:
    config = BigGanConfig(
        resolution=side, G_ch=96, dim_z=dim_z, shared_dim=128, G_shared=True, hier=True, G_attn="64",
        class_names=[str(number) for number in range(1000)],
    )  # fmt: skip
    with torch.device("meta"):
        assert sum(one.numel() for one in BigGanGenerator(config).parameters()) == count


def test_the_spectral_norm_is_the_largest_singular_value_once_its_vector_has_settled() -> None:
    matrix = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    left, values, _ = torch.linalg.svd(matrix)
    torch.testing.assert_close(spectral_norm_of(matrix, -left[:, 0]), values[0])
    assert float(spectral_norm_of(matrix, torch.ones(5))) <= float(values[0]) + 1e-6


def test_half_precision_is_read_and_another_file_has_another_hash(tmp_path: Path) -> None:
    flags, tensors = FLAGS["cifar"], tensors_of(FLAGS["cifar"])
    whole = load_gan(write(tmp_path / "whole", flags, tensors), CPU)
    half = load_gan(write(tmp_path / "half", flags, {name: one.half() for name, one in tensors.items()}), CPU)
    latents, labels = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), torch.zeros(4, dtype=torch.int64)
    assert float((whole.images(latents, labels) - half.images(latents, labels)).abs().mean()) < 0.02
    eps = load_gan(write(tmp_path / "eps", flags | {"BN_eps": 1e-4}, tensors), CPU)
    assert len({whole.hash, half.hash, eps.hash}) == 3 and whole.trained_on == frozenset()


@pytest.mark.slow
def test_standing_statistics_are_those_of_its_own_maps(tmp_path: Path) -> None:
    flags, tensors = FLAGS["cifar"], tensors_of(FLAGS["cifar"])
    bare = {
        name: torch.zeros_like(one) if "stored_mean" in name else torch.ones_like(one) if "stored_var" in name else one
        for name, one in tensors.items()
    }
    with pytest.raises(DataError, match=r"hold no statistics.*\"standing_batches\": 32 in biggan\.json") as caught:
        load_gan(write(tmp_path / "bare", flags, bare), CPU)
    assert "\n" not in str(caught.value)
    gans = [
        load_gan(write(tmp_path / name, flags | {"standing_batches": 60}, given), CPU)
        for name, given in (("few", bare), ("other", tensors))
    ]
    latents, labels = torch.randn(300, 6, generator=torch.Generator().manual_seed(1)), torch.arange(300) % 3
    found, other = (gan.images(latents, labels) for gan in gans)
    torch.testing.assert_close(found, other)  # what the file holds of them is not used
    expected = restated(flags, bare, latents, labels, own=True)  # of 300 images drawn side by side
    assert (
        float((found - expected).abs().mean())
        < 0.05
        < 0.3
        < float((found - load_of(tensors, tmp_path)(latents, labels)).abs().mean())
    )


def load_of(tensors: dict[str, Tensor], folder: Path) -> Any:
    return load_gan(write(folder / "stored", FLAGS["cifar"], tensors), CPU).images


@pytest.mark.parametrize(
    ("changes", "drop", "message"),
    [
        ({}, "blocks.1.0.conv2.u0", r"lacks 'blocks\.1\.0\.conv2\.u0'.*Or correct biggan\.json"),
        ({"G_shared": True}, None, r"lacks 'shared\.weight'"),
        ({"G_attn": "16"}, None, r"lacks 'blocks\.1\.1\.gamma'"),
        ({"G_ch": 3}, None, r"tensor 'linear\.weight' is float32 \(128, 6\), expected .* \(192, 6\)"),
        ({"dim_z": 7}, None, r"tensor 'linear\.weight' is float32 \(128, 6\), expected .* \(128, 7\)"),
        ({"resolution": 64}, None, r"lacks 'blocks\.3\.0\."),
        ({"class_names": ["dog", "cat"]}, None, r"'blocks\.0\.0\.bn1\.gain\.weight' is float32 \(3, 8\), expected"),
        ({"resolution": 48}, None, r"biggan\.json: not a record of this kind \(resolution"),
        ({"G_nl": "elu"}, None, "G_nl"),
        ({"norm_style": "in"}, None, "norm_style: Extra inputs are not permitted"),
        ({"class_names": ["dog", "dog", "cat"]}, None, "class_names: a class twice"),
        ({"hier": True}, None, "hier needs G_shared"),
        ({"hier": True, "G_shared": True, "dim_z": 3}, None, "dim_z: fewer than the 4 parts"),
        ({"G_attn": "8", "G_ch": 1}, None, "G_attn: fewer than 8 channels there"),
    ],
)
def test_another_layout_is_refused_by_its_first_odd_name(
    changes: dict[str, Any], drop: str | None, message: str, tmp_path: Path
) -> None:
    tensors = tensors_of(FLAGS["cifar"])
    folder = write(tmp_path / "big", FLAGS["cifar"], {name: one for name, one in tensors.items() if name != drop})
    (folder / "biggan.json").write_text(json.dumps(FLAGS["cifar"] | {"class_names": NAMES} | changes))
    with pytest.raises(DataError, match=message) as caught:
        load_gan(folder, CPU)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_used_gets_one_line(tmp_path: Path) -> None:
    flags, tensors = FLAGS["cifar"], tensors_of(FLAGS["cifar"])
    folder = write(tmp_path / "big", flags, tensors)
    zero = write(tmp_path / "zero", flags, tensors | {"blocks.0.0.conv1.weight": torch.zeros(8, 8, 3, 3)})
    below = write(tmp_path / "below", flags, tensors | {"blocks.0.0.bn1.stored_var": -torch.ones(8)})
    parallel = write(tmp_path / "parallel", flags, {f"module.{name}": one for name, one in tensors.items()})
    for place, message in (
        (zero, "holds numbers that are not finite"),
        (below, "a stored_var below 0"),
        (parallel, r"has unknown 'module\."),
    ):
        with pytest.raises(DataError, match=message):
            load_gan(place, CPU)
    (folder / "biggan.safetensors").rename(folder / "G_ema.pth")
    with pytest.raises(UsageError, match=r"biggan\.safetensors: no such file.*Pickles are not read: convert them"):
        load_gan(folder, CPU)
    with pytest.raises(UsageError, match=r"or give the folder of a BigGAN with its biggan\.json"):
        load_gan(tmp_path, CPU)
    (folder / "gan.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="holds two GANs"):
        load_gan(folder, CPU)


def test_the_commands_take_it(tmp_path: Path) -> None:
    images = toy_images(6, 32)
    write_images(tmp_path / "data" / "train", images, range(4))
    write_images(tmp_path / "data" / "test", images, range(4, 6))
    folder = write(tmp_path / "big", FLAGS["cifar"], tensors_of(FLAGS["cifar"]))
    calls: list[list[object]] = [
        ["gan", "sample", folder, "--per-class", 2, "--out", tmp_path / "drawn", "--device", "cpu"],
        ["gan", "invert", folder, tmp_path / "data", "--out", tmp_path / "inverted", "--steps", 2, "--starts", 1,
         "--device", "cpu"],
    ]  # fmt: skip
    for call in calls:
        done = CliRunner().invoke(app, [str(word) for word in call])
        assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "drawn" / "synthetic").rglob("*.png"))) == 2 * len(NAMES)
    assert len(list((tmp_path / "inverted" / "synthetic").rglob("*.png"))) == 4
