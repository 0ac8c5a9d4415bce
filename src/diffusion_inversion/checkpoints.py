"""Diffusers-format checkpoints as files: find them, refuse what is not Stable Diffusion, hash what matters."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .errors import UsageError

MINI = Path(__file__).parent / "weights" / "mini"
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
WEIGHT_FILES = {
    "vae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def locate(name: str, revision: str | None) -> Path:
    """The local folder of a generator; hub ids are downloaded, safetensors and configs only."""
    if name == "mini":
        if not MINI.is_dir():
            raise UsageError(f"mini: its weights are not in {MINI}. Install the package again, or run `dinv pretrain`.")
        return MINI
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(
            f"generator {name!r}: no such folder, and not a hub id (owner/name). `dinv generators` lists some."
        )
    from huggingface_hub import snapshot_download

    patterns = [f"{part}/*.{suffix}" for part in PARTS for suffix in ("json", "txt")]
    patterns += [f"{part}/{name}" for part, name in WEIGHT_FILES.items()]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"generator {name!r}: cannot be fetched from the hub ({type(error).__name__}). "
            "Check the id, the revision and the network, or give a local folder."
        ) from error


def check_parts(folder: Path) -> None:
    """Refuse what is not a safetensors SD 1.x / 2.x checkpoint before anything large is read."""
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise UsageError(f"{folder}: not a diffusers Stable Diffusion folder, {', '.join(missing)} missing.")
    if (folder / "text_encoder_2").is_dir():
        raise UsageError(
            f"{folder}: looks like SDXL (text_encoder_2). Only Stable Diffusion 1.x and 2.x are supported."
        )
    for part, name in WEIGHT_FILES.items():
        if not (folder / part / name).is_file():
            raise UsageError(
                f"{folder / part}: no safetensors weights, {name} is missing (pickles are never loaded). Convert the "
                "checkpoint: `StableDiffusionPipeline.from_pretrained(...).save_pretrained(folder, "
                "safe_serialization=True)`."
            )
    unet = json.loads((folder / "unet" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    found = {
        "unet.in_channels": (unet.get("in_channels", 4), vae.get("latent_channels", 4)),
        "unet.class_embed_type": (unet.get("class_embed_type"), None),
        "unet.addition_embed_type": (unet.get("addition_embed_type"), None),
    }
    wrong = [f"{key}={value!r}, expected {expected!r}" for key, (value, expected) in found.items() if value != expected]
    prediction_type = scheduler.get("prediction_type", "epsilon")
    if prediction_type not in ("epsilon", "v_prediction"):
        wrong.append(f"scheduler.prediction_type={prediction_type!r}, expected epsilon or v_prediction")
    if wrong:
        raise UsageError(f"{folder}: not a text-to-image Stable Diffusion 1.x or 2.x: {'; '.join(wrong)}.")


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
    digest = hashlib.sha256()
    for part in (*PARTS, "adapter"):
        for path in sorted(p for p in (folder / part).glob("*") if _is_part_file(p)):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as handle:
                while chunk := handle.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def _is_part_file(path: Path) -> bool:
    """Whether a file decides what the model computes: configs, vocabularies, and the weights that are loaded."""
    return path.suffix in (".json", ".txt") or path.name in WEIGHT_FILES.values()
