"""JSON, records and names out of files of others: taken as they are meant, or refused with one line."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from diffusion_inversion.engine.untrusted import (
    MAX_DEPTH,
    check_record,
    inside,
    parse_json,
    read_header,
    read_json,
    read_tensors,
    shown,
)
from diffusion_inversion.errors import DataError

LEAVES = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    LEAVES | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    file: str
    count: Annotated[int, Field(ge=1)]
    ids: tuple[str, ...]


@dataclass
class Step:
    step: Annotated[int, Field(ge=0)] = 0


@given(VALUES)
@settings(max_examples=150, deadline=None)
def test_what_json_writes_is_read(value: Any) -> None:
    assert parse_json(json.dumps(value).encode(), "x") == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "x") == value


@given(st.binary(max_size=60) | st.text('{}[]",:0123456789.eE+-nulltrfasINity\\ud8', max_size=60).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_value_or_a_clean_error(data: bytes) -> None:
    try:
        value = parse_json(data, "file")
    except DataError as error:
        assert str(error).startswith("file: ") and str(error).isprintable()
    else:
        assert value == json.loads(data)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b'{"a": 1, "a": 2}', "a key twice"),
        (b'[{"b": {"a": 1, "a": 1}}]', "a key twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e999]", "too large"),
        (b"9" * 41, "41 digits"),
        (b"-" + b"9" * 100_000, "digits"),
        (b'"\xff"', "not Unicode"),
        (b'"\xed\xa0\x80"', "not Unicode"),
        (b'"\\ud800"', "not Unicode"),
        (b'{"\\uDFFF": 1}', "not Unicode"),
        (b"[" * 33 + b"]" * 33, "levels"),
        (b"[" * 10**6, "levels"),
        (b'{"a":' * 10**5, "levels"),
        (b"", "no valid JSON"),
        (b"\xef\xbb\xbf{}", "no valid JSON"),
    ],
)
def test_what_is_refused_of_json(data: bytes, cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        parse_json(data, "file")


def test_depth_and_surrogate_pairs_up_to_the_bound() -> None:
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json(deepest, "x") == json.loads(deepest)
    assert parse_json(b'"\\ud83d\\ude00"', "x") == "\U0001f600"


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    assert read_json(path, max_bytes=3) == [1]
    with pytest.raises(DataError, match="3 bytes, more than the 2"):
        read_json(path, max_bytes=2)
    os.mkfifo(tmp_path / "pipe")
    for name, cause in (
        ("pipe", "not a regular file"),
        (".", "not a regular file"),
        ("none", "missing"),
        ("a\0b", "opened"),
    ):
        with pytest.raises(DataError, match=cause):
            read_json(tmp_path / name)
        with pytest.raises(DataError, match=cause):
            read_header(tmp_path / name, max_bytes=9)
    with pytest.raises(DataError, match="not a regular file"):
        read_json(Path("/dev/zero"))


def test_another_digest_is_refused_before_anything_else(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"text")
    with pytest.raises(DataError, match="SHA-256"):
        read_tensors(tmp_path / "x", {}, max_bytes=99, sha256="0" * 64)


def test_records_are_strict() -> None:
    good = {"file": "a.png", "count": 2, "ids": ["a", "b"]}
    assert check_record(good, Row, "x") == Row(file="a.png", count=2, ids=("a", "b"))
    assert check_record({"step": 3}, Step, "x") == Step(3)
    faults: list[dict[str, Any]] = [
        {"count": "2"}, {"count": True}, {"count": 0}, {"count": 1.5}, {"ids": "ab"}, {"more": 1}, {"file": None},
    ]  # fmt: skip
    for change in faults:
        name = next(iter(change))
        with pytest.raises(DataError, match=rf"m.jsonl, line 3: not a record of this kind \({name}"):
            check_record(good | change, Row, "m.jsonl, line 3")
    for record in (None, [], 3, "x"):
        with pytest.raises(DataError, match="not a record"):
            check_record(record, Row, "x")


@pytest.mark.parametrize("name", ["a.png", "cat/a b.png", "ü/猫.png", "a..b", "...", ".a", "x" * 255, "ab:c", "link/x"])
def test_names_inside(tmp_path: Path, name: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "/etc/passwd", "../x", "a/../../x", "a/..", "a//b", "a/", "./a", "C:x", "c:\\x", "a\\b",
        "\\\\host\\x", "a:b", "a\0b", "a\nb", "\x1b", "\ud800", "x" * 256, "é" * 128, "out/x", "out", "loop/x",
        3, None, ["a"],
    ],
    ids=ascii,
)  # fmt: skip
def test_names_outside(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "out").symlink_to("/etc")
    (folder / "loop").symlink_to("../run/loop/../..")
    with pytest.raises(DataError, match="no name inside") as caught:
        inside(folder, name)
    assert str(caught.value).isprintable()


@given(name=st.text(max_size=40) | st.text("./\\a:\0", max_size=12))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_leads_out(tmp_path: Path, name: str) -> None:
    try:
        path = inside(tmp_path, name)
    except DataError:
        return
    assert Path(os.path.realpath(path)).is_relative_to(tmp_path) and path != tmp_path


def test_foreign_values_are_one_short_line() -> None:
    assert shown("a\nb\u202e") == "a\\nb\\u202e"
    assert shown("x" * 500) == "x" * 117 + "..."
    assert shown([1, 2]) == "[1, 2]"
