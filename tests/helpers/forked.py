"""Python code in a process of its own, forked from one in which what takes seconds to import is there: none of ours."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LIBRARIES = (
    "numpy", "PIL.Image", "pyarrow.parquet", "pydantic", "sklearn.metrics", "torch", "torchvision.models", "timm",
    "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl", "transformers",
)  # fmt: skip


def python(code: str, *arguments: object, env: Mapping[str, str | None] | None = None, stdin: str = "") -> str:
    """Run `code` with `arguments` as sys.argv[1:] and return its stdout; CalledProcessError where it fails.

    `env` is what changes in the environment, None for what goes. The libraries of LIBRARIES are imported already, so
    a test of the start itself, or of what a library reads as it is imported, takes a fresh interpreter instead.
    """
    done = run(code, *arguments, env=env, stdin=stdin)
    if done.returncode:
        print(done.stderr)
        done.check_returncode()
    return done.stdout


def run(
    code: str, *arguments: object, env: Mapping[str, str | None] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """The same, whatever comes of it."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as name:
        streams = [str(Path(name) / stream) for stream in ("in", "out", "err")]
        Path(streams[0]).write_text(stdin)
        request = {"code": code, "arguments": [*map(str, arguments)], "env": dict(env or {}), "streams": streams}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(code, status, *(Path(stream).read_text() for stream in streams[1:]))


@cache
def _server() -> subprocess.Popen[str]:
    names = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__], env=os.environ | names, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.communicate)  # the end of its stdin is its end
    return server


def _serve() -> None:
    for name in LIBRARIES:
        __import__(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os._exit(_child(**json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _child(code: str, arguments: list[str], env: dict[str, str | None], streams: list[str]) -> int:
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (the process ends soon)
    for name, value in env.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    sys.argv = ["-c", *arguments]
    status = 0
    try:
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    _serve()
