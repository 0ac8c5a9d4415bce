"""Classifiers as ONNX graphs that take images in [0, 1]; what else a caller must know is in the metadata."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import UsageError, how_to_install
from ...train.classifiers import Classifier
from ..trained import Trained
from .safetensors import described

_NEEDED = ("onnx", "onnxscript")


class _Logits(nn.Module):
    """Float images in [0, 1] to logits: the normalisation is part of the graph."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.logits(images)


def require() -> None:
    """Raise UsageError where the extra `onnx` is not installed."""
    for name in _NEEDED:
        try:
            import_module(name)
        except ImportError as error:
            raise UsageError(f"--to onnx: the package {name} is missing; {how_to_install('onnx')}") from error


def write(found: Trained, loaded_at: int, folder: Path, advance: Callable[[int], None]) -> None:
    """Write classifier-seed<k>.onnx of each seed: `images` float32 (batch, 3, S, S) to `logits` (batch, classes).

    Raises UsageError where the extra is not installed, or the network cannot be written as a graph.
    """
    require()
    import onnx

    for seed, classifier in found.by_seed.items():
        side = classifier.image_size
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the exporter's own parts
                program = torch.onnx.export(
                    _Logits(classifier).eval(),
                    (torch.zeros(2, 3, side, side),),
                    input_names=["images"],
                    output_names=["logits"],
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    dynamo=True,
                    verbose=False,
                )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = str(error).splitlines()[0]
            raise UsageError(
                f"--to onnx: {classifier.architecture} cannot be written as a graph ({cause}). Use --to safetensors."
            ) from error
        assert program is not None
        model = program.model_proto
        about = {**described(found, classifier, loaded_at), "seed": seed, "normalised": "inside the graph"}
        onnx.helper.set_model_props(
            model, {key: one if isinstance(one, str) else json.dumps(one) for key, one in about.items()}
        )
        onnx.checker.check_model(model)
        onnx.save(model, folder / f"classifier-seed{seed}.onnx")
        advance(1)
