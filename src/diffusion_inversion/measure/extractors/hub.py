"""Whether the Hugging Face hub answers. Its client waits half a minute and more for a network that is not there."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request

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
