"""Features that a user extracted: an .npy file (N, D) in place of DATA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError, UsageError


def is_features(data: str | Path) -> bool:
    """Whether DATA is a file of features by its name."""
    return str(data).endswith(".npy")


def load_features(path: Path) -> Tensor:
    """Read features (N, D). Raises UsageError where there is no file, DataError where it holds something else."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give an .npy of features (N, D), or DATA")
    try:
        features = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read as .npy ({error}); write it with numpy.save") from error
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise DataError(
            f"{path}: holds {features.shape} {features.dtype}; give features (N, D) of a floating-point type, "
            "one row an image"
        )
    if not np.isfinite(features).all():
        raise DataError(f"{path}: NaN or infinity among the features; extract them again")
    return torch.from_numpy(features.astype(np.float64))
