"""Where tensors are computed, and in which precision that is fast."""

from __future__ import annotations

import torch

from ..errors import UsageError


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; anything else goes to torch, with a clear error."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        cause = "no such device" if "device type at start" in str(error) else f"not usable here ({error})"
        raise UsageError(f"--device {device}: {cause}; give auto, cpu or cuda") from error


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic of its own; elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def describe(device: torch.device) -> str:
    """A device in words: the card's name, or the CPU and its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()}, {torch.get_num_threads()} threads"
