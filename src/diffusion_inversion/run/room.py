"""Disk that the files of a run take, in bytes."""

from __future__ import annotations

from ..config.settings import InvertSettings
from ..generator.generator import Generator
from ..invert.packing import BYTES, SCALE_BYTES

BLOCK_BYTES = 4096  # that a file system hands out at once
SPARE_BYTES = 32 << 20  # manifests, report and temporary files of one stage
CLASSIFIER_BYTES = {"resnet20": 2 << 20, "resnet56": 4 << 20, "vgg16": 540 << 20}  # of one file, with its saved state
OTHER_CLASSIFIER_BYTES = 100 << 20


def vector_bytes(generator: Generator, settings: InvertSettings) -> int:
    """What is kept of one image in stage 1."""
    scale = SCALE_BYTES if settings.vector_dtype == "int8" else 0
    token = generator.text_width * BYTES[settings.vector_dtype] + scale
    return len(settings.checkpoints) * settings.tokens * token


def png_bytes(side: int) -> int:
    """One image of this side: an RGB PNG is never much larger than its pixels."""
    return round(1.01 * 3 * side * side) + 1024 + BLOCK_BYTES // 2


def classifier_bytes(architecture: str) -> int:
    """One classifier of this architecture."""
    return CLASSIFIER_BYTES.get(architecture, OTHER_CLASSIFIER_BYTES)
