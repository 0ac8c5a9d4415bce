"""Peak memory of an inversion, in a process of its own: arguments FOLDER SIDE BATCH DTYPE."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

from ...errors import DinvError


def peak_rss_gb(folder: Path, side: int, batch: int, dtype: str = "auto") -> float:
    """Peak resident memory in GB (1e9 bytes) of loading `folder` and learning `batch` images at `side` px.

    In a child process, so that nothing else counts. Raises DinvError where it fails.
    """
    command = [sys.executable, "-m", "diffusion_inversion.run.bench.memory", str(folder), str(side), str(batch), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-1:]
        raise DinvError(f"{folder}: the inversion whose memory is measured failed: {' '.join(tail) or done.returncode}")
    return int(done.stdout.split()[-1]) / 1e9


def learn(folder: Path, side: int, batch: int, dtype: str) -> None:
    """What is measured: `dinv invert`'s work on one batch, two steps."""
    import torch

    from ...config.settings import InvertSettings
    from ...generator.generator import Generator
    from ...invert.optimisation import invert_batch

    generator = Generator.load(folder, device="cpu", dtype=dtype)
    settings = InvertSettings(steps=2, init="random", eval_draws=1)
    initial = 0.1 * torch.randn(batch, settings.tokens, generator.text_width)
    ids = tuple(str(row) for row in range(batch))
    invert_batch(generator, torch.rand(batch, 3, side, side) * 2 - 1, initial, ids, settings)


def own_peak() -> int:
    """Bytes of this process's peak. The system's own figure where there is one: getrusage also counts the parent's."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    learn(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    print(own_peak())
