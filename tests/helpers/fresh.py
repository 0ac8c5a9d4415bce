"""A fresh interpreter, for what `forked` cannot show: terminals, signals, kills."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import diffusion_inversion

SOURCE = str(Path(diffusion_inversion.__path__[0]).parent)


def python(code: str, *arguments: object, **kwargs: object) -> subprocess.Popen[str]:
    """Start a Python process that imports our package."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": SOURCE, "TERM": "xterm"}
    # Its overloads ask for each keyword by name.
    return subprocess.Popen(command, env=environment, text=True, **kwargs)  # type: ignore[call-overload,no-any-return]
