"""BigGAN's generator (arXiv 1809.11096) as BigGAN-PyTorch's checkpoints have it, those of DiffAugment among them.

A folder holds its `state_dict` as biggan.safetensors, and biggan.json: the flags that it was trained with, by their
names there, and the names of its classes. For drawing alone: weights are divided by their spectral norms once.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ...engine.hashing import sha256_of_all
from ...engine.untrusted import FLOATS, TensorSpec, check_record, check_tensors, read_json, read_tensors, specs_of
from ...errors import DataError, UsageError
from ...randomness import generator_for
from .networks import FIRST, standing_statistics

CONFIG, WEIGHTS = "biggan.json", "biggan.safetensors"
MAX_BYTES = 2**32
# Channels of the first map and of every block's, in units of G_ch.
WIDTHS = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
STATISTICS_BATCH = 64  # images


class BigGanConfig(BaseModel):
    """What biggan.json says. Names and defaults are those of BigGAN-PyTorch's flags; the last two are ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resolution: Literal[32, 64, 128, 256, 512]
    G_ch: Annotated[int, Field(ge=1, le=1024)] = 64
    dim_z: Annotated[int, Field(ge=1, le=4096)] = 128
    shared_dim: Annotated[int, Field(ge=0, le=4096)] = 0  # 0: dim_z
    G_shared: bool = False
    hier: bool = False
    G_attn: Annotated[str, Field(pattern=r"^\d{1,3}(_\d{1,3})*$")] = "64"  # sides in px, 0 for none
    G_nl: Literal["relu", "inplace_relu", "ir"] = "relu"
    BN_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    class_names: Annotated[list[str], Field(min_length=1, max_length=100_000)]
    standing_batches: Annotated[int, Field(ge=0, le=10_000)] = 0  # for the batch norms' statistics; 0: the file's

    @property
    def chunk(self) -> int:
        """Numbers of the latent that each block, and the first layer, gets; 0 where the first layer gets all."""
        return self.dim_z // len(WIDTHS[self.resolution]) if self.hier else 0

    @property
    def latent_dim(self) -> int:
        """Length of a latent: what of dim_z can be parted evenly."""
        return self.chunk * len(WIDTHS[self.resolution]) if self.hier else self.dim_z


class _Norm(nn.Module):
    """Batch norm, then a gain and a bias: learned, or of the class and, `hier`, of a part of the latent."""

    def __init__(self, channels: int, config: BigGanConfig, *, conditional: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=config.BN_eps, affine=False)
        self.gain: nn.Module | nn.Parameter
        self.bias: nn.Module | nn.Parameter
        if not conditional:
            self.gain, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        elif config.G_shared:
            width = (config.shared_dim or config.dim_z) + config.chunk
            self.gain, self.bias = (nn.Linear(width, channels, bias=False) for _ in range(2))
        else:
            self.gain, self.bias = (nn.Embedding(len(config.class_names), channels) for _ in range(2))

    def forward(self, maps: Tensor, condition: Tensor | None = None) -> Tensor:
        if isinstance(self.gain, nn.Parameter):
            gain, bias = self.gain, self.bias
        else:
            gain, bias = 1 + self.gain(condition), self.bias(condition)  # type: ignore[operator]  # a module too
        return torch.addcmul(bias[..., None, None], self.norm(maps), gain[..., None, None])  # type: ignore[index]  # so these are tensors


class _Block(nn.Module):
    """Norm, ReLU, twice the side, 3x3, norm, ReLU, 3x3; beside it twice the side and 1x1."""

    def __init__(self, channels: int, out: int, config: BigGanConfig) -> None:
        super().__init__()
        self.bn1, self.bn2 = _Norm(channels, config), _Norm(out, config)
        self.conv1, self.conv2 = (nn.Conv2d(width, out, 3, padding=1) for width in (channels, out))
        self.conv_sc = nn.Conv2d(channels, out, 1)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        inner = self.conv1(F.interpolate(F.relu(self.bn1(maps, condition)), scale_factor=2))
        # A 1x1 convolution and nearest upsampling commute; this order takes a quarter of the work.
        beside = F.interpolate(self.conv_sc(maps), scale_factor=2)
        total: Tensor = beside + self.conv2(F.relu(self.bn2(inner, condition)))
        return total


class _Attention(nn.Module):
    """Every place looks at places of a map of half the side (SAGAN, arXiv 1805.08318)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow, half = channels // 8, channels // 2
        self.theta, self.phi = (nn.Conv2d(channels, narrow, 1, bias=False) for _ in range(2))
        self.g, self.o = nn.Conv2d(channels, half, 1, bias=False), nn.Conv2d(half, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.empty(()))

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        asked = self.theta(maps).flatten(2)
        keys, values = (F.max_pool2d(part(maps), 2).flatten(2) for part in (self.phi, self.g))
        weights = (asked.mT @ keys).softmax(-1)  # (B, places, places / 4)
        seen: Tensor = self.o((values @ weights.mT).unflatten(2, tuple(maps.shape[2:])))
        return maps + self.gamma * seen


class BigGanGenerator(nn.Module):
    """G(z, y). Attributes have the names that their tensors have in the file."""

    def __init__(self, config: BigGanConfig) -> None:
        super().__init__()
        self.config = config
        self.architecture = {"size": int(config.resolution), "latent_dim": config.latent_dim}
        widths = [config.G_ch * units for units in WIDTHS[config.resolution]]
        attended = {int(side) for side in config.G_attn.split("_")}
        if config.G_shared:
            self.shared = nn.Embedding(len(config.class_names), config.shared_dim or config.dim_z)
        self.linear = nn.Linear(config.chunk or config.dim_z, widths[0] * FIRST**2)
        self.blocks = nn.ModuleList()
        for index, (before, after) in enumerate(pairwise(widths)):
            parts: list[nn.Module] = [_Block(before, after, config)]
            if FIRST * 2 ** (index + 1) in attended:
                parts.append(_Attention(after))
            self.blocks.append(nn.ModuleList(parts))
        last = nn.Conv2d(widths[-1], 3, 3, padding=1)
        self.output_layer = nn.Sequential(_Norm(widths[-1], config, conditional=False), nn.ReLU(), last)

    def forward(
        self, latents: Float[Tensor, "batch latent"], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch 3 side side"]:
        """Images in (-1, 1) of latents that are N(0, I)."""
        condition = self.shared(labels) if self.config.G_shared else labels
        conditions = [condition] * len(self.blocks)
        if self.config.hier:
            latents, *chunks = latents.split(self.config.chunk, dim=1)
            conditions = [torch.cat([condition, chunk], dim=1) for chunk in chunks]
        maps = self.linear(latents).unflatten(1, (-1, FIRST, FIRST))
        for parts, given in zip(self.blocks, conditions, strict=True):
            for part in parts:  # type: ignore[attr-defined]  # a list of modules
                maps = part(maps, given)
        return torch.tanh(self.output_layer(maps))


def load_biggan(folder: Path) -> tuple[BigGanGenerator, str]:
    """The generator of a folder, float32 on the CPU in evaluation mode, and the sha256 hex of its two files.

    Raises UsageError where the weights are not there, DataError where they are not those that biggan.json describes.
    """
    path = folder / WEIGHTS
    config = check_record(read_json(folder / CONFIG), BigGanConfig, folder / CONFIG)
    _check(config, folder / CONFIG)
    if not path.is_file():
        raise UsageError(f"{path}: no such file beside {CONFIG}. Pickles are not read: convert them (docs/gan.md).")
    with torch.device("meta"):  # nothing is allocated before the tensors have the sizes that the config calls for
        generator = BigGanGenerator(config)
    wanted = {_in_file(name): spec for name, spec in specs_of(generator, any_precision=True).items() if _kept(name)}
    normalised = [name for name, part in generator.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    specs = dict(wanted)
    for name in normalised:
        specs |= {
            f"{name}.u0": TensorSpec(FLOATS, (1, wanted[f"{name}.weight"].shape[0])),
            f"{name}.sv0": TensorSpec(FLOATS, (1,)),
        }
    try:
        check_tensors(path, specs, max_bytes=MAX_BYTES)
    except DataError as error:
        raise DataError(f"{error} Or correct {CONFIG}: it says what the weights were trained with.") from error
    tensors = {name: tensor.float() for name, tensor in read_tensors(path, specs, max_bytes=MAX_BYTES)[0].items()}
    for name in normalised:
        weight = tensors[f"{name}.weight"]
        weight /= spectral_norm_of(weight.flatten(1), tensors[f"{name}.u0"][0])
    if not all(bool(tensors[name].isfinite().all()) for name in wanted):
        raise DataError(f"{path}: holds numbers that are not finite. Restore it from a copy.")
    state = {
        name: tensors[_in_file(name)] if _kept(name) else torch.zeros((), dtype=torch.int64)
        for name in generator.state_dict()
    }
    generator.load_state_dict(state, assign=True)
    generator.eval().requires_grad_(False)
    _settle_statistics(generator, path)
    return generator, sha256_of_all((name, folder / name) for name in (CONFIG, WEIGHTS))


def spectral_norm_of(matrix: Float[Tensor, "rows columns"], left: Float[Tensor, " rows"]) -> Tensor:
    """Largest singular value, by one step of the power method from its left vector, as at training and drawing."""
    norm: Tensor = (matrix @ F.normalize(left @ matrix, dim=0)).norm()
    return norm


def _check(config: BigGanConfig, path: Path) -> None:
    """Raise DataError for values that do not go together."""
    widths = WIDTHS[config.resolution]
    sides = {FIRST * 2**n: units * config.G_ch for n, units in enumerate(widths)}
    attended = {int(side) for side in config.G_attn.split("_")} & {*sides} - {FIRST}
    faults = {
        "class_names: a class twice": len(set(config.class_names)) < len(config.class_names),
        "hier needs G_shared": config.hier and not config.G_shared,
        f"dim_z: fewer than the {len(widths)} parts of a hierarchical latent": config.hier and config.chunk == 0,
        "G_attn: fewer than 8 channels there": any(sides[side] < 8 for side in attended),
    }
    if found := [fault for fault, there in faults.items() if there]:
        raise DataError(f"{path}: {found[0]}. Give the flags that the weights were trained with.")


def _settle_statistics(generator: BigGanGenerator, path: Path) -> None:
    """The batch norms' statistics: those of the file, or, `standing_batches`, of the generator's own maps.

    Standing statistics, of classes in equal shares (section 3 of the paper). Drawing with those of each batch, as
    BigGAN-PyTorch does without --G_eval_mode, would make an image depend on those that it is drawn beside.
    """
    config = generator.config
    if config.standing_batches:
        streams = [generator_for(0, "gan-statistics", batch) for batch in range(config.standing_batches)]
        classes = len(config.class_names)
        standing_statistics(
            generator,
            (
                (
                    torch.randn(STATISTICS_BATCH, config.latent_dim, generator=stream),
                    torch.randint(classes, (STATISTICS_BATCH,), generator=stream),
                )
                for stream in streams
            ),
        )
        return
    norms = [part for part in generator.modules() if isinstance(part, nn.BatchNorm2d)]
    means = [norm.running_mean for norm in norms if norm.running_mean is not None]
    variances = [norm.running_var for norm in norms if norm.running_var is not None]
    if not any(bool(mean.any()) for mean in means) and all(bool((one == 1).all()) for one in variances):
        raise DataError(
            f"{path}: its batch norms hold no statistics (stored_mean 0, stored_var 1). Have them computed: "
            f'"standing_batches": 32 in {CONFIG}.'
        )
    if any(bool((one < 0).any()) for one in variances):
        raise DataError(f"{path}: a stored_var below 0. Restore it from a copy.")


def _kept(name: str) -> bool:
    """Whether a file has this tensor of ours."""
    return not name.endswith(".num_batches_tracked")


def _in_file(name: str) -> str:
    """What a tensor of ours is called in a file."""
    return name.replace(".norm.running_", ".stored_")
