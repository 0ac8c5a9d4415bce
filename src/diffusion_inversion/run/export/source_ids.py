"""What leaves a run in place of the ids of its sources: salted hashes of them, the ids themselves, or nothing."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from ...config.commands import SourceIds
from ...engine.frozen_settings import settings_file
from ...engine.ledger import Ledger
from ...engine.untrusted import check_record
from ...sample.columns import PARENT_VERSIONS, PARENTS
from ...sample.prompting import PROMPTS
from ..layout import SALT_FILE
from ..methods import LECF

if TYPE_CHECKING:
    import pyarrow as pa

# Columns that name images of others: ids, and hashes of pixels or vectors, which whoever has the pixels can confirm.
NAMING = (*PARENTS, "pool_id", *PARENT_VERSIONS)
_OWN_NOISE = "noise_strength"  # by `--noise-strength auto` in proportion to the norm of the source's vector
_DIGITS = 32  # of a hash, hexadecimal
_OF_PROMPTS = (PROMPTS, LECF)  # methods whose source is a sentence, which names no image


class Salt(TypedDict):
    """Content of the file."""

    salt: str


def named_as(table: pa.Table, run: Path, how: SourceIds) -> pa.Table:
    """The table of a run's images, without what tells the images that they were made from unless `how` is plain.

    That is ids, and the strength of the noise where each source has one of its own.

    Column `path` has the name that an image has in the run, `file_name` the one that it has outside: a name of the run
    has the name of its source. Hashes are HMAC-SHA256 by the run's salt: the same id is the same hash in each export of
    a run, and another one in each run. Rows are in the order of `file_name`, which says nothing of the ids.
    """
    table = table.append_column("path", table["file_name"])
    if how == "plain":
        return table
    naming = [name for name in NAMING if name in table.column_names]
    hide, rows = _hidden(_salt(run)), table.select(["path", "variant", "method", *naming]).to_pylist()
    own_noise = (Ledger(run).read_json(settings_file("sample")) or {}).get("settings", {}).get(_OWN_NOISE) == "auto"
    telling = (*NAMING, _OWN_NOISE) if own_noise else NAMING
    columns = {name: table[name] for name in table.column_names if name not in telling}
    columns["file_name"] = [_file_name(row, hide, how) for row in rows]
    if how == "hashed":
        for name in naming:
            columns[name] = [_value(row, name, hide) for row in rows]
    import pyarrow as pa

    return pa.table({name: columns[name] for name in table.column_names if name in columns}).sort_by("file_name")


def ids_as(ids: Sequence[str], run: Path, how: SourceIds) -> list[str] | None:
    """The ids of images of a run as `named_as` names them; None where it does not."""
    if how == "none":
        return None
    return list(map(_hidden(_salt(run)), ids)) if how == "hashed" else list(ids)


def _salt(run: Path) -> str:
    """The salt of a run, made and kept where there is none. It is part of no export."""
    found = Ledger(run).read_json(SALT_FILE)
    if found is None:
        Ledger(run).commit_json(SALT_FILE, {"salt": secrets.token_hex(32)}, copied=True)
        found = Ledger(run).read_json(SALT_FILE)
    return check_record(found, Salt, run / SALT_FILE)["salt"]


def _hidden(salt: str) -> Callable[[str], str]:
    key = salt.encode()

    @cache
    def hide(text: str) -> str:
        return hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256").hex()[:_DIGITS]

    return hide


def _is_prompt(row: dict[str, Any], value: str) -> bool:
    return row.get("method") in _OF_PROMPTS and value == row["source_id"]


def _value(row: dict[str, Any], name: str, hide: Callable[[str], str]) -> Any:
    value = row[name]
    if isinstance(value, list):
        return [hide(one) for one in value]
    return value if not value or _is_prompt(row, value) else hide(value)


def _file_name(row: dict[str, Any], hide: Callable[[str], str], how: SourceIds) -> str:
    folder = row["path"].rpartition("/")[0]
    if how == "none":  # nor which images have a source in common
        return f"{folder}/{hide(row['path'])}.png"
    if _is_prompt(row, row["source_id"]):
        return str(row["path"])
    return f"{folder}/{hide(row['source_id'])}-v{row['variant']:03d}.png"
