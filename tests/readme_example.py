"""Run the first Python example of README.md as a reader would: installed package, empty folder, nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def main() -> int:
    """Return the example's exit status."""
    block = re.search(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if block is None:
        raise SystemExit(f"{README}: no ```python block; the README must show the public API")
    print(block[1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "example.py"
        script.write_text(block[1], encoding="utf-8")
        return subprocess.run([sys.executable, script.name], cwd=folder, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
