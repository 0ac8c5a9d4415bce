"""How the source is laid out: what lies on the package's top floor, how long files are, how wide signatures.

`python benchmarks/house.py [SRC]`; an earlier commit's: `git archive COMMIT src | tar -x -C FOLDER`, SRC = FOLDER/src.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def signatures(path: Path) -> list[tuple[int, str]]:
    """The number of parameters of every function of a file, with its name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            of = node.args
            given = [*of.posonlyargs, *of.args, *of.kwonlyargs, *filter(None, (of.vararg, of.kwarg))]
            found.append((len(given), f"{path.stem}.{node.name}"))
    return found


def main() -> None:
    """Print the layout of the package below SRC."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("src", type=Path, nargs="?", default=ROOT / "src")
    package = parser.parse_args().src / "diffusion_inversion"
    top = [path for path in package.iterdir() if path.name != "__pycache__"]
    files = sorted(package.rglob("*.py"))
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in files}
    longest = max(files, key=lambda path: lines[path])
    width, name = max(pair for path in files for pair in signatures(path))
    print(f"top floor: {sum(path.is_dir() for path in top)} rooms, {sum(path.is_file() for path in top)} files")
    print(f"python: {len(files)} files, {sum(lines.values()):,} lines")
    print(f"largest file: {longest.relative_to(package)}, {lines[longest]} lines")
    print(f"longest signature: {name}, {width} parameters")


if __name__ == "__main__":
    main()
