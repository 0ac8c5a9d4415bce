"""`inception`: the network of FID, Inception v3 as TensorFlow's 2015-12-05 graph, by torch-fidelity (Apache-2.0)."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path

import torch
from torch import Tensor

from ...data.sources import default_root
from ...engine.hashing import sha256_of
from ...engine.store import commit_file
from ...errors import UsageError, how_to_install
from .extractor import Extractor

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
SHA256_START = "6726825d"  # also that of pytorch-fid's pt_inception-2015-12-05-6726825d.pth, which is the same file
_TIMEOUT = 10.0  # seconds without an answer


def open_inception(
    device: torch.device, weights: str | Path | None = None, *, sha256_start: str = SHA256_START
) -> Extractor:
    """2,048 numbers an image: the last pooling of the FID network, resized to 299 px as TensorFlow 1 did.

    weights: the file of either name above; None downloads it once (95 MB) below the data folder.
    sha256_start: what the file's SHA-256 must start with; on other weights the numbers are no FID.
    Raises UsageError: torch-fidelity is missing, no such file, other weights, or no network.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UsageError(f"--extractor inception: torch-fidelity is missing; {how_to_install('metrics')}") from error

    path = _downloaded() if weights is None else Path(weights)
    if not path.is_file():
        raise UsageError(f"--weights {path}: no such file. Give {Path(URL).name}, from {URL}")
    digest = sha256_of(path)
    if not digest.startswith(sha256_start):
        raise UsageError(
            f"{path}: its SHA-256 starts with {digest[:8]}, that of the FID weights with {sha256_start}; "
            f"get them again from {URL}"
        )
    try:
        # torch-fidelity loads any pickle; one that this line accepts holds tensors alone.
        torch.load(path, map_location="cpu", weights_only=True)
        model = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UsageError(f"{path}: not the weights of the FID network ({error}); get them from {URL}") from error
    model.to(device)

    def embed(images: Tensor) -> Tensor:
        features: Tensor = model(images)[0]
        return features

    preprocessing = "bilinear to 299 px as TensorFlow 1, not antialiased; (x - 128) / 128"
    return Extractor("inception", "", 2048, preprocessing, digest, device, embed)


def _downloaded() -> Path:
    """The weights below the data folder, fetched the first time."""
    path = default_root() / "weights" / Path(URL).name
    if path.is_file():
        return path

    def write(partial: Path) -> None:
        torch.hub.download_url_to_file(URL, str(partial), hash_prefix=SHA256_START)

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        commit_file(path, write)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSError; a wrong hash is a RuntimeError
        raise UsageError(
            f"--extractor inception: its weights cannot be downloaded ({error}). Fetch {URL} elsewhere and give the "
            "file as --weights, or use --extractor lite0, which needs no network."
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    return path
