"""Weights of the classifiers as safetensors, and a JSON file that says all that is needed to use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...train.classifiers import PIXEL_MEAN, PIXEL_STD, Classifier
from ..trained import Trained

ABOUT = "classifiers.json"
_LOAD = (
    "diffusion_inversion.train.classifiers.Classifier.load(file) takes uint8 images and normalises them itself; "
    "or load_state_dict() of diffusion_inversion.train.architectures.build_network(architecture, classes, image_size)"
)


def write(found: Trained, loaded_at: int, folder: Path, advance: Callable[[int], None]) -> None:
    """Write classifier-seed<k>.safetensors of each seed, and classifiers.json."""
    files = {}
    for seed, classifier in found.by_seed.items():
        name = f"classifier-seed{seed}.safetensors"
        files[name] = {"seed": seed, "sha256": classifier.save(folder / name)}
        advance(1)
    about = {**described(found, next(iter(found.by_seed.values())), loaded_at), "load": _LOAD, "files": files}
    (folder / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")


def described(found: Trained, classifier: Classifier, loaded_at: int) -> dict[str, Any]:
    """What a classifier takes and gives, as JSON; `loaded_at` is the side in px that a run loads images at."""
    side = classifier.image_size
    return {
        "arm": found.arm,
        "architecture": classifier.architecture,
        "class_names": list(classifier.class_names),
        "image_size": side,
        "input": f"float32 (batch, 3, {side}, {side}): RGB in [0, 1], channels first",
        "crop": "central square",
        "resize": "bicubic, antialiased, to each of the sides in turn",
        "sides": [loaded_at, side] if loaded_at != side else [side],
        "mean": [PIXEL_MEAN] * 3,
        "std": [PIXEL_STD] * 3,
        "output": "logits (batch, classes); `dinv predict` averages their softmax over the seeds",
        "calibrated": False,
    }
