"""Documents name files that exist: each name means one path, each link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import diffusion_inversion

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "diffusion_inversion"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = sorted(path for folder in ("src", "benchmarks", "experiments") for path in (ROOT / folder).rglob("*.py"))
OURS = [*CODE, *(ROOT / "tests").rglob("*.py")]
# Files of the paper's repository and its submodule, which comments and docs/differences.md speak of.
THEIRS = {"diffuser_inversion.py", "sample_dataset.py", "train_net.py", "main.py", "main_imagenet.py"}
MOST_LINES = {"ARCHITECTURE.md": 60, "CONTRIBUTING.md": 45}  # the latter is one screen


def meanings(name: str) -> list[str]:
    """The files below the root that a name such as `run/stages.py` can mean."""
    paths = (path.relative_to(ROOT).as_posix() for path in OURS)
    return [path for path in paths if f"/{path}".endswith(f"/{name}")]


def unclear(text: str) -> list[str]:
    """Return a line for every Python file named in a text that is none of ours, or more than one."""
    names = {name for name in re.findall(r"(?<![\w./<-])[\w./-]*\w\.py\b", text) if Path(name).name not in THEIRS}
    return [f"{name}: {found or 'no such file'}" for name in sorted(names) if len(found := meanings(name)) != 1]


def broken(page: Path) -> list[str]:
    """Return the links of a page to files that are not there."""
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    return [target for target in targets if "://" not in target and not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_names_files_that_exist(page: Path) -> None:
    assert unclear(page.read_text(encoding="utf-8")) == []
    assert broken(page) == []


def test_comments_and_docstrings_name_files_that_exist() -> None:
    found = {path.relative_to(ROOT).as_posix(): unclear(path.read_text(encoding="utf-8")) for path in CODE}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_the_api_page_shows_every_public_name_from_its_home() -> None:
    shown = re.findall(r"^::: (.+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    homes = {f"diffusion_inversion.{home}.{name}" for name, home in diffusion_inversion._HOMES.items()}
    assert homes <= set(shown)
    assert len(shown) == len(set(shown))


@pytest.mark.parametrize("page", MOST_LINES)
def test_a_map_is_short_and_its_folders_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES[page]
    folders = re.findall(r"`([\w/]+)/`", text)
    assert folders
    gone = [
        name
        for name in folders
        if not any((base / name).is_dir() for base in (ROOT, PACKAGE, ROOT / "tests", PACKAGE / "run"))
    ]
    assert gone == []


def test_the_map_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rooms = [path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [room for room in rooms if f"`{room}/`" not in text] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("`run/stages.py`, `src/diffusion_inversion/run/stages.py` and `python tests/test_docs.py`", []),
        ("see `pipeline.py`", ["pipeline.py: no such file"]),
        ("`engine/stages.py`", ["engine/stages.py: no such file"]),
        ("(tests/test_mixing.py).", ["tests/test_mixing.py: no such file"]),
        ("`ages.py`", ["ages.py: no such file"]),
    ],
)
def test_a_stale_name_is_seen(text: str, said: list[str]) -> None:
    assert unclear(text) == said


def test_a_name_of_two_files_is_unclear() -> None:
    assert [line.split(":")[0] for line in unclear("`mixing.py` and `train/augment/mixing.py`")] == ["mixing.py"]
