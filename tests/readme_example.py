"""Run what README.md shows, as a reader would: installed package, empty folder, nothing else.

The first Python example, then every `dinv` command on the built-in digits, in order.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def main() -> None:
    """Raise CalledProcessError at the first thing that fails."""
    text = README.read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    commands = re.findall(r"^(dinv (?:\w+ digits|\w+ runs/small).*?)(?: +#.*)?$", text, re.MULTILINE)
    if example is None or not commands:
        raise SystemExit(f"{README}: must show the public API in a ```python block and commands on digits")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "example.py"
        script.write_text(example[1], encoding="utf-8")
        for command in (f"python {script.name}", *commands):
            print(f"$ {command}", flush=True)
            subprocess.run(command, shell=True, cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    main()
