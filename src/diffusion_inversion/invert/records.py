"""The records of stage 1: what its manifest says of each unit and of all shards."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from typing_extensions import NotRequired, TypedDict

from ..engine.manifest import Record, Unit
from .packing import VectorDtype


class LearnedUnit(Unit):
    """A commit record of stage 1; the lists go with "ids"."""

    labels: list[int]
    hashes: list[str]  # of the images' contents
    failed: list[str]  # ids whose vectors are not finite: the shard does not hold them
    reasons: NotRequired[dict[str, str]]  # why, by id
    rates: NotRequired[dict[str, float]]  # learning rates of images that were retried, by id
    ended: NotRequired[dict[str, int]]  # steps at which images ended early, by id
    at_once: NotRequired[int]  # images computed at a time, where memory did not suffice for more


class Header(TypedDict):
    """What all shards of a run share; see `Embeddings`."""

    class_names: list[str]
    steps: list[int]
    curve_steps: list[int]
    generator_hash: str
    resolution: int
    image_size: int
    vector_dtype: NotRequired[VectorDtype]  # float32 where it is not there
    means_of: NotRequired[list[str]]  # ids of the images whose class means vectors start at


class Config(TypedDict):
    """The settings of stage 1, as far as they matter here."""

    settings: dict[str, Any]


def header_without(header: Record, ids: Collection[str]) -> Record:
    """The header without a trace of these images; class means are then of the others."""
    if "means_of" not in header:
        return header
    return {**header, "means_of": [image_id for image_id in header["means_of"] if image_id not in ids]}
