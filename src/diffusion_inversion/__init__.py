"""Training data made by generative models: invert images to conditioning vectors, sample around them, judge the result.

The stages as plain functions: `load_images`, `invert`, `sample`, `train`, `evaluate`, over a frozen `Generator`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from .config.sampling import SampleSettings
    from .config.settings import InvertSettings
    from .config.training import TrainSettings
    from .data.datasets import load_images, load_splits
    from .data.images import LabelledImages
    from .generator.generator import Generator
    from .invert.embeddings import Embeddings, read_embeddings
    from .invert.inversion import invert
    from .measure.measuring import measure
    from .sample.autoencoding import autoencode
    from .sample.sampling import sample
    from .sample.synthetic import read_synthetic
    from .train.evaluation import Evaluation, evaluate
    from .train.training import train

_HOMES = {
    "Embeddings": "invert.embeddings",
    "Evaluation": "train.evaluation",
    "Generator": "generator.generator",
    "InvertSettings": "config.settings",
    "LabelledImages": "data.images",
    "SampleSettings": "config.sampling",
    "TrainSettings": "config.training",
    "autoencode": "sample.autoencoding",
    "evaluate": "train.evaluation",
    "invert": "invert.inversion",
    "load_images": "data.datasets",
    "load_splits": "data.datasets",
    "measure": "measure.measuring",
    "read_embeddings": "invert.embeddings",
    "read_synthetic": "sample.synthetic",
    "sample": "sample.sampling",
    "train": "train.training",
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


class _Package(ModuleType):
    """This module, in which `invert`, `measure`, `sample` and `train` are the functions, not the rooms of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        """As ever, but the import system does not put a room that it has loaded before a public name."""
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import on first use, so that `dinv --help` need not wait for torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("diffusion-inversion")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
