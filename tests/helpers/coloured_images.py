"""Pictures of two colours, as DATA and as a pool: those of one colour are near to each other, none is a copy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from image_files import Pixels, save

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40)}
SIDE = 16


def picture(colour: tuple[int, int, int], seed: int, side: int = SIDE) -> Pixels:
    """Coarse noise around a colour."""
    noise = np.random.default_rng(seed).normal(0, 45, (4, 4, 3)).repeat(side // 4, 0).repeat(side // 4, 1)
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def write_data(folder: Path) -> Path:
    """6 training images of each of two classes and 4 to test."""
    for place, (name, colour) in enumerate(COLOURS.items()):
        for row in range(6):
            save(folder / "train" / name / f"{row}.png", picture(colour, 100 * place + row))
        for row in range(4):
            save(folder / "test" / name / f"{row}.png", picture(colour, 1000 + 100 * place + row))
    return folder


def write_pool(folder: Path) -> Path:
    """40 images without labels, half of them red, larger than those of DATA; every second one has a licence."""
    lines = ["file_name,licence"]
    for row in range(40):
        name = f"{row % 3}/{row:02d}.png"
        save(folder / name, picture(list(COLOURS.values())[row % 2], 5000 + row, 2 * SIDE))
        lines.append(f"{name},{'CC0' if row % 2 else ''}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    return folder
