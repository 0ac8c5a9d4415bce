"""Every bad image and what comes of it. `python tests/helpers/bad_images.py` prints the table as Markdown."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bad_image_files import FILES, BadImage, Verdict
from bad_image_folders import FOLDERS
from numpy.typing import NDArray

from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.engine.text import shown
from diffusion_inversion.errors import DataError

CASES: list[BadImage] = [*FILES, *FOLDERS]


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    causes: str
    ids: tuple[str, ...]
    pixels: NDArray[np.uint8] | None  # (H, W, 3) of the first image


def outcome(case: BadImage, folder: Path) -> Outcome:
    """Make the case below an empty folder and load it."""
    data = folder / "data"
    data.mkdir()
    case.make(data)
    table = data / "data.parquet"
    try:
        images = load_images(table if table.is_file() else data, root=folder / "root")
    except DataError as error:
        causes = [re.split(r" {2,}", line.strip())[1] for line in str(error).splitlines()[2:]]
        return Outcome("fatal", "; ".join(causes), (), None)
    causes = [problem.cause for problem in images.problems]
    pixels = images.images[0].permute(1, 2, 0).numpy()
    return Outcome("noted" if causes else "usable", "; ".join(causes), images.ids, pixels)


def as_expected(case: BadImage, found: Outcome) -> bool:
    """Whether verdict, cause, ids and pixels are those that the case states."""
    same = found.verdict == case.verdict and any(cause in found.causes for cause in case.cause.split("|"))
    if case.ids is not None and case.verdict != "fatal":
        same = same and found.ids == case.ids
    if case.pixels is None:
        return same
    if found.pixels is None or found.pixels.shape != case.pixels.shape:
        return False
    return same and bool(np.abs(found.pixels.astype(float) - case.pixels).max() <= case.tolerance)


def row(case: BadImage, found: Outcome) -> str:
    """A row of the Markdown table."""
    checked = "" if case.pixels is None else "exact" if not case.tolerance else f"within {case.tolerance}"
    causes = shown(found.causes).replace("|", "\\|")
    return f"| {case.name} | {found.verdict} | {causes} | {checked} |"


def main() -> int:
    """Print the table; the exit code is 1 where a case is not as expected."""
    print("| image | verdict | what is said | pixels checked |\n|---|---|---|---|")
    wrong = 0
    for case in CASES:
        if case.name == "no permission" and os.geteuid() == 0:
            print("| no permission | not run: root may read everything | | |")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(case, Path(folder))
        wrong += not as_expected(case, found)
        print(row(case, found))
    print(f"\n{len(CASES)} cases, {wrong} not as expected")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
