"""Training data made by generative models: invert images to conditioning vectors, sample around them, judge the result.

The stages as plain functions: `load_images`, `invert`, `sample`, `train`, `evaluate`, over a frozen `Generator`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .autoencoding import autoencode
    from .config import InvertSettings, SampleSettings, TrainSettings
    from .datasets import load_images, load_splits
    from .embeddings import Embeddings, read_embeddings
    from .evaluation import Evaluation, evaluate
    from .generator import Generator
    from .images import LabelledImages
    from .inversion import invert
    from .measuring import measure
    from .sampling import sample
    from .synthetic import read_synthetic
    from .training import train

_HOMES = {
    "Embeddings": "embeddings",
    "Evaluation": "evaluation",
    "Generator": "generator",
    "InvertSettings": "config",
    "LabelledImages": "images",
    "SampleSettings": "config",
    "TrainSettings": "config",
    "autoencode": "autoencoding",
    "evaluate": "evaluation",
    "invert": "inversion",
    "load_images": "datasets",
    "load_splits": "datasets",
    "measure": "measuring",
    "read_embeddings": "embeddings",
    "read_synthetic": "synthetic",
    "sample": "sampling",
    "train": "training",
}
__all__ = [
    "Embeddings",
    "Evaluation",
    "Generator",
    "InvertSettings",
    "LabelledImages",
    "SampleSettings",
    "TrainSettings",
    "autoencode",
    "evaluate",
    "invert",
    "load_images",
    "load_splits",
    "measure",
    "read_embeddings",
    "read_synthetic",
    "sample",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `dinv --help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
