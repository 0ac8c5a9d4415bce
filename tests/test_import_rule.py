"""The import rule of ARCHITECTURE.md: a room imports from the rooms below it, never from those above."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "diffusion_inversion"
MOST_LINES, MOST_ROOMS, MOST_FILES = 400, 12, 6

# From the ground up. What stands in one line knows nothing of its neighbours. "" is the package, the public API.
LAYERS = (
    ("errors", "randomness"),
    ("engine",),
    ("config",),
    ("data",),
    ("generator",),
    ("invert",),
    ("sample",),
    ("measure", "train"),
    ("run",),
    ("pretrain",),
    ("sweep",),
    ("cli",),
    ("", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}
# Of the rooms below them these may use some alone.
ONLY = {"engine": {"errors"}, "config": {"errors", "engine"}}
PURE = {
    "invert.philox",
    "sample.perturb",
    "sample.guidance",
    "measure.metrics",
}  # formulas on tensors: of ours, errors alone
DIFFUSERS = {"generator", "run.bench"}  # `bench` measures the plain diffusers loop beside ours
# They take seconds to import: inside functions alone, or `dinv --help` waits for them.
HEAVY = {"datasets", "diffusers", "matplotlib", "scipy", "sklearn", "timm", "transformers"}


@dataclass(frozen=True)
class Import:
    line: int
    target: str  # absolute dotted name of a module
    at_top: bool  # runs when the module is imported


def imports(tree: ast.Module, package: str, modules: set[str]) -> Iterator[Import]:
    """Yield what a module imports, by statement or by a literal name; `package` is the one it lies in."""
    lazy = {
        id(node)
        for parent in ast.walk(tree)
        if isinstance(parent, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        or (isinstance(parent, ast.If) and "TYPE_CHECKING" in ast.unparse(parent.test))
        for node in ast.walk(parent)
    }
    for node in ast.walk(tree):
        at_top = id(node) not in lazy
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, at_top)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            origin = node.module or ""
            if node.level:
                origin = f"{base}.{origin}" if origin else base
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                yield Import(node.lineno, name if name in modules else origin, at_top)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                relative = name.value.startswith(".")
                yield Import(node.lineno, package + name.value if relative else name.value, at_top)


def within(module: str) -> str:
    """The module's name below the package: `measure.metrics.frechet`."""
    return module.removeprefix(PACKAGE).removeprefix(".")


def lies_in(module: str, places: set[str]) -> bool:
    return any(within(module) == place or within(module).startswith(f"{place}.") for place in places)


def breaches(source: Path) -> list[str]:
    """Return one line for every breach of the rule below `source`, the folder that holds the package."""
    files: dict[str, Path] = {}
    for path in sorted((source / PACKAGE).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        text = path.read_text(encoding="utf-8")
        room = within(module).partition(".")[0]
        if room not in FLOOR:
            found.append(f"{module}: a room that LAYERS does not name")
        if path.name == "utils.py":
            found.append(f"{module}: a utils.py says nothing; name the file after its one idea")
        if (lines := text.count("\n")) > MOST_LINES:
            found.append(f"{module}: {lines} lines, more than {MOST_LINES}")
        graph[module] = set()
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for item in imports(ast.parse(text), package, set(files)):
            top, target = item.target.split(".")[0], within(item.target).partition(".")[0]
            say = f"{module}:{item.line} imports {item.target}"
            if top == PACKAGE:
                if item.target in files and item.target != module:
                    graph[module].add(item.target)
                if target != room and FLOOR.get(target, -1) >= FLOOR.get(room, 99):
                    found.append(f"{say}: upward, {target or 'the package'} does not stand below {room}")
                if room in ONLY and target not in ONLY[room] | {room}:
                    found.append(f"{say}: {room} may import of ours only {sorted(ONLY[room])}")
                if lies_in(module, PURE) and target != "errors" and not lies_in(item.target, PURE):
                    found.append(f"{say}: a pure module knows nothing of ours but errors")
            else:
                if top == "diffusers" and not lies_in(module, DIFFUSERS):
                    found.append(f"{say}: only generator/ and run/bench/ import diffusers")
                if lies_in(module, PURE) and top not in {"jaxtyping", "numpy", "torch", *sys.stdlib_module_names}:
                    found.append(f"{say}: a pure module imports torch, numpy, jaxtyping and the standard library alone")
                if top in HEAVY and item.at_top:
                    found.append(f"{say}: too slow for the top of a module; import it inside the function")
    try:
        TopologicalSorter({name: targets - {PACKAGE} for name, targets in graph.items()}).prepare()
    except CycleError as error:
        found.append(f"import cycle: {' -> '.join(error.args[1])}")
    return found


def test_the_package_keeps_the_rule() -> None:
    assert breaches(ROOT / "src") == []


def test_the_hall_holds_rooms_not_files() -> None:
    top = [path for path in (ROOT / "src" / PACKAGE).iterdir() if path.name != "__pycache__"]
    assert len([path for path in top if path.is_dir()]) <= MOST_ROOMS
    assert len([path for path in top if path.is_file()]) <= MOST_FILES


def test_the_tests_mirror_the_rooms() -> None:
    besides = {"chaos", "helpers", "hostile"}
    rooms = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms - besides <= set(FLOOR)
    names = ("docs", "docs_commands", "examples", "public_names", "published")
    of_the_whole = {Path(__file__).name, *(f"test_{name}.py" for name in names)}
    assert {path.name for path in (ROOT / "tests").glob("test_*.py")} <= of_the_whole


def test_no_test_file_is_too_long() -> None:
    long = [path.name for path in ROOT.joinpath("tests").rglob("*.py") if path.read_text().count("\n") > MOST_LINES]
    assert long == []


@pytest.mark.parametrize(
    ("file", "code", "message"),
    [
        ("invert/inversion.py", "import diffusers.schedulers", "only generator/"),
        ("sample/sampling.py", "def f():\n    from diffusers import DDIMScheduler", "only generator/"),
        ("sample/sampling.py", "import importlib\nd = importlib.import_module('diffusers')", "only generator/"),
        ("sample/perturb.py", "from torchvision.transforms import v2", "a pure module imports"),
        ("sample/guidance.py", "from ..data import images", "a pure module knows"),
        ("measure/metrics/frechet.py", "def f():\n    import scipy.linalg", "a pure module imports"),
        ("measure/metrics/frechet.py", "from ...generator.generator import Generator", "a pure module knows"),
        ("config/settings.py", "from ..data.images import Problem", "config may import of ours only"),
        ("config/settings.py", "from ..data.images import Problem", "upward"),
        ("errors.py", "from .config.settings import Settings", "upward"),
        ("errors.py", "from .randomness import shuffled", "randomness does not stand below errors"),
        ("engine/store.py", "from ..config.settings import Settings", "engine may import of ours only"),
        ("engine/store.py", "from ..randomness import shuffled", "engine may import of ours only"),
        ("data/images.py", "from ..cli import main", "upward"),
        ("run/stages.py", f"from {PACKAGE} import cli", "upward"),
        ("train/training.py", "from ..run.stages import run", "upward"),
        ("train/training.py", "from ..measure.metrics import frechet", "measure does not stand below train"),
        ("generator/generator.py", "from ..pretrain.vae import loss", "upward"),
        ("data/images.py", "from .. import Generator", "upward"),
        ("measure/metrics/utils.py", "", "utils.py"),
        ("train/augment.py", "x = 1\n" * 401, "401 lines"),
        ("run/report.py", "from matplotlib.figure import Figure", "too slow"),
        ("generator/generator.py", "import diffusers", "too slow"),
        ("sampling.py", "", "a room that LAYERS does not name"),
        ("engine/store.py", "from . import lock", "cycle"),
    ],
)
def test_the_checker_sees_a_breach(tmp_path: Path, file: str, code: str, message: str) -> None:
    write_tree(tmp_path, {file: code})
    assert any(message in line for line in breaches(tmp_path)), breaches(tmp_path)


def test_the_checker_accepts_what_the_rule_allows(tmp_path: Path) -> None:
    allowed = {
        "__init__.py": "def __getattr__(name):\n    from .train.training import train\n    from .run import stages",
        "__main__.py": "from .cli import main",
        "cli/__init__.py": "from ..run import stages\nfrom .. import pretrain",
        "run/stages.py": "from ..invert.inversion import invert\nfrom ..train.training import train",
        "measure/metrics/frechet.py": "import math\nimport numpy as np\nfrom torch import Tensor\nfrom . import other\n"
        "from ...errors import DataError",
        "measure/metrics/other.py": "",
        "generator/generator.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import diffusers\n"
        "def load():\n    from diffusers import AutoencoderKL",
        "train/augment.py": "x = 1\n" * 400,
    }
    write_tree(tmp_path, allowed)
    assert breaches(tmp_path) == []


def write_tree(source: Path, files: dict[str, str]) -> None:
    """Write a package of empty modules with `files` put over it."""
    modules = (
        "config/settings data/images engine/store generator/generator invert/inversion measure/metrics/frechet "
        "pretrain/vae run/stages sample/guidance sample/perturb sample/sampling train/training"
    )
    tree = {f"{name}.py": "" for name in modules.split()}
    tree |= {f"{Path(name).parent}/__init__.py": "" for name in [*modules.split(), "cli/x"]}
    tree |= {"__init__.py": "", "errors.py": "", "randomness.py": "", "measure/__init__.py": ""}
    tree |= {"config/settings.py": "from .. import errors", "engine/lock.py": "from . import store"}
    for name, text in (tree | files).items():
        path = source / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
