"""The files of a CLIP in transformers' format: a folder or hub id of safetensors, checked before anything is built."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...engine.hashing import sha256_of_all
from ...engine.hub import model_folder
from ...engine.untrusted import FLOATS, TensorSpec, read_header, read_tensors, shown, specs_of
from ...errors import UsageError
from ...generator.checkpoints import (
    EMBEDDED,
    MAX_BLOCKS,
    MAX_TOKENIZER_FILE,
    MAX_WEIGHTS,
    TEXT_KEYS,
    as_usage,
    read_config,
)

if TYPE_CHECKING:
    from transformers import CLIPModel

MINI_CLIP = EMBEDDED / "mini-clip"
WEIGHTS = "model.safetensors"
WORDS = "words.json"  # of a CLIP that knows few: the words that it was taught, as `words_of` gives them
_FILES = ("config.json", WEIGHTS, "preprocessor_config.json", "processor_config.json", WORDS)
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
_VISION_KEYS = (
    "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads", "num_channels",
    "image_size", "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range",
    "initializer_factor",
)  # fmt: skip
_LARGEST = 2**20  # of any number in a config
# What OpenAI's CLIP was trained with; a folder may name its own.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_POSITION_IDS = "embeddings.position_ids"  # no weights; files of 2022 have them


def locate(source: str, revision: str | None) -> Path:
    """The local folder of a CLIP, `mini-clip` the embedded one; of hub ids safetensors, configs and tokenizer only.

    Raises UsageError where it is not there.
    """
    if source == MINI_CLIP.name:
        if not (MINI_CLIP / WEIGHTS).is_file():
            here = f" For the folder here give --clip ./{source}." if Path(source).is_dir() else ""
            raise UsageError(
                f"--clip {source}: its weights are not in this package ({MINI_CLIP}). Make them by `dinv pretrain "
                f"--stage clip --corpus CORPUS` and give --clip pretraining/{source}.{here}"
            )
        return MINI_CLIP
    return model_folder("--clip", source, (*_FILES, *_TOKENIZER), "or give a local folder", revision)


def check_files(folder: Path) -> None:
    """Raise UsageError where the folder lacks what a CLIP is made of, before anything large is read."""
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: not a CLIP, config.json is missing. Give a folder that `save_pretrained` wrote.")
    kind = read_config(folder / "config.json").get("model_type")
    if kind != "clip":
        raise UsageError(f"{folder}: model_type={shown(repr(kind))}, expected 'clip' (transformers' CLIPModel).")
    if not (folder / WEIGHTS).is_file():
        others = sorted(path.name for path in folder.glob("*.*") if path.suffix in (".safetensors", ".bin", ".pt"))
        found = f"; {others[0]} is not read" if others else ""
        raise UsageError(
            f"{folder}: no {WEIGHTS}{found} (pickles are never loaded, nor parts or variants). Save it in one: "
            "`CLIPModel.from_pretrained(...).save_pretrained(folder, max_shard_size='20GB')`."
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UsageError(
            f"{folder}: no tokenizer. Add it: `CLIPTokenizer.from_pretrained(...).save_pretrained(folder)`."
        )
    for name in _TOKENIZER:
        if (folder / name).is_file() and (folder / name).stat().st_size > MAX_TOKENIZER_FILE:
            raise UsageError(f"{folder / name}: more than {MAX_TOKENIZER_FILE:,} bytes. Use the original's tokenizer.")


def read_config_of(folder: Path) -> dict[str, Any]:
    """What CLIPModel is built from, and nothing else of config.json; its numbers could belong to the weights."""
    path = folder / "config.json"
    given = read_config(path)
    with as_usage():
        tensors = len(read_header(folder / WEIGHTS, max_bytes=MAX_WEIGHTS)[0])
    config: dict[str, Any] = {key: given[key] for key in ("projection_dim",) if key in given}
    for part, keys in (("text_config", TEXT_KEYS), ("vision_config", _VISION_KEYS)):
        # Files of 2022 say it twice, and the second counts.
        entries: dict[str, Any] = {}
        for source in (given.get(part), given.get(f"{part}_dict")):
            if isinstance(source, dict):
                entries |= {key: value for key, value in source.items() if key in keys}
        config[part] = entries
    flat = [config.get("projection_dim", 1), *config["text_config"].values(), *config["vision_config"].values()]
    layers = [config[part].get("num_hidden_layers", 12) for part in ("text_config", "vision_config")]
    plain = all(value is None or isinstance(value, (str, int, float)) for value in flat)
    numbers = [value for value in flat if isinstance(value, (int, float))]
    if not plain or not all(0 <= number <= _LARGEST for number in numbers):
        raise UsageError(f"{path}: a value is out of range. Use the config of the original checkpoint.")
    if not all(isinstance(count, int) and count <= min(tensors, MAX_BLOCKS) for count in layers):
        raise UsageError(f"{path}: asks for {layers} layers, but {WEIGHTS} has {tensors:,} tensors.")
    return config


def read_weights_of(folder: Path, model: CLIPModel) -> dict[str, Tensor]:
    """The tensors of the model, in the precision of the file. Raises UsageError where the file has others."""
    path, wanted = folder / WEIGHTS, specs_of(model, any_precision=True)
    with as_usage():
        names = read_header(path, max_bytes=MAX_WEIGHTS)[0]
        lacking = [name for name in wanted if name not in names and not name.endswith(_POSITION_IDS)]
        if lacking:
            raise UsageError(
                f"{path}: not the weights that config.json describes: {len(lacking)} lacking, such as {lacking[0]}. "
                "Use the config of the original checkpoint."
            )
        ids = {name: TensorSpec((*FLOATS, torch.int64), (1, None)) for name in names if name.endswith(_POSITION_IDS)}
        specs = {name: spec for name, spec in wanted.items() if name not in ids} | ids
        tensors, _ = read_tensors(path, specs, max_bytes=MAX_WEIGHTS)
    return {name: tensor for name, tensor in tensors.items() if name not in ids}


def normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels that the folder's preprocessor names; else OpenAI's."""
    path = next((folder / name for name in _FILES[2:4] if (folder / name).is_file()), None)
    if path is None:
        return _MEAN, _STD
    config = read_config(path)
    inner = config.get("image_processor")
    config = inner if isinstance(inner, dict) else config
    mean, std = config.get("image_mean", _MEAN), config.get("image_std", _STD)
    if not all(
        isinstance(values, (list, tuple))
        and len(values) == 3
        and all(isinstance(v, (int, float)) and low <= v <= 1 for v in values)
        for values, low in ((mean, 0.0), (std, 1e-3))
    ):
        raise UsageError(f"{path}: image_mean and image_std are not three numbers each. Use the original's.")
    return tuple(map(float, mean)), tuple(map(float, std))


def words_of(text: str) -> tuple[str, ...]:
    """Words of a class name or prompt, in lower case."""
    return tuple(re.findall(r"[^\W_]+", text.lower()))


def known_words(folder: Path) -> frozenset[str] | None:
    """The words that a CLIP was taught, where its folder says so. Raises UsageError for a file that is no such list."""
    path = folder / WORDS
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes()[:MAX_TOKENIZER_FILE])
    except ValueError as error:
        raise UsageError(f"{path}: not JSON. Use the folder that `dinv pretrain --stage clip` wrote.") from error
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise UsageError(f"{path}: not a list of words. Use the folder that `dinv pretrain --stage clip` wrote.")
    return frozenset(found)


def hash_files(folder: Path) -> str:
    """sha256 hex over the names and contents of all files that are read, in name order."""
    names = sorted([*_FILES, *_TOKENIZER])
    return sha256_of_all((name, folder / name) for name in names if (folder / name).is_file())
