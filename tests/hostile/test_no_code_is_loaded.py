"""By reading the source: nothing in the package unpickles, evaluates text or fetches code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "diffusion_inversion"
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pickletools"}
CALLS = {"eval", "exec", "compile", "read_pickle", "unpickle", "fromfile_pickle", "torch.hub.load", "runpy.run_path"}
# torch.load of known weights (their SHA-256 is checked before), by the restricted unpickler.
ALLOWED = {"generator/features.py", "measure/extractors/inception.py"}


def breaches(text: str, file: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{name}" for name in names] + [node.module or ""]
        # `except pickle.UnpicklingError` is no unpickling.
        if names == ["pickle"] and set(re.findall(r"\bpickle\.(\w+)", text)) == {"UnpicklingError"}:
            continue
        if any(name.split(".")[0] in MODULES for name in names):
            yield f"{file}:{node.lineno} imports {names}"
        if "torch.load" in names or "torch.serialization" in names:
            yield f"{file}:{node.lineno} imports {names}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg}
            if called in CALLS or called.split(".")[-1] in {"read_pickle", "Unpickler"}:
                yield f"{file}:{node.lineno} calls {called}"
            if called.endswith("torch.load") and (file not in ALLOWED or given.get("weights_only") != "True"):
                yield f"{file}:{node.lineno} calls torch.load"
            for argument, bad in (
                ("allow_pickle", "False"),
                ("trust_remote_code", "False"),
                ("use_safetensors", "True"),
            ):
                if given.get(argument, bad) != bad:
                    yield f"{file}:{node.lineno} gives {argument}={given[argument]}"
            if called.endswith(("np.load", "numpy.load")) and given.get("allow_pickle") != "False":
                yield f"{file}:{node.lineno} calls np.load without allow_pickle=False"
            if called.endswith("yaml.load") or "custom_pipeline" in given:
                yield f"{file}:{node.lineno} calls {called}"


def test_the_package_loads_no_code() -> None:
    found = [
        line
        for path in SOURCE.rglob("*.py")
        for line in breaches(path.read_text(), path.relative_to(SOURCE).as_posix())
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.loads(data)", "import pickle\npickle.UnpicklingError, pickle.load",
        "from pickle import loads", "import torch\ntorch.load(p)", "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=True)", "from torch import load", "np.load(p)", "np.load(p, allow_pickle=True)",
        "A.from_pretrained(p, trust_remote_code=True)", "datasets.load_dataset(n, trust_remote_code=flag)",
        "eval(text)", "pd.read_pickle(p)", "import joblib", "torch.hub.load(r, m)",
        "A.from_pretrained(p, use_safetensors=None)",
    ],
)  # fmt: skip
def test_the_scan_sees_a_breach(code: str) -> None:
    assert list(breaches(code, "other.py"))


def test_the_scan_allows_what_is_safe() -> None:
    assert not list(breaches("torch.load(b, weights_only=True)", "generator/features.py"))
    assert list(breaches("torch.load(b)", "generator/features.py"))
    assert not list(breaches("np.load(p, allow_pickle=False)\nA.from_pretrained(p, use_safetensors=True)", "x.py"))


def test_the_pinned_weights_are_checked_before_they_are_read() -> None:
    """In load_lite0 the comparison with LITE0_SHA256 that raises stands before torch.load, which reads those bytes."""
    text = (SOURCE / "generator" / "features.py").read_text()
    assert text.index("!= LITE0_SHA256") < text.index("raise UsageError") < text.index("torch.load(io.BytesIO(data)")
