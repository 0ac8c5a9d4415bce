"""Would the tests notice a wrong line? Mutation testing of the formulas by mutmut, of a random sample of its mutants.

    pip install mutmut
    export OMP_NUM_THREADS=1
    mutmut run "diffusion_inversion.sample.guidance.*"                    # writes all mutants below mutants/
    for n in 5 10 15 20 25; do mutmut run --max-children 2 $(python benchmarks/mutants.py each $n); done
    python benchmarks/mutants.py table > table.md

`each 25` names 25 mutants of every module, or all that it has, without those that were run: so the same loop goes on
after a kill, and whenever it is cut no module is far behind. Modules and tests: [tool.mutmut] of pyproject.toml; where
that is cut to the slow modules and the tests of them, a mutant takes seconds. `mutmut show NAME` shows a mutant that
lives, `python benchmarks/mutants.py alive` names them.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

ALIVE = 0  # exit code of tests that noticed nothing


def outcomes() -> dict[str, int | None]:
    """Exit code of the tests by mutant; None where it was not run."""
    found: dict[str, int | None] = {}
    for path in sorted(Path("mutants").rglob("*.meta")):
        found |= json.loads(path.read_text())["exit_code_by_key"]
    return found


def module_of(name: str) -> str:
    """Of a mutant, without the package's own name."""
    return name.removeprefix("diffusion_inversion.").rpartition(".")[0]


def drawn(count: int) -> list[str]:
    """At most `count` mutants of each module, at random; a larger count adds to a smaller one."""
    modules: dict[str, list[str]] = {}
    for name in sorted(outcomes()):
        modules.setdefault(module_of(name), []).append(name)
    found = []
    for module, names in modules.items():
        random.Random(module).shuffle(names)
        found += names[:count]
    return found


def main() -> None:
    match sys.argv[1:]:
        case ["each", count]:
            known = outcomes()
            print(*(name for name in drawn(int(count)) if known[name] is None))
        case ["alive"]:
            print(*(name for name, code in outcomes().items() if code == ALIVE), sep="\n")
        case ["table"]:
            rows: dict[str, list[int]] = {}
            for name, code in outcomes().items():
                row = rows.setdefault(module_of(name), [0, 0, 0])
                row[0] += 1
                row[1] += code is not None
                row[2] += code not in (None, ALIVE)
            print("| module | mutants | run | killed |\n|---|---|---|---|")
            for module, row in {**rows, "all": [sum(column) for column in zip(*rows.values(), strict=True)]}.items():
                print(f"| `{module}` | {row[0]} | {row[1]} | {row[2]} |")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
