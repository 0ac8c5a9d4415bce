"""Every help page of `dinv`, as kept in tests/cli/help. Renew them by `.venv/bin/python tests/cli/test_help.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from diffusion_inversion.cli import app

FOLDER = Path(__file__).parent / "help"
WIDTH = 100


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that lead to every command below one, itself first: (), ("run",), ("bench", "real-size")."""
    yield words
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*words, name))


COMMANDS = tuple(commands(get_command(app)))


def page(words: tuple[str, ...]) -> str:
    """What `dinv WORDS --help` prints on a terminal of WIDTH columns."""
    done = CliRunner().invoke(app, [*words, "--help"], prog_name="dinv", terminal_width=WIDTH)
    assert done.exit_code == 0, done.output
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


def kept(words: tuple[str, ...]) -> Path:
    return FOLDER / f"{'-'.join(('dinv', *words))}.txt"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_page_is_as_it_is_kept(words: tuple[str, ...]) -> None:
    assert page(words) == kept(words).read_text(encoding="utf-8"), "meant? Renew the pages and commit their diff."


def test_no_page_is_left_of_a_command_that_is_gone() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {kept(words).name for words in COMMANDS}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for command in COMMANDS:
        kept(command).write_text(page(command), encoding="utf-8")
