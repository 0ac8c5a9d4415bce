"""What examples/ shows works, and what publishes the docs: run as they stand."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_and_is_kept_without_what_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    drawn, last = code[-2].outputs, code[-1].outputs
    assert any("image/png" in output.get("data", {}) for output in drawn)
    said = "".join(output.text for output in last if output.output_type == "stream" and output.name == "stdout")
    assert [line.partition(":")[0] for line in said.splitlines()] == ["real", "real+synthetic"]


def test_the_pages_of_versions_stand_side_by_side_and_the_newest_is_first(tmp_path: Path) -> None:
    def git(*words: str, cwd: Path) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(("git", *who, *words), cwd=cwd, check=True, capture_output=True, text=True).stdout

    git("init", "-q", "--bare", "origin.git", cwd=tmp_path)
    git("clone", "-q", "origin.git", "clone", cwd=tmp_path)
    clone, site = tmp_path / "clone", tmp_path / "site"
    git("commit", "-q", "--allow-empty", "-m", "code", cwd=clone)
    git("config", "user.name", "a", cwd=clone)
    git("config", "user.email", "a@b", cwd=clone)
    site.mkdir()
    for version in ("v0.9.0", "v0.10.0", "v0.2.0", "v0.9.0"):
        (site / "index.html").write_text(version)
        subprocess.run(("bash", ROOT / ".github" / "publish-docs.sh", version, site), cwd=clone, check=True)
    git("fetch", "-q", cwd=clone)
    files = git("ls-tree", "-r", "--name-only", "origin/gh-pages", cwd=clone).split()
    assert files == [".nojekyll", "index.html", *(f"v0.{n}.0/index.html" for n in (10, 2, 9))]
    front = git("show", "origin/gh-pages:index.html", cwd=clone)
    assert re.findall(r'"(v[\d.]+)/"', front) == ["v0.10.0", "v0.9.0", "v0.2.0"] and "url=v0.10.0/" in front
    assert len(git("worktree", "list", cwd=clone).splitlines()) == 1
