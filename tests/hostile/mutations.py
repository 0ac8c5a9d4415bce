"""Embedding shards, valid and mutated, and what a reader may do with them: for hypothesis and for the campaign."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from diffusion_inversion.engine.untrusted import TensorSpec, read_tensors
from diffusion_inversion.errors import DataError

SPECS = {
    "labels": TensorSpec(torch.int64, ("images",)),
    "vectors": TensorSpec(torch.float32, ("steps", "images", "tokens", "width"), max_norm=1e4),
    "losses": TensorSpec(torch.float32, ("points", "images")),
    "null_losses": TensorSpec(torch.float32, ("images",)),
}
LARGEST = 2**20  # bytes of a shard here
HUGE = (2**31, 2**40, 2**63, 2**64 - 1, 10**30, 10**400)
ODD: tuple[Any, ...] = (
    -1,
    0,
    0.5,
    1.0,
    True,
    False,
    None,
    "3",
    [],
    {},
    [3],
    float("nan"),
    float("inf"),
    "\ud800",
    *HUGE,
)
NAMES = ("labels", "vectors", "losses", "null_losses", "__metadata__", "", "../x", "a\x00b", "x" * 5000)
KINDS = ("F64", "F32", "F16", "BF16", "I64", "U64", "F8_E4M3", "BOOL", "U8", "object", "", "f32", "C64")
BITS = (0x7FC00000, 0x7F800000, 0xFF800000, 0x7F800001, 0x7F7FFFFF)  # float32: NaN, infinities, signalling NaN, largest


@cache
def valid_shard(images: int = 3, tokens: int = 2, width: int = 4) -> bytes:
    """A shard as stage 1 commits it."""
    stream = torch.Generator().manual_seed(images)
    tensors = {
        "labels": torch.arange(images),
        "vectors": torch.randn(2, images, tokens, width, generator=stream),
        "losses": torch.rand(3, images, generator=stream),
        "null_losses": torch.rand(images, generator=stream),
    }
    return save(tensors, metadata={"ids": json.dumps([f"cat/{row}.png" for row in range(images)])})


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: bytes, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def _bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data + data[start : start + rng.randint(0, 200)]


def _length(data: bytes, rng: random.Random) -> bytes:
    length = rng.choice((0, 1, 7, 2**20, 2**31, 2**63, 2**64 - 1, len(data), len(data) - 8, rng.randrange(600)))
    return struct.pack("<Q", length % 2**64) + data[8:]


def _payload(data: bytes, rng: random.Random) -> bytes:
    """Put a NaN, an infinity or the largest number where a float may be."""
    at = 8 + struct.unpack("<Q", data[:8])[0] + 4 * rng.randrange(70)
    return data[:at] + struct.pack("<I", rng.choice(BITS)) + data[at + 4 :]


def _edit(change: Callable[[dict[str, Any], random.Random], Any]) -> Callable[[bytes, random.Random], bytes]:
    """A mutation of the header's JSON, its length corrected half of the time."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        header, body = split(data)
        change(header, rng)
        text = json.dumps(header, allow_nan=True).encode("utf-8", "surrogatepass")
        return join(text, body, None if rng.random() < 0.9 else len(text) + rng.randint(-3, 3))

    return mutate


def _entry(header: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = header[rng.choice([name for name in header if name != "__metadata__"])]
    return found


def _dtype(header: dict[str, Any], rng: random.Random) -> None:
    _entry(header, rng)["dtype"] = rng.choice((*KINDS, *ODD))


def _shape(header: dict[str, Any], rng: random.Random) -> None:
    entry = _entry(header, rng)
    shape = list(entry["shape"])
    match rng.randrange(5):
        case 0:
            shape[rng.randrange(len(shape))] = rng.choice(ODD)
        case 1:
            shape.insert(rng.randrange(len(shape) + 1), rng.choice((1, 1, *ODD)))
        case 2:
            rng.shuffle(shape)
        case 3:
            shape = [rng.choice(HUGE[:3]) for _ in range(rng.randint(1, 9))] + [0] * rng.randint(0, 1)
        case _:
            shape = [1] * rng.randrange(2000)
    entry["shape"] = shape


def _offsets(header: dict[str, Any], rng: random.Random) -> None:
    entry = _entry(header, rng)
    begin, end = entry["data_offsets"]
    shift = rng.choice((-8, -4, -1, 1, 4, 8))
    entry["data_offsets"] = rng.choice(
        ([begin + shift, end + shift], [begin, end + shift], [end, begin], [0, end - begin], [begin], [begin, end, end],
         [rng.choice(ODD), end], [begin, rng.choice(ODD)], rng.choice(ODD))
    )  # fmt: skip


def _swap(header: dict[str, Any], rng: random.Random) -> None:
    """Two tensors exchange their places."""
    one, other = _entry(header, rng), _entry(header, rng)
    one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]


def _keys(header: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice(list(header))
    match rng.randrange(5):
        case 0:
            del header[name]
        case 1:
            header[rng.choice(NAMES)] = header.pop(name)
        case 2:
            header[rng.choice(NAMES)] = rng.choice(ODD)
        case 3:
            header["__metadata__"] = rng.choice((*ODD, {"ids": 3}, {"ids": None}, {"ids": {}}, {"a": "\ud800"}))
        case _:
            _entry(header, rng)[rng.choice(("extra", "dtype", "shape", ""))] = rng.choice(ODD)


def _twice(data: bytes, rng: random.Random) -> bytes:
    """One key twice, the second with another value."""
    header, body = split(data)
    name = rng.choice(list(header))
    again = json.dumps({name: header[rng.choice(list(header))]})
    return join(json.dumps(header).encode()[:-1] + b"," + again[1:].encode(), body)


def _deep(data: bytes, rng: random.Random) -> bytes:
    _, body = split(data)
    depth = rng.choice((33, 500, 5_000, 20_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return join(b'{"a":' + opening * depth + b"1" + closing * depth + b"}", body)


def _wide(data: bytes, rng: random.Random) -> bytes:
    """A header of some 60 kB that becomes many objects."""
    _, body = split(data)
    return join(b'{"a":[' + b",".join([rng.choice((b"[]", b"{}", b'""', b"1.5"))] * 20_000) + b"]}", body)


def _text(data: bytes, rng: random.Random) -> bytes:
    """Header text that is no JSON, no UTF-8, or JSON that Python alone accepts."""
    header, body = split(data)
    good = json.dumps(header).encode()
    bad = rng.choice(
        (
            b"\xff\xfe",
            b"\xed\xa0\x80",
            b"\x00",
            b"NaN",
            b"-Infinity",
            b"1e999",
            b"9" * 5000,
            b"\\ud800",
            b"\xef\xbb\xbf",
        )
    )
    at = rng.randrange(len(good) + 1)
    return join(good[:at] + bad + good[at:], body)


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits": _bits, "truncate": _truncate, "insert": _insert, "repeat": _repeat, "length": _length,
    "payload": _payload, "dtype": _edit(_dtype), "shape": _edit(_shape), "offsets": _edit(_offsets),
    "swap": _edit(_swap), "keys": _edit(_keys), "twice": _twice, "deep": _deep, "wide": _wide, "text": _text,
}  # fmt: skip


def mutate(rng: random.Random, name: str | None = None) -> tuple[str, bytes]:
    """A mutated shard and the name of its first mutation; every fifth is mutated once more in its bytes."""
    chosen = name or rng.choice(list(MUTATIONS))
    data = MUTATIONS[chosen](valid_shard(rng.randint(1, 4)), rng)
    return chosen, _bits(data, rng) if rng.random() < 0.2 else data


def outcome(path: Path, data: bytes) -> str:
    """Write and read a shard. "accepted" where all holds that the specs say, "refused" for a clean error.

    Raises AssertionError where what was accepted breaks a spec or differs from what safetensors itself reads, or an
    error is not one line; any other exception is a fault of the reader.
    """
    path.write_bytes(data)
    try:
        tensors, metadata = read_tensors(path, SPECS, max_bytes=LARGEST)
    except DataError as error:
        message = str(error)
        assert message.isprintable() and message.startswith(f"{path}: ") and len(message) < 600, message
        return "refused"
    images = len(tensors["labels"])
    assert {name: (tensor.dtype, tensor.ndim) for name, tensor in tensors.items()} == {
        name: (spec.dtype, len(spec.shape)) for name, spec in SPECS.items()
    }
    assert tensors["vectors"].shape[1] == tensors["losses"].shape[1] == len(tensors["null_losses"]) == images > 0
    for name in ("vectors", "losses", "null_losses"):
        assert bool(torch.isfinite(tensors[name]).all())
    assert float(tensors["vectors"].double().square().sum(-1).max()) <= 1e8 * (1 + 1e-5)
    assert all(isinstance(value, str) for value in metadata.values())
    theirs = load(data)
    assert theirs.keys() == tensors.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors.items())
    return "accepted"
