"""The import rule of ARCHITECTURE.md: `cli -> stages -> pure modules`, never upward."""

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
MOST_LINES = 400

TOP = {"", "__main__", "cli"}  # "" is the package itself, which names the public API
ABOVE_STAGES = {"bench", "pipeline", "pretrain", "sweep"}
STAGES = {
    "inversion",
    "prompting",
    "sampling",
    "training",
    "arms",
    "autoencoding",
    "draws",
    "real_fraction",
    "evaluation",
    "verdict",
    "reconstructions",
    "foresight",
    "verdict_record",
    "inspection",
    "measuring",
    "report",
    "reporting",
}
DIFFUSERS = {"bench", "generator", "safety", "schedulers"}  # `bench` measures the plain diffusers loop beside ours
PURE = {"perturb", "guidance", "metrics"}
# What a module may import of ours, itself apart. A module that is not listed may import all but what the rule forbids.
ONLY = {"errors": set[str](), "config": {"errors"}, "engine": {"errors"}, **{name: {"errors"} for name in PURE}}
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


def part_of(module: str) -> str:
    """Return the file or folder right below the package: `metrics` for `diffusion_inversion.metrics.frechet`."""
    return module.removeprefix(PACKAGE).removeprefix(".").split(".")[0]


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
        part = part_of(module)
        if path.name == "utils.py":
            found.append(f"{module}: a utils.py says nothing; name the file after its one idea")
        if (lines := text.count("\n")) > MOST_LINES:
            found.append(f"{module}: {lines} lines, more than {MOST_LINES}")
        graph[module] = set()
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for item in imports(ast.parse(text), package, set(files)):
            top, target = item.target.split(".")[0], part_of(item.target)
            say = f"{module}:{item.line} imports {item.target}"
            if top == PACKAGE:
                if item.target in files and item.target != module:
                    graph[module].add(item.target)
                if target == "cli" and part not in ("__main__", "cli"):
                    found.append(f"{say}: nobody imports cli")
                if target in ABOVE_STAGES and part not in TOP | {target}:
                    found.append(f"{say}: only cli stands above it")
                if target in STAGES and part not in TOP | ABOVE_STAGES | STAGES:
                    found.append(f"{say}: upward, a stage from below")
                if part in ONLY and target not in ONLY[part] | {part}:
                    found.append(f"{say}: {part} may import of ours only {sorted(ONLY[part]) or 'nothing'}")
            else:
                if top == "diffusers" and part not in DIFFUSERS:
                    found.append(f"{say}: only generator.py, schedulers.py, safety.py and bench/ import diffusers")
                if part in PURE and top not in {"jaxtyping", "numpy", "torch", *sys.stdlib_module_names}:
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


def test_no_test_file_is_too_long() -> None:
    long = [path.name for path in ROOT.joinpath("tests").rglob("*.py") if path.read_text().count("\n") > MOST_LINES]
    assert long == []


@pytest.mark.parametrize(
    ("file", "code", "message"),
    [
        ("inversion.py", "import diffusers.schedulers", "only generator.py"),
        ("sampling.py", "def f():\n    from diffusers import DDIMScheduler", "only generator.py"),
        ("sampling.py", "import importlib\nd = importlib.import_module('diffusers')", "only generator.py"),
        ("perturb.py", "from torchvision.transforms import v2", "a pure module"),
        ("guidance.py", "from . import images", "guidance may import of ours only"),
        ("metrics/frechet.py", "def f():\n    import scipy.linalg", "a pure module"),
        ("metrics/frechet.py", "from ..generator import Generator", "metrics may import of ours only"),
        ("config.py", "from .images import Problem", "config may import of ours only"),
        ("errors.py", "from .config import Settings", "errors may import of ours only"),
        ("engine/store.py", "from ..config import Settings", "engine may import of ours only"),
        ("engine/store.py", "from .. import images", "engine may import of ours only"),
        ("images.py", "from .cli import main", "nobody imports cli"),
        ("pipeline.py", f"from {PACKAGE} import cli", "nobody imports cli"),
        ("training.py", "from .pipeline import run", "only cli stands above"),
        ("generator.py", "from .pretrain.vae import loss", "only cli stands above"),
        ("images.py", "from .training import train", "upward"),
        ("engine/lock.py", "from ..report import write_report", "upward"),
        ("metrics/utils.py", "", "utils.py"),
        ("augment.py", "x = 1\n" * 401, "401 lines"),
        ("report/figures.py", "from matplotlib.figure import Figure", "too slow"),
        ("generator.py", "import diffusers", "too slow"),
        ("errors.py", "from . import config", "cycle"),
    ],
)
def test_the_checker_sees_a_breach(tmp_path: Path, file: str, code: str, message: str) -> None:
    write_tree(tmp_path, {file: code})
    assert any(message in line for line in breaches(tmp_path)), breaches(tmp_path)


def test_the_checker_accepts_what_the_rule_allows(tmp_path: Path) -> None:
    allowed = {
        "__init__.py": "def __getattr__(name):\n    from .training import train\n    from . import pipeline",
        "__main__.py": "from .cli import main",
        "cli.py": "from . import pipeline, pretrain",
        "pipeline.py": "from .inversion import invert\nfrom .report import write_report",
        "inversion.py": "from .generator import Generator\nfrom .metrics import frechet\nfrom .engine import store",
        "generator.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import diffusers\n"
        "def load():\n    from diffusers import AutoencoderKL",
        "metrics/frechet.py": "import math\nimport numpy as np\nfrom torch import Tensor\nfrom . import other\n"
        "from ..errors import DataError",
        "metrics/other.py": "",
        "augment.py": "x = 1\n" * 400,
    }
    write_tree(tmp_path, allowed)
    assert breaches(tmp_path) == []


def write_tree(source: Path, files: dict[str, str]) -> None:
    """Write a package of empty modules with `files` put over it."""
    names = "cli config errors generator guidance images inversion perturb pipeline sampling training"
    folders = ("engine", "metrics", "pretrain", "report")
    tree = {f"{name}.py": "" for name in names.split()}
    tree |= {f"{folder}/__init__.py": "" for folder in folders}
    tree |= {"__init__.py": "", "config.py": "from . import errors"}
    tree |= {"engine/store.py": "", "pretrain/vae.py": ""}
    for name, text in (tree | files).items():
        path = source / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
