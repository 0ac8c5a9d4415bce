"""Diffusers-format checkpoints as files: find them, refuse what is not Stable Diffusion, hash what matters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..engine.hashing import sha256_of_all
from ..engine.untrusted import (
    FLOATS,
    TensorSpec,
    check_record,
    check_tensors,
    read_header,
    read_json,
    read_tensors,
    shown,
)
from ..errors import DataError, DinvError, UsageError

EMBEDDED = Path(__file__).parent / "weights"
MINI = EMBEDDED / "mini"
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
WEIGHT_FILES = {
    "vae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
MAX_WEIGHTS = 2**34  # bytes of one weight file; the UNet of SD 2.1 in float32 has 3.5e9
MAX_TOKENIZER_FILE = 2**24  # bytes; CLIP's vocabulary and merges have 3e6
MAX_BLOCKS = 1024  # blocks x layers x transformer layers; SD 2.1 has 8
_LARGEST = 2**20  # of any number in the config of a network; a vocabulary of 49,408 is the largest in use
# Code or files from elsewhere that transformers or diffusers would fetch for these.
_REFUSED_KEYS = ("auto_map", "quantization_config", "custom_pipelines", "transformers_weights")
# What a text encoder is built from; everything else in its config (attention kernels, file names) is left out.
TEXT_KEYS = (
    "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "vocab_size", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range",
    "initializer_factor", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip
# Names that autoencoders of 2022 give to the parts of their attention.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Pipelines over the parts of Stable Diffusion 1.x and 2.x; not StableDiffusionXL..., StableDiffusion3...
_STABLE_DIFFUSION = re.compile(r"(Flax|Onnx)?StableDiffusion(?!XL|3|Cascade)\w*Pipeline(Legacy|Safe)?")
_FOREIGN = {"text_encoder_2": "SDXL has", "transformer": "Flux and Stable Diffusion 3 have", "prior": "Kandinsky has"}
_POSITION_IDS = "embeddings.position_ids"


class SchedulerConfig(BaseModel):
    """The noise schedule that a checkpoint was trained with: what the schedulers compute from, in sane ranges."""

    model_config = ConfigDict(extra="allow")

    num_train_timesteps: int = Field(default=1000, ge=1, le=100_000)
    beta_start: float = Field(default=0.0001, ge=0, le=1)
    beta_end: float = Field(default=0.02, ge=0, le=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: list[float] | None = Field(default=None, max_length=100_000)
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading"
    steps_offset: int = Field(default=0, ge=0, le=1000)
    set_alpha_to_one: bool = True


def locate(name: str, revision: str | None) -> Path:
    """The local folder of a generator; hub ids are downloaded, safetensors and configs only."""
    if name == "mini":
        if not MINI.is_dir():
            raise UsageError(f"mini: its weights are not in {MINI}. Install the package again, or run `dinv pretrain`.")
        return MINI
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise UsageError(
            f"generator {name!r}: one file, not a diffusers folder. Convert it: `StableDiffusionPipeline."
            "from_single_file(file).save_pretrained(folder, safe_serialization=True)`; a .ckpt only if you trust it."
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise UsageError(
            f"generator {name!r}: no such folder, and not a hub id (owner/name). `dinv generators` lists some."
        )
    from huggingface_hub import snapshot_download

    patterns = ["model_index.json", "README.md", "timesteps.json"]
    patterns += [f"{part}/*.{suffix}" for part in PARTS for suffix in ("json", "txt")]
    patterns += [f"{part}/{name}" for part, name in WEIGHT_FILES.items()]
    patterns += ["safety_checker/config.json", "safety_checker/model.safetensors", "feature_extractor/*.json"]
    try:
        _check_family(Path(snapshot_download(name, revision=revision, allow_patterns=patterns[:1])))  # before gigabytes
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"generator {name!r}: cannot be fetched from the hub ({type(error).__name__}). "
            "Check the id, the revision and the network, or give a local folder."
        ) from error


def check_parts(folder: Path) -> None:
    """Refuse what is not a safetensors SD 1.x / 2.x checkpoint before anything large is read."""
    _check_family(folder)
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise UsageError(
            f"{folder}: not a diffusers Stable Diffusion folder, {', '.join(missing)} missing. Give the folder that "
            "holds model_index.json, whole, or `mini`."
        )
    for part, name in WEIGHT_FILES.items():
        if not (folder / part / name).is_file():
            if (other := _other_weights(folder / part, name)) and "-of-" in other:
                raise UsageError(
                    f"{folder / part}: its weights are in parts ({other}), and {name} is read. Save the checkpoint in "
                    "one: `pipeline.save_pretrained(folder, max_shard_size='20GB')`."
                )
            if other:
                raise UsageError(
                    f"{folder / part}: of its weights only {other} is here, and {name} is read. Rename it, of whatever "
                    "precision it is, or fetch the other."
                )
            raise UsageError(
                f"{folder / part}: no safetensors weights, {name} is missing (pickles are never loaded). Convert the "
                "checkpoint: `StableDiffusionPipeline.from_pretrained(...).save_pretrained(folder, "
                "safe_serialization=True)`."
            )
    unet, vae = (read_config(folder / part / "config.json") for part in ("unet", "vae"))
    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
    found = {
        "unet.in_channels": (unet.get("in_channels", 4), vae.get("latent_channels", 4)),
        # Twice as many are noise and its variance, which no Stable Diffusion predicts.
        "unet.out_channels": (unet.get("out_channels", 4), vae.get("latent_channels", 4)),
        "unet.class_embed_type": (unet.get("class_embed_type"), None),
        "unet.addition_embed_type": (unet.get("addition_embed_type"), None),
    }
    wrong = [
        f"{key}={shown(value)}, expected {expected!r}" for key, (value, expected) in found.items() if value != expected
    ]
    prediction_type = scheduler.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction"):
        wrong.append(f"scheduler.prediction_type={shown(prediction_type)}, expected epsilon or v_prediction")
    variance_type = scheduler.get("variance_type", "fixed_small")
    if variance_type in ("learned", "learned_range"):
        wrong.append(f"scheduler.variance_type={shown(variance_type)}, expected fixed_small: its UNet predicts none")
    side, scale = unet.get("sample_size"), vae.get("scaling_factor", 0.18215)
    if type(side) is not int or not 1 <= side <= 1024:
        wrong.append(f"unet.sample_size={shown(side)}, expected 1 to 1024 latent pixels")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        wrong.append(f"vae.scaling_factor={shown(scale)}, expected a positive number")
    if wrong:
        raise UsageError(f"{folder}: not a text-to-image Stable Diffusion 1.x or 2.x: {'; '.join(wrong)}.")
    with as_usage():
        check_record(scheduler, SchedulerConfig, folder / "scheduler" / "scheduler_config.json")
    tokenizer = read_config(folder / "tokenizer" / "tokenizer_config.json")
    if not isinstance(tokenizer.get("model_max_length"), int):
        raise UsageError(
            f"{folder / 'tokenizer' / 'tokenizer_config.json'}: model_max_length is not a whole number. "
            "Set it to the text encoder's max_position_embeddings."
        )
    for path in (folder / "tokenizer").iterdir():
        if _is_part_file(path) and path.stat().st_size > MAX_TOKENIZER_FILE:
            raise UsageError(f"{path}: more than {MAX_TOKENIZER_FILE:,} bytes. Use the tokenizer of the original.")


def _other_weights(folder: Path, name: str) -> str:
    """Weights beside `name` that are not read: a variant (model.fp16.safetensors) or the first of several parts."""
    stem, _, suffix = name.partition(".")
    found = sorted(path.name for path in folder.glob(f"{stem}*.{suffix}") if path.is_file())
    return found[0] if found else ""


def _check_family(folder: Path) -> None:
    """Refuse SDXL, Flux and others by the name of their pipeline or by parts that Stable Diffusion lacks."""
    index = folder / "model_index.json"
    kind = read_config(index).get("_class_name") if index.is_file() else None
    if isinstance(kind, str) and not _STABLE_DIFFUSION.fullmatch(kind):  # a list names code, which is never read
        found = f"_class_name={shown(kind)} in model_index.json"
    else:
        found = next((f"it has {part}, as {like}" for part, like in _FOREIGN.items() if (folder / part).is_dir()), "")
    if found:
        raise UsageError(
            f"{folder}: {found}. Only Stable Diffusion 1.x and 2.x are supported, such as "
            "CompVis/stable-diffusion-v1-4: give one of them, or `mini`."
        )


def read_config(path: Path) -> dict[str, Any]:
    """A config that somebody else may have made: a JSON object without keys that would fetch code or files.

    Raises UsageError.
    """
    with as_usage():
        config = read_json(path)
    if not isinstance(config, dict):
        raise UsageError(f"{path}: not a JSON object. Use the one of the original checkpoint.")
    refused = [key for key in _REFUSED_KEYS if config.get(key) is not None]
    if refused:
        raise UsageError(
            f"{path}: {', '.join(refused)} asks for other code or files. Remove it, if you trust the rest."
        )
    return config


def network_config(path: Path, keys: tuple[str, ...], tensors: int) -> dict[str, Any]:
    """The entries `keys` of a network's config, once its numbers could belong to a file of so many tensors.

    A config of a few bytes can ask for a terabyte or a million layers: no number may be negative or above 2**20,
    and there may not be more blocks than tensors. Raises UsageError.
    """
    config = {key: value for key, value in read_config(path).items() if key in keys}
    for key, value in config.items():
        if not all(0 <= number <= _LARGEST for number in _numbers(value)):
            raise UsageError(
                f"{path}: {key}={shown(value)} is out of range. Use the config of the original checkpoint."
            )
    layers = ("num_hidden_layers", "layers_per_block", "transformer_layers_per_block")
    depth = math.prod(max(1, *map(math.ceil, _numbers(config.get(key)))) for key in layers if config.get(key))
    width = max((len(value) for value in config.values() if isinstance(value, (list, str))), default=1)
    blocks = depth * (len(config["block_out_channels"]) if isinstance(config.get("block_out_channels"), list) else 1)
    if blocks > min(tensors, MAX_BLOCKS) or width > MAX_BLOCKS:
        raise UsageError(f"{path}: asks for {blocks:,} layers, but its weight file has {tensors:,} tensors.")
    return config


def weight_names(path: Path) -> tuple[str, ...]:
    """Names of the tensors in a safetensors file. Raises UsageError where it is none."""
    with as_usage():
        return tuple(read_header(path, max_bytes=MAX_WEIGHTS)[0])


def read_weights(path: Path, names: tuple[str, ...], wanted: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    """The tensors `names` of a weight file, which must be those `wanted`, in the precision of the file.

    Names of older files are translated; position ids, which are no weights, are left out. Raises UsageError.
    """
    current, specs = _fitted(path, names, wanted)
    with as_usage():
        tensors, _ = read_tensors(path, specs, max_bytes=MAX_WEIGHTS)
    return {current[name]: tensor for name, tensor in tensors.items() if current[name] in wanted}


def check_weights(path: Path, names: tuple[str, ...], wanted: Mapping[str, TensorSpec]) -> None:
    """Raise what `read_weights` raises by the header of the file alone."""
    specs = _fitted(path, names, wanted)[1]
    with as_usage():
        check_tensors(path, specs, max_bytes=MAX_WEIGHTS)


def _fitted(
    path: Path, names: tuple[str, ...], wanted: Mapping[str, TensorSpec]
) -> tuple[dict[str, str], dict[str, TensorSpec]]:
    """Today's name of every tensor in a file, and what it must be. Raises UsageError where one is lacking."""
    current = {name: _current_name(name, wanted) for name in names}
    present = set(current.values())
    lacking = [name for name in wanted if name not in present]
    if lacking:
        raise UsageError(
            f"{path}: its weights do not fit config.json beside it: {len(lacking)} lacking, such as {lacking[0]}. "
            "Use the config of the original checkpoint."
        )
    specs = {name: wanted[new] for name, new in current.items() if new in wanted}
    specs |= {name: TensorSpec((*FLOATS, torch.int64), (1, None)) for name in names if name.endswith(_POSITION_IDS)}
    return current, specs


def text_weights(config: Any) -> dict[str, TensorSpec]:
    """The weights of CLIP's text encoder (arXiv 2103.00020, section 2.4) for a CLIPTextConfig."""
    width, hidden = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (config.vocab_size, width),
        "embeddings.position_embedding.weight": (config.max_position_embeddings, width),
    }
    matrices = {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    matrices |= {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    norms = ["final_layer_norm"]
    for layer in (f"encoder.layers.{index}" for index in range(config.num_hidden_layers)):
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        for name, shape in matrices.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    for norm in norms:
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return {name: TensorSpec(FLOATS, shape) for name, shape in shapes.items()}


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Name the part whose config or files diffusers or transformers could not use."""
    try:
        yield
    except DinvError:
        raise
    except Exception as error:  # A config that describes no model makes them raise nearly any type.
        cause = shown(f"{type(error).__name__}: {error}")
        raise UsageError(f"{folder}: cannot be used ({cause}). Use the files of the original checkpoint.") from error


@contextmanager
def as_usage() -> Iterator[None]:
    """A bad file of a model is a bad --generator, or a bad --clip."""
    try:
        yield
    except DataError as error:
        raise UsageError(str(error)) from error


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (list, dict)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _numbers(child)
    elif isinstance(value, (int, float)):
        yield value


def _current_name(name: str, wanted: Mapping[str, TensorSpec]) -> str:
    """The name that the networks of today use for a tensor of an older file."""
    match = re.fullmatch(r"(.*\.)(query|key|value|proj_attn)(\.weight|\.bias)", name)
    if match and name not in wanted:
        return f"{match[1]}{_OLD_ATTENTION[match[2]]}{match[3]}"
    if name.startswith("vision_model.vision_model.") and name not in wanted:  # of a safety checker
        return name.removeprefix("vision_model.")
    return name.removeprefix("text_model.")


def available() -> dict[str, Path]:
    """Names and folders of the generators here: `mini`, and complete Stable Diffusion folders in the hub's cache."""
    found = {"mini": MINI}
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return found
    for repository in sorted(repositories, key=lambda r: r.repo_id):
        for revision in repository.revisions:
            try:
                check_parts(revision.snapshot_path)
            except (UsageError, OSError, ValueError):
                continue
            found[repository.repo_id] = revision.snapshot_path
    return found


def hash_weights(folder: Path) -> str:
    """sha256 hex over the names and contents of the weight and config files of all parts, in name order."""
    files = (p for part in (*PARTS, "adapter") for p in sorted((folder / part).glob("*")) if _is_part_file(p))
    return sha256_of_all((path.relative_to(folder).as_posix(), path) for path in files)


def _is_part_file(path: Path) -> bool:
    """Whether a file decides what the model computes: configs, vocabularies, and the weights that are loaded."""
    return path.suffix in (".json", ".txt") or path.name in WEIGHT_FILES.values()
