"""Check the wheel in a folder, by default dist/: everything of the package is in it, as it is here, and it is small."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "diffusion_inversion"
MOST_BYTES = 80 << 20
# Some that no import would miss before it is too late.
NEEDED = (
    "py.typed",
    "config/presets/paper.toml",
    "generator/weights/mini/unet/diffusion_pytorch_model.safetensors",
    "generator/weights/mini-clip/model.safetensors",
    "pretrain/architecture/64/unet/config.json",
    "run/bench/sd14/unet/config.json",
    "run/report/page.html",
    "run/report/parts/verdict.html",
    "run/report/script.js",
    "run/report/style.css",
    "sweep/template.html",
)


def faults(wheel: Path) -> list[str]:
    """Return one line for everything that is wrong with a wheel."""
    found = []
    if (size := wheel.stat().st_size) > MOST_BYTES:
        found.append(f"{wheel.name}: {size:,} bytes, more than {MOST_BYTES:,}")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        for path in sorted(files | {PACKAGE / name for name in NEEDED}):
            name = f"{PACKAGE.name}/{path.relative_to(PACKAGE).as_posix()}"
            if name not in inside:
                found.append(f"{name}: not in {wheel.name}")
            elif archive.read(name) != path.read_bytes():
                found.append(f"{name}: differs in {wheel.name}; it was built from other files")
        for name in sorted(inside):
            if name.endswith((".pyc", ".pkl", ".pt", ".bin")):
                found.append(f"{name}: does not belong in {wheel.name}")
    return found


def main() -> None:
    """Exit with 1 and a line for each fault."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"{folder}: {len(wheels)} wheels; build one with `make dist`")
    found = faults(wheels[0])
    if found:
        raise SystemExit("\n".join(found))
    print(f"{wheels[0].name}: {wheels[0].stat().st_size / (1 << 20):.1f} MiB, complete")


if __name__ == "__main__":
    main()
