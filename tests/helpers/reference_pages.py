"""The pages of docs/reference that are made from the program: every command with its options, every setting.

`.venv/bin/python tests/cli/test_help.py` renews them with the help pages.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from typer.main import get_command

from diffusion_inversion.cli import app
from diffusion_inversion.cli.given import Option, flag
from diffusion_inversion.cli.pages import EXAMPLES, OTHERS, SECTIONS
from diffusion_inversion.config import commands, few_shot, fidelity, planning, sampling, settings, training
from diffusion_inversion.config.presets import TABLES
from diffusion_inversion.config.settings import Settings

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
MADE = "Made from the program by `python tests/cli/test_help.py`; a test compares the two."
# What `dinv` gives its commands: click keeps the option of help that a command is first asked for.
SAME: dict[str, Any] = dict(get_command(app).context_settings)
MODULES = (settings, sampling, training, fidelity, planning, commands, few_shot)


def reference_pages() -> Iterator[tuple[Path, str]]:
    """Every page that is made, with the file that keeps it."""
    yield FOLDER / "commands.md", commands_page()
    yield FOLDER / "settings.md", settings_page()


def commands_page() -> str:
    """Every command: what it does, what it takes, examples."""
    lines = [
        "# Commands",
        MADE,
        "",
        "Every command also takes `--help`; what a run folder's settings mean: [Settings](settings.md).",
    ]
    for words, stub in leaves(get_command(app)):
        lines += ["", f"## dinv {' '.join(words)}", *(cell(one) for one in (stub.help or "").split("\n\n")), ""]
        context = stub.make_context(
            words[-1], [], resilient_parsing=True, **SAME
        )  # the stub makes its options only now
        sections: dict[str, list[str]] = {}
        for param in context.command.get_params(context):
            if (record := param.get_help_record(context)) is not None and "--help" not in record[0]:
                argument = param.param_type_name == "argument"
                title = "Arguments" if argument else getattr(param, "rich_help_panel", None) or OTHERS
                sections.setdefault(title, []).append(f"| `{record[0].strip()}` | {cell(record[1])} |")
        lines += ["| | |", "|---|---|"]
        for title in sorted(sections, key=["Arguments", *SECTIONS.values(), OTHERS].index):
            lines += [f"| **{title}** | |", *sections[title]]
        if examples := EXAMPLES.get(" ".join(words)):
            lines += ["", "```sh", *examples, "```"]
    return "\n".join(lines) + "\n"


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that lead to it."""
    children = getattr(command, "commands", {})
    if not children:
        yield words, command
    for name, child in children.items():
        yield from leaves(child, (*words, name))


def every_command() -> dict[tuple[str, ...], set[str]]:
    """The options of every command, by the words that lead to it."""
    found = {}
    for words, stub in leaves(get_command(app)):
        context = stub.make_context(words[-1], [], resilient_parsing=True, **SAME)
        params = context.command.get_params(context)
        found[words] = {one for param in params for one in (*param.opts, *param.secondary_opts)}
    return found


def settings_page() -> str:
    """Every setting of the models: key, kind, default and where that comes from."""
    lines = [
        "# Settings",
        MADE,
        "",
        "A setting is a field of a frozen model: a key of a preset's or an experiment's TOML table, an argument of the",
        "Python class, and an option, where it has one. Unknown keys are errors. Source of a default: *text*, *code*",
        "are the paper's and its repository's, *ours* is neither ([differences](../differences.md)).",
    ]
    for model in models():
        table = next(
            (f"; table `[{name}]` of a preset or an experiment file" for name, one in TABLES.items() if one is model),
            "",
        )
        lines += [
            "",
            f"## {model.__name__}",
            f"{(model.__doc__ or '').splitlines()[0]} `{model.__module__}`{table}.",
            "",
        ]
        lines += ["| key | option | kind | default | source | what |", "|---|---|---|---|---|---|"]
        for name, info in model.model_fields.items():
            option = Option(name, info)
            typed = f"`{flag(name, info)}`" if option.exists else "-"
            text = str(option.said["text"])
            source = (info.description or "").removeprefix(text).rpartition(" (")[2].removesuffix(")")
            source = source if (info.description or "").endswith(f"({source})") else ""
            default = option.default or (
                "required" if info.is_required() else "off" if info.default is False else "none"
            )
            row = (f"`{name}`", typed, kind(info.annotation), default, source, f"{text}{limits(info)}")
            lines.append(f"| {' | '.join(cell(one) for one in row)} |")
    return "\n".join(lines) + "\n"


def models() -> Iterator[type[Settings]]:
    """Every settings model, in the order of its module."""
    for module in MODULES:
        for one in vars(module).values():
            if (
                isinstance(one, type)
                and issubclass(one, Settings)
                and one.__module__ == module.__name__
                and one.model_fields
            ):
                yield one


def kind(annotation: Any) -> str:
    """A type as a reader of a table takes it: `int`, `number`, `a` or `b`, list of ..."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(kind(one) for one in inner if one is not type(None))
    if origin in (tuple, list):
        return f"list of {kind(inner[0])}"
    if origin is not None:  # Annotated
        return kind(inner[0])
    names = {"float": "number", "str": "text", "bool": "on or off", "Path": "path"}
    return names.get(annotation.__name__, annotation.__name__)


def limits(info: Any) -> str:
    """` [>= 1, < 2]` of a field's limits; empty where it has none."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [
        f"{sign} {getattr(one, name):g}" for one in info.metadata for name, sign in signs.items() if hasattr(one, name)
    ]
    return f" [{', '.join(found)}]" if found else ""


def cell(text: str) -> str:
    """Text on one line, for a table."""
    text = " ".join(text.split()).replace("<", "&lt;")
    return re.sub(r"[|\[*]", r"\\\g<0>", text)
