"""How DATA names a data set of the hub: `hf:<id>[@revision][?config=...&image=...&label=...&train=...&test=...]`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from urllib.parse import parse_qsl

from ..errors import UsageError

PREFIX = "hf:"


@dataclass(frozen=True)
class HubName:
    """A data set of the hub, or a local folder laid out as one; "" where the name says nothing of it."""

    name: str
    revision: str
    config: str = ""  # of several, as `datasets.load_dataset` takes it
    image: str = ""  # columns
    label: str = ""
    train: str = ""  # splits
    test: str = ""

    @property
    def is_local(self) -> bool:
        """Whether it is a path."""
        return self.name.startswith(("/", "./", "../", "~"))


def read_hub_name(data: str) -> HubName:
    """Take `hf:...` apart. Raises UsageError for one without an id, or with an option that there is none of."""
    text, _, query = data.removeprefix(PREFIX).partition("?")
    name, _, revision = text.partition("@")
    if not name:
        raise UsageError(f"DATA {data}: no id; write hf:<owner>/<name>, or hf:<owner>/<name>@<revision>")
    known = [field.name for field in fields(HubName)][2:]
    given = parse_qsl(query, keep_blank_values=True)
    wrong = [key for key, value in given if key not in known or not value]
    if wrong or len({key for key, _ in given}) < len(given) or (query and not given):
        raise UsageError(
            f"DATA {data}: {wrong[0] if wrong else query}: after ? give each of {', '.join(known)} at most once, such "
            "as hf:<id>?config=full&label=species"
        )
    return HubName(name, revision, **dict(given))
