"""How learned vectors lie in a file: as float32, as float16, or as int8 with a scale for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Float32
from torch import Tensor

from ..engine.untrusted import TensorSpec

VectorDtype = Literal["float32", "float16", "int8"]
DTYPES: tuple[VectorDtype, ...] = get_args(VectorDtype)
LARGEST_NORM = 1e6  # of one token: those of Stable Diffusion's text encoder are near 28
BYTES: dict[VectorDtype, int] = {"float32": 4, "float16": 2, "int8": 1}  # of one number
SCALE_BYTES = 4  # of a token's scale, where there is one
_SHAPE = ("steps", "images", "tokens", "width")
_LEVELS = 127  # of int8, on either side of zero


def specs(dtype: VectorDtype) -> dict[str, TensorSpec]:
    """What the tensors of packed vectors must be."""
    if dtype == "int8":
        return {
            "vectors": TensorSpec(torch.int8, _SHAPE),
            "scales": TensorSpec(torch.float32, _SHAPE[:-1], max_norm=LARGEST_NORM),
        }
    return {"vectors": TensorSpec(getattr(torch, dtype), _SHAPE, max_norm=LARGEST_NORM)}


def pack(vectors: Float32[Tensor, "*shape width"], dtype: VectorDtype) -> dict[str, Tensor]:
    """Tensors by name that `unpack` reads; what it gives packs to the same bits again.

    int8: round(x / s) with the power of two s = 2^ceil(log2(max |x| / 127)) for each token, so no number is off by
    more than s / 2 <= max |x| / 127. float16: numbers beyond 65,504 become infinite. Only finite vectors have int8.
    """
    if dtype != "int8":
        return {"vectors": vectors.to(getattr(torch, dtype)).contiguous()}
    largest = vectors.abs().amax(dim=-1).double()
    scales = torch.where(largest > 0, torch.exp2((largest / _LEVELS).log2().ceil()), 1.0)
    levels = (vectors.double() / scales[..., None]).round()
    return {"vectors": levels.to(torch.int8).contiguous(), "scales": scales.float().contiguous()}


def unpack(tensors: Mapping[str, Tensor]) -> Float32[Tensor, "*shape width"]:
    """The vectors that `pack` packed, as float32."""
    vectors = tensors["vectors"].float()
    return vectors * tensors["scales"][..., None] if "scales" in tensors else vectors
