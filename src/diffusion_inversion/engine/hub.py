"""The Hugging Face hub, whose clients wait half a minute for a network that is not there, and models from it."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .untrusted import shown

_PATIENCE = 5.0  # seconds


def hub_reachable() -> bool:
    """True where the hub answers within 5 s; False without a network or with HF_HUB_OFFLINE=1. Files in its cache
    can be used either way (`local_files_only`)."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, http.client.HTTPException):
        return False
    return True


@contextmanager
def without_waiting() -> Iterator[None]:
    """Where the hub does not answer, have its clients use what they keep, or fail, at once."""
    import datasets
    from huggingface_hub import constants

    places: list[Any] = [constants, datasets.config]
    before = [place.HF_HUB_OFFLINE for place in places]
    offline = not hub_reachable()
    try:
        for place in places:
            place.HF_HUB_OFFLINE = place.HF_HUB_OFFLINE or offline
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def model_folder(option: str, source: str, files: Sequence[str], remedy: str, revision: str | None = None) -> Path:
    """The local folder of a model that `option` names; of a hub id the `files` (patterns) alone, fetched or cached.

    Raises UsageError where there is neither; `remedy` ends its message.
    """
    if Path(source).is_dir():
        return Path(source)
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith("/") or Path(source).exists():
        raise UsageError(f"{option} {shown(source)}: no such folder, and not a hub id (owner/name).")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                source, revision=revision, allow_patterns=list(files), local_files_only=not hub_reachable()
            )
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{option} {shown(source)}: neither here nor to be fetched from the hub ({type(error).__name__}). Check "
            f"the id and the network, {remedy}."
        ) from error
