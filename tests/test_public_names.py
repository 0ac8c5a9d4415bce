"""`from diffusion_inversion import invert` is the function, although a room is called the same."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from forked import python as forked

import diffusion_inversion
from diffusion_inversion.engine.toml import read_toml

ROOT = Path(__file__).resolve().parent.parent
SOURCE = str(ROOT / "src")
ROOMS = ("invert", "measure", "sample", "train")


def python(code: str) -> str:
    """What a process prints that has imported nothing of ours."""
    return forked(f"import sys; sys.path.insert(0, {SOURCE!r})\n{code}").strip()


@pytest.mark.parametrize(
    "before",
    [
        "pass",
        "import diffusion_inversion.train.training",
        "from diffusion_inversion.invert import inversion",
        "from diffusion_inversion.measure.measuring import measure; import diffusion_inversion.sample",
    ],
)
def test_a_room_never_hides_a_public_name(before: str) -> None:
    names = ", ".join(diffusion_inversion.__all__)
    code = f"{before}\nfrom diffusion_inversion import {names}\nprint(all(map(callable, [{names}])))\n"
    code += f"print(*(f.__module__ for f in [{', '.join(ROOMS)}]))"
    answer, homes = python(code).splitlines()
    assert answer == "True"
    assert homes == " ".join(f"diffusion_inversion.{diffusion_inversion._HOMES[name]}" for name in ROOMS)


def test_every_public_name_is_listed_once_and_an_unknown_one_is_an_error() -> None:
    assert diffusion_inversion.__all__ == sorted(diffusion_inversion._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        diffusion_inversion.nothing  # noqa: B018


def test_modules_of_a_room_of_that_name_are_reached_by_from() -> None:
    assert python("from diffusion_inversion.sample import sampling\nprint(sampling.__name__)").endswith(".sampling")


def test_the_version_stands_in_pyproject_alone() -> None:
    written = read_toml(ROOT / "pyproject.toml")["project"]["version"]
    assert written == importlib.metadata.version("diffusion-inversion") == diffusion_inversion.__version__
    assert (
        python("sys.argv = ['dinv', '--version']; from diffusion_inversion.cli import main; main()")
        == f"dinv {written}"
    )
