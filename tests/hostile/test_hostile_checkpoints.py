"""A checkpoint made by somebody else is a sound Stable Diffusion, or refused by one line before it costs anything."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import python
from safetensors.torch import load_file, save_file
from toy import build_checkpoint

from diffusion_inversion.errors import UsageError
from diffusion_inversion.generator.adapter import Adapter
from diffusion_inversion.generator.generator import Generator

CONFIGS = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "adapter": "adapter/config.json",
}
WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text": "text_encoder/model.safetensors",
    "adapter": "adapter/model.safetensors",
}
# Values that would allocate terabytes, build millions of layers or run code of others.
ABSURD: list[tuple[str, dict[str, Any]]] = [
    ("unet", {"block_out_channels": [10**9, 10**9]}),
    ("unet", {"block_out_channels": [30_000, 60_000]}),
    ("unet", {"block_out_channels": [16, 32] * 100_000}),
    ("unet", {"layers_per_block": 10**6}),
    ("unet", {"layers_per_block": [1, 10**5]}),
    ("unet", {"transformer_layers_per_block": 10**5}),
    ("unet", {"transformer_layers_per_block": [[10**5], 1]}),
    ("unet", {"cross_attention_dim": 10**12}),
    ("unet", {"cross_attention_dim": 2**20}),
    ("unet", {"attention_head_dim": 0}),
    ("unet", {"norm_num_groups": -4}),
    ("unet", {"act_fn": "__import__('os')"}),
    ("unet", {"down_block_types": ["os.system", "DownBlock2D"]}),
    ("unet", {"sample_size": 1e300}),
    ("unet", {"sample_size": [64, 64]}),
    ("unet", {"sample_size": None}),
    ("vae", {"scaling_factor": 0.0}),
    ("vae", {"scaling_factor": "1"}),
    ("unet", {"quantization_config": {"quant_method": "bitsandbytes"}}),
    ("unet", {"auto_map": {"AutoModel": "evil.Model"}}),
    ("vae", {"block_out_channels": [2**20, 2**20]}),
    ("vae", {"layers_per_block": 10**6}),
    ("vae", {"down_block_types": "x" * 100_000}),
    ("vae", {"latent_channels": 10**9}),  # the message is on the UNet, which takes 4
    ("text", {"vocab_size": 10**9}),
    ("text", {"vocab_size": 2**20}),
    ("text", {"hidden_size": 2**20}),
    ("text", {"intermediate_size": 2**19}),
    ("text", {"max_position_embeddings": 2**20}),
    ("text", {"num_hidden_layers": 10**6}),
    ("text", {"hidden_act": "os.system"}),
    ("text", {"transformers_weights": "../../evil.bin"}),
    ("text", {"auto_map": {"AutoModel": "evil.Model"}}),
    ("scheduler", {"num_train_timesteps": 10**12}),
    ("scheduler", {"num_train_timesteps": 0}),
    ("scheduler", {"num_train_timesteps": True}),
    ("scheduler", {"beta_end": 2.0}),
    ("scheduler", {"beta_schedule": "os.system"}),
    ("scheduler", {"trained_betas": [0.1] * 200_000}),
    ("scheduler", {"timestep_spacing": "__class__"}),
    ("tokenizer", {"model_max_length": 10**30}),
    ("tokenizer", {"model_max_length": 1e30}),
    ("tokenizer", {"model_max_length": 17}),
    ("tokenizer", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
    ("adapter", {"width": 10**9}),
    ("adapter", {"hidden": 2**20, "tokens": 2**20}),
    ("adapter", {"tokens": "5"}),
]
TEXTS = {
    "no object": "[1, 2]",
    "no json": "{'a': 1}",
    "twice": '{"in_channels": 4, "in_channels": 8}',
    "nan": '{"norm_eps": NaN}',
    "infinite": '{"norm_eps": 1e999}',
    "digits": '{"in_channels": ' + "9" * 5000 + "}",
    "deep": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "large": json.dumps({"a": "x" * 2**20}),
    "surrogate": '{"act_fn": "\\ud800"}',
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_checkpoint(tmp_path_factory.mktemp("toy") / "toy")
    Adapter(width=32).save(folder / "adapter")
    return folder


@pytest.fixture
def copy(toy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy, tmp_path / "copy")


def change(folder: Path, part: str, entries: dict[str, Any]) -> None:
    path = folder / CONFIGS[part]
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refuse(folder: Path, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        Generator.load(folder, device="cpu", dtype="float32")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("part", "entries"), ABSURD, ids=[f"{part}-{next(iter(e))}-{i}" for i, (part, e) in enumerate(ABSURD)]
)
def test_an_absurd_config_is_refused(part: str, entries: dict[str, Any], copy: Path) -> None:
    change(copy, part, entries)
    refuse(copy, rf"{CONFIGS[part].split('/')[0]}|{next(iter(entries))}|unet.in_channels=4, expected 1000000000")


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("part", CONFIGS)
def test_a_config_that_is_no_plain_json_object_is_refused(part: str, name: str, copy: Path) -> None:
    (copy / CONFIGS[part]).write_text(TEXTS[name])
    refuse(copy, CONFIGS[part])


MEASURE = """
import json, sys
from pathlib import Path
from diffusion_inversion.errors import UsageError
from diffusion_inversion.generator.generator import Generator

def peak():
    # Not ru_maxrss: a process inherits that of the one that started it.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

folder = Path(sys.argv[1])
changes = json.loads(sys.stdin.read())
Generator.load(folder, device="cpu", dtype="float32")
before = peak()
for name, entries in changes:
    good = (folder / name).read_text()
    (folder / name).write_text(json.dumps(json.loads(good) | entries))
    try:
        Generator.load(folder, device="cpu", dtype="float32")
    except UsageError:
        (folder / name).write_text(good)
print((peak() - before) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_absurd_configs_allocate_nothing(copy: Path) -> None:
    """In a process of its own, so that no earlier peak hides one: within 64 MiB of loading the model itself."""
    changes = [(CONFIGS[part], entries) for part, entries in ABSURD]
    assert int(python(MEASURE, copy, stdin=json.dumps(changes))) < 64


def _cut(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def _extra(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors["evil.weight"] = tensors[name].clone()


def _shape(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = torch.zeros(*tensors[name].shape, 2)


def _nan(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name].view(-1)[-1] = float("nan")


def _infinite(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name].view(-1)[0] = float("-inf")


def _integer(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.int32)


@pytest.mark.parametrize("harm", [_cut, _extra, _shape, _nan, _infinite, _integer])
@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_do_not_fit_are_refused(
    part: str, harm: Callable[[dict[str, torch.Tensor], str], None], copy: Path
) -> None:
    tensors = load_file(copy / WEIGHTS[part])
    harm(
        tensors, max((name for name in tensors if tensors[name].is_floating_point()), key=lambda n: tensors[n].numel())
    )
    save_file(tensors, copy / WEIGHTS[part])
    refuse(copy, WEIGHTS[part])


def same(one: Generator, other: Generator) -> bool:
    return all(
        torch.equal(value, getattr(other, part).state_dict()[key])
        for part in ("vae", "unet", "text_encoder")
        for key, value in getattr(one, part).state_dict().items()
    )


def test_what_would_fetch_code_or_files_is_not_read(toy: Path, copy: Path, tmp_path: Path) -> None:
    """Attention kernels by name, adapters, indices of shards, custom classes, code beside the tokenizer."""
    ran = tmp_path / "ran"
    evil = f"open({str(ran)!r}, 'w')\nclass Evil: pass\n"
    for folder in ("tokenizer", "unet", "text_encoder", "."):
        for name in ("evil.py", "tokenization_evil.py", "modeling_evil.py", "pipeline.py", "__init__.py"):
            (copy / folder / name).write_text(evil)
    change(
        copy, "text", {"_attn_implementation": "evil/kernel", "attn_implementation": "evil/kernel", "_commit_hash": "x"}
    )
    change(copy, "unet", {"_class_name": "evil.Evil", "_diffusers_version": "99"})
    change(copy, "vae", {"_class_name": ["evil", "Evil"]})
    change(copy, "scheduler", {"_class_name": "Evil"})
    change(copy, "tokenizer", {"tokenizer_class": "Evil", "tokenizer_file": "/etc/hostname"})
    (copy / "model_index.json").write_text(
        json.dumps({"_class_name": ["pipeline", "Evil"], "custom": ["evil", "Evil"]})
    )
    (copy / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/evil"}')
    for folder, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        index = {"metadata": {}, "weight_map": {"x": "../../evil.bin"}}
        (copy / folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    loaded = Generator.load(copy, device="cpu", dtype="float32")
    plain = Generator.load(toy, device="cpu", dtype="float32")
    assert not ran.exists() and same(loaded, plain)
    assert torch.equal(loaded.text_tokens(["a cat"]), plain.text_tokens(["a cat"]))
    assert type(loaded.unet) is type(plain.unet) and type(loaded.tokenizer) is type(plain.tokenizer)


def test_names_of_older_checkpoints_are_understood(toy: Path, copy: Path) -> None:
    """As the files of Stable Diffusion 1.x on the hub have them."""
    text = {f"text_model.{name}": value for name, value in load_file(copy / WEIGHTS["text"]).items()}
    save_file(text | {"text_model.embeddings.position_ids": torch.arange(16)[None]}, copy / WEIGHTS["text"])
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = {}
    for name, value in load_file(copy / WEIGHTS["vae"]).items():
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        vae[name] = value
    assert any(".proj_attn." in name for name in vae)
    save_file(vae, copy / WEIGHTS["vae"])
    assert same(Generator.load(copy, device="cpu", dtype="float32"), Generator.load(toy, device="cpu", dtype="float32"))


def test_a_large_tokenizer_is_refused(copy: Path) -> None:
    with (copy / "tokenizer" / "vocab.json").open("wb") as file:
        file.truncate(2**24 + 1)
    refuse(copy, "vocab.json: more than 16,777,216 bytes")
