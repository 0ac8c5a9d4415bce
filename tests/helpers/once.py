"""An object store in a local folder, for processes of one machine: `once:///FOLDER`."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Once(LocalFileSystem):
    """fsspec's local file system, with a conditional put."""

    protocol = "once"

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return LocalFileSystem._strip_protocol(str(path).rpartition("://")[2])  # whichever of those below it is

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        whole = Path(self._strip_protocol(path))
        partial = Path(f"{whole.parent}.partial-{secrets.token_hex(8)}")  # beside the folder, so in no listing of it
        whole.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(value)
        try:
            if mode == "create":
                os.link(partial, whole)
            else:
                os.replace(partial, whole)
        finally:
            partial.unlink(missing_ok=True)


class Careless(Once):
    """A store that ignores the condition, as some do."""

    protocol = "careless"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        super().pipe_file(path, value)


class Unreachable(Once):
    """A store whose client fails as botocore's does: by an error of its own that quotes what it sent."""

    protocol = "unreachable"

    def pipe_file(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("no route to https://me:hunter2hunter2@store/?X-Amz-Signature=abcdef0123456789")

    cat_file = pipe_file


for kind in (Once, Careless, Unreachable):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
