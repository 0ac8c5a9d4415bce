"""Every command that the documents show exists, with every option that it is given there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from reference_pages import every_command

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "SKILL.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
SCRIPTS = sorted([*ROOT.glob("examples/*.sh"), *ROOT.glob("examples/*.yaml")])
COMMANDS = every_command()
ROWS = 20  # of docs/expectations.md


def shown(text: str) -> Iterator[str]:
    """The `dinv` commands of a page's blocks and of its text; those that go on behind a backslash as one."""
    text = text.replace("\\\n", " ")
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from re.findall(r"^(?:\$ )?(dinv .+?)(?:\s+#.*|\s*[;&]\s*)?$", block, re.MULTILINE)
    yield from re.findall(r"`(dinv [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def faults(line: str) -> list[str]:
    """What a command line names that `dinv` has not; a line that stops at a command's name is right."""
    try:
        words = shlex.split(line)[1:]
    except ValueError:
        words = line.split()[1:]
    if not words or words[0].isupper() or words[0].startswith("-"):  # `dinv COMMAND`, `dinv --version`
        return []
    known = next((n for n in (2, 1) if tuple(words[:n]) in COMMANDS), 0)
    if not known:
        ours = any(one[0] == words[0] for one in COMMANDS)  # `dinv gan`, `dinv generators mini --path`
        return [] if ours and (len(words) == 1 or words[0] == "generators") else [f"dinv {words[0]}: none"]
    options = COMMANDS[tuple(words[:known])]
    given = {word.partition("=")[0] for word in words[known:] if re.match(r"--[a-z]", word)}
    return [f"dinv {' '.join(words[:known])} {one}: none" for one in sorted(given - options)]


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_shows_commands_and_options_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page in SCRIPTS:
        text = f"```sh\n{re.sub(r'^ +', '', text, flags=re.MULTILINE)}\n```\n"
    assert [fault for line in shown(text) for fault in faults(line)] == []


def test_a_wrong_command_or_option_is_seen() -> None:
    text = "see `dinv rum x`\n```sh\ndinv run x --steps 3 --stepz 4  # --no\ndinv gan train x \\\n  --sizes 3 &\n```\n"
    assert [fault for line in shown(text) for fault in faults(line)] == [
        "dinv run --stepz: none", "dinv gan train --sizes: none", "dinv rum: none",
    ]  # fmt: skip


def test_every_expectation_names_a_command_or_says_no() -> None:
    text = (ROOT / "docs" / "expectations.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row[0]) for row in rows] == list(range(1, ROWS + 1))
    for _, _, answer, command, *_ in rows:
        assert answer.strip() in ("yes", "in part", "no"), answer
        assert ("`" in command) == (answer.strip() != "no"), command
