"""Would the tests notice a wrong line? Mutation testing of the formulas by mutmut, of a random sample of its mutants.

    pip install mutmut
    export OMP_NUM_THREADS=1
    mutmut run "diffusion_inversion.sample.guidance.*"                    # writes all mutants below mutants/
    mutmut run --max-children 2 $(python benchmarks/mutants.py names 420)
    python benchmarks/mutants.py table > table.md

Modules and tests: [tool.mutmut] of pyproject.toml. `mutmut show NAME` shows a mutant that lives.
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


def main() -> None:
    match sys.argv[1:]:
        case ["names", count]:
            print(*random.Random(0).sample(sorted(outcomes()), int(count)))
        case ["table"]:
            rows: dict[str, list[int]] = {}
            for name, code in outcomes().items():
                row = rows.setdefault(name.removeprefix("diffusion_inversion.").rpartition(".")[0], [0, 0, 0])
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
