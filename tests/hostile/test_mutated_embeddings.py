"""A mutated embedding shard is read as safetensors reads it, or refused with one line: never anything else."""

from __future__ import annotations

import os
import random
import struct
import sys
from pathlib import Path

import pytest
import torch
from forked import python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import LARGEST, MUTATIONS, SPECS, join, mutate, outcome, split, valid_shard
from safetensors.torch import save

from diffusion_inversion.engine.untrusted import MAX_HEADER, TensorSpec, read_tensors
from diffusion_inversion.errors import DataError


@pytest.mark.parametrize("images", [1, 3])
def test_a_valid_shard_is_accepted(tmp_path: Path, images: int) -> None:
    assert outcome(tmp_path / "x.safetensors", valid_shard(images)) == "accepted"


@pytest.mark.parametrize("name", MUTATIONS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_a_mutated_shard_is_accepted_or_refused(tmp_path: Path, name: str, seed: int) -> None:
    assert outcome(tmp_path / "x.safetensors", mutate(random.Random(seed), name)[1]) in ("accepted", "refused")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400))
def test_any_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    assert outcome(tmp_path / "x.safetensors", data) == "refused"


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800000, 0xFF800000, 0x7F800001])
@pytest.mark.parametrize("place", [0, 23, 47])
def test_every_float_that_is_no_number_is_found(tmp_path: Path, bits: int, place: int) -> None:
    header, body = split(valid_shard())
    at = header["vectors"]["data_offsets"][0] + 4 * place
    data = valid_shard()
    at += len(data) - len(body)
    (tmp_path / "x").write_bytes(data[:at] + struct.pack("<I", bits) + data[at + 4 :])
    with pytest.raises(DataError, match="'vectors' holds NaN or infinity"):
        read_tensors(tmp_path / "x", SPECS, max_bytes=LARGEST)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([3, 2], r"expected float32 \(points, 3\)"),  # 3 images elsewhere
        ([9], r"is float32 \(9\), expected"),
        ([1, 9], r"is float32 \(1, 9\), expected"),
    ],
)
def test_sizes_must_agree_between_tensors(tmp_path: Path, shape: list[int], message: str) -> None:
    tensors = {name: torch.ones(2, 3, 2, 4) if name == "vectors" else torch.ones(3) for name in SPECS}
    tensors |= {"labels": torch.arange(3), "losses": torch.ones(shape)}
    (tmp_path / "x").write_bytes(save(tensors))
    with pytest.raises(DataError, match=message):
        read_tensors(tmp_path / "x", SPECS, max_bytes=LARGEST)


def test_the_norm_is_that_of_a_row(tmp_path: Path) -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [5.0, 12.0]])
    (tmp_path / "x").write_bytes(save({"rows": rows}))
    for bound, good in ((13.0, True), (12.9, False)):
        specs = {"rows": TensorSpec(torch.float32, (None, 2), max_norm=bound)}
        if good:
            assert torch.equal(read_tensors(tmp_path / "x", specs, max_bytes=999)[0]["rows"], rows)
        else:
            with pytest.raises(DataError, match=r"norm 13, above 12\.9"):
                read_tensors(tmp_path / "x", specs, max_bytes=999)


def test_a_header_may_not_be_long(tmp_path: Path) -> None:
    header = b'{"a":[' + b"[]," * (MAX_HEADER // 3) + b"[]]}"
    (tmp_path / "x").write_bytes(join(header, b""))
    with pytest.raises(DataError, match="header of 4,1"):
        read_tensors(tmp_path / "x", SPECS, max_bytes=2 * len(header))


MEASURE = """
import sys
from pathlib import Path
import torch
from diffusion_inversion.engine.untrusted import TensorSpec, read_tensors
from diffusion_inversion.errors import DataError

def peak():
    # Not ru_maxrss: a process inherits that of the one that started it.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

folder, found = Path(sys.argv[1]), []
for name in ("warm", "hole", "claim", "whole"):
    before = peak()
    try:
        read_tensors(folder / name, {"a": TensorSpec(torch.float32, (None,))}, max_bytes=2**40)
    except DataError:
        pass
    found.append(peak() - before)
print(*found[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_the_file_s_size_and_a_constant(tmp_path: Path) -> None:
    """A 256 MB file costs 256 MB; one that claims 10^12 elements, or is 8 GB of holes, costs nothing."""
    size = 256 * 2**20
    for name, count in (("warm", 4096), ("whole", size), ("claim", 4 * 10**12)):
        header = b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (count // 4, count)
        (tmp_path / name).write_bytes(join(header, b""))
        if count <= size:
            os.truncate(tmp_path / name, 8 + len(header) + count)
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 8 * 2**30)
    # In a process of its own: the peak of this one may already be higher.
    hole, claim, whole = map(int, python(MEASURE, tmp_path).split())
    assert max(hole, claim) < 4 * 2**20
    assert size * 0.8 < whole < size + 16 * 2**20
