"""Every help page of `dinv`, as kept in tests/cli/help. Renew them by `.venv/bin/python tests/cli/test_help.py`, and
with them the pages of docs/reference that are made of the same options.

A command with many options has two: what `--help` shows first, and `--help-all`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # as a program, too
from reference_pages import reference_pages

from diffusion_inversion.cli import app
from diffusion_inversion.cli.pages import EXAMPLES, FIRST

FOLDER = Path(__file__).parent / "help"
WIDTH = 100


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that lead to every command below one, itself first: (), ("run",), ("bench", "real-size")."""
    yield words
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*words, name))


COMMANDS = tuple(commands(get_command(app)))


def page(words: tuple[str, ...], whole: bool = False) -> str:
    """What `dinv WORDS --help` (whole: `--help-all`) prints on a terminal of WIDTH columns; "" where there is none."""
    asked = "--help-all" if whole else "--help"
    done = CliRunner().invoke(app, [*words, asked], prog_name="dinv", terminal_width=WIDTH)
    if whole and done.exit_code == 2:
        return ""
    assert done.exit_code == 0, done.output
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


def kept(words: tuple[str, ...], whole: bool = False) -> Path:
    return FOLDER / f"{'-'.join(('dinv', *words))}{'.all' if whole else ''}.txt"


def pages() -> Iterator[tuple[Path, str]]:
    """Every page there is, with the file that keeps it."""
    for words in COMMANDS:
        for whole in (False, True):
            if text := page(words, whole):
                yield kept(words, whole), text


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_page_is_as_it_is_kept(words: tuple[str, ...]) -> None:
    for whole in (False, True):
        path = kept(words, whole)
        found = path.read_text(encoding="utf-8") if path.exists() else ""
        assert page(words, whole) == found, "meant? Renew the pages and commit their diff."


def test_the_reference_in_docs_is_as_the_program() -> None:
    for path, text in reference_pages():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: renew it as the help pages"


def test_no_page_is_left_of_a_command_that_is_gone() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {path.name for path, _ in pages()}


def test_every_option_is_on_the_whole_page_and_those_that_matter_first_on_the_short_one() -> None:
    short, whole = page(("run",)), page(("run",), whole=True)
    assert "--weight-decay" not in whole, "has no option"
    for option in ("--guidance-interval", "--me-ada-gamma", "--tokens", "--root"):
        assert option in whole and option not in short
    for option in ("--out", "--limit", "--steps", "--variants", "--interpolation", "--recipe", "--seeds", "--json"):
        assert option in whole and option in short
    left = len(_options(whole)) - len(_options(short))
    assert f"{left} more options: dinv run --help-all" in short
    titles = [line for line in whole.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "Arguments:", "Data:", "Generator:", "Stage 1 (invert):", "Stage 2 (sample):", "Training and test:", "Workers:",
        "Options:", "Examples:",
    ]  # fmt: skip


def _options(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("  -")]


@pytest.mark.parametrize("command", EXAMPLES)
def test_an_example_has_only_options_of_its_command(command: str) -> None:
    whole = (page(tuple(command.split()), whole=True) or page(tuple(command.split()))).partition("Examples:")[0]
    for example in EXAMPLES[command]:
        dinv, *words = shlex.split(example)
        assert (dinv, words[: len(command.split())]) == ("dinv", command.split())
        assert all(f" {word} " in whole for word in words if word.startswith("-")), example
        parsed = get_command(app).commands[command].make_context(command, words[1:], resilient_parsing=True)  # type: ignore[attr-defined]
        assert parsed.args == [], f"{example}: more arguments than it takes"
        assert f"  {example}\n" in page(tuple(command.split()))


def test_what_matters_first_is_an_option_of_some_command() -> None:
    text = "".join(text for _, text in pages())
    assert [option for option in sorted(FIRST) if f" {option}" not in text] == []


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for path, text in pages():
        path.write_text(text, encoding="utf-8")
    for path, text in reference_pages():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
