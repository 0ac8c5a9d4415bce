"""Settings as options: those of a command are made from the fields of models, and read back into checked settings.

A parameter `chosen: Given[InvertSettings]` stands for one option a field. An option that several models of a command
share is one option, where the last of them has it, and is given to all.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

from ..engine.text import did_you_mean
from ..errors import UsageError
from .completion import completion_of
from .pages import OTHERS, SECTIONS

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

    from ..config.settings import Settings

Model = TypeVar("Model", bound="Settings")
Make = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Fields:
    """What a command has of a model, beside `Given[Model]` in `Annotated`.

    only: names of the fields that it has; none: all.
    unset: field => what it means in this command that the option is not given.
    beside: the option with which the defaults of this model hold in place of another's.
    """

    only: tuple[str, ...] = ()
    unset: Mapping[str, str] = field(default_factory=dict)
    beside: str = ""


@dataclass(frozen=True)
class Given(Generic[Model]):
    """The options of a settings model that were given, as typed: field => value."""

    model: type[Model]
    values: Mapping[str, Any]

    def settings(self, preset: str | None = None, of: str | None = None, without: Collection[str] = ()) -> Model:
        """The checked settings: the options given over the preset for DATA `of`, but those of fields `without`."""
        from ..config.presets import TABLES

        stage = next((table for table, model in TABLES.items() if model is self.model), "settings")
        given = {name: value for name, value in self.values.items() if name not in without}
        return settings_of(self.model, preset, stage, of=of, **given)

    def flags(self) -> dict[str, str]:
        """The options that were given, as typed (`--steps`), by field."""
        return {name: flag(name, self.model.model_fields[name]) for name in self.values}


def settings_of(model: type[Model], preset: str | None, stage: str, *, of: str | None = None, **given: Any) -> Model:
    """The preset's settings of a stage (no preset: the defaults), overridden by what was given and is not None.

    of: the DATA that the preset is for. A list may be text with commas. Raises UsageError, which names every option.
    """
    from pydantic import ValidationError

    from ..config.presets import read_preset

    chosen = {} if preset is None else read_preset(preset, of)[stage]
    given = {name: value for name, value in given.items() if value is not None}
    lists = {name: words(v) for name, v in given.items() if isinstance(v, str) and listed(model.model_fields[name])}
    for name in lists:
        _require_no_range(name, lists[name], model.model_fields[name])
    try:
        return model.model_validate({**chosen, **given, **lists})
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in _faults(error, model, given))
        raise UsageError(f"settings that cannot be used:\n{lines}") from error


def words(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _require_no_range(name: str, given: tuple[str, ...], info: FieldInfo) -> None:
    """Refuse `0-4` in a list of whole numbers: pydantic drops the zero and reads -4."""
    found = next((word for word in given if re.fullmatch(r"\d+-\d+", word)), None)
    if found and get_args(info.annotation)[0] is int:
        place = f"{flag(name, info)} {','.join(given)}"
        raise UsageError(f"settings that cannot be used:\n  {place}: give each number in place of {found}, as in 0,1,2")


# What a value must be, by pydantic's name of the error.
_REMEDIES = {
    "greater_than": "more than {gt:g}", "greater_than_equal": "at least {ge:g}", "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "finite_number": "a finite number", "literal_error": "{expected}",
    "too_short": "at least {min_length}", "too_long": "at most {max_length}", "missing": "one more",
}  # fmt: skip


def _faults(error: ValidationError, model: type[Settings], given: Mapping[str, Any]) -> Iterator[str]:
    """One line for each value that cannot be used: the option, the value, the cause or what to give."""
    lines: dict[str, list[str]] = {}  # what cannot be used => what to give instead; none where the line says it
    for fault in error.errors():
        name, *inside = fault["loc"] or ("",)
        context = fault.get("ctx", {})
        message = _as_options(str(context.get("error", fault["msg"])), model)
        if not name:
            lines[message] = []
            continue
        value = given.get(str(name), fault["input"])
        said = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else repr(value)
        place = f"{flag(str(name), model.model_fields[str(name)])} {said}"
        if fault["type"] not in _REMEDIES:
            lines[f"{place}: {message}"] = []
            continue
        if fault["type"] == "too_short" and place in lines:  # of a list whose values were refused before
            continue
        remedy = _REMEDIES[fault["type"]].format(**context).replace("'", "")
        if inside and isinstance(inside[0], int) and fault["type"] != "missing":  # one of a list
            remedy += f" in place of {fault['input']}"
        if fault["type"] == "literal_error":
            remedy += did_you_mean(str(fault["input"]), re.split(", | or ", context["expected"].replace("'", "")))
        lines.setdefault(place, []).append(remedy)
    for line, remedies in lines.items():
        yield f"{line}: give {' or '.join(dict.fromkeys(remedies))}" if remedies else line


def _as_options(message: str, model: type[Settings]) -> str:
    """A message that names settings (`keep_steps=[9]`) as of the options (`--keep-steps [9]`)."""
    flags = {name: flag(name, info) for name, info in model.model_fields.items()}
    return re.sub(rf"\b({'|'.join(flags)})=", lambda found: f"{flags[found[1]]} ", message)


def listed(info: FieldInfo) -> bool:
    """Whether a field is a list that is typed with commas."""
    return get_origin(info.annotation) is tuple


def flag(name: str, info: FieldInfo) -> str:
    """What a user types for a field: `--steps`, or `DATA` of an argument; its own name where it has no option."""
    option = Option(name, info)
    return option.flags[0] if option.exists else name


@dataclass(frozen=True)
class Option:
    """A field of a model as a command shows it."""

    field: str
    info: FieldInfo
    fields: Fields = Fields()
    section: str | None = None

    @property
    def said(self) -> Mapping[str, Any]:
        """What `setting` was told; a field that was not made by it has its description."""
        extra = self.info.json_schema_extra
        return extra if isinstance(extra, dict) else {"text": self.info.description or "", "unset": "", "option": ""}

    @property
    def exists(self) -> bool:
        """Whether the command has the field."""
        return self.said["option"] is not None and (not self.fields.only or self.field in self.fields.only)

    @property
    def is_argument(self) -> bool:
        """Whether it is typed without a name."""
        return str(self.said["option"]).isupper()

    @property
    def flags(self) -> tuple[str, ...]:
        """`--x`, or `--x` and `--no-x`, or `DATA`."""
        name = self.said["option"] or self.field.replace("_", "-")
        if self.is_argument:
            return (name,)
        on, _, off = f"--{name}".partition("/")
        off = off or (f"--no-{name}" if self.info.default is True else "")
        return (on, off) if off else (on,)

    @property
    def parameter(self) -> str:
        """The name that typer knows it by."""
        return self.flags[0].removeprefix("--").replace("-", "_").lower()

    @property
    def kind(self) -> Any:
        """What the command line takes: text for lists and choices, which the model itself reads."""
        kind = self.info.annotation
        if get_origin(kind) in (Union, types.UnionType):
            several = [one for one in get_args(kind) if one is not type(None)]
            kind = several[0] if len(several) == 1 else str
        return kind if get_origin(kind) is list or kind in (bool, int, float, Path) else str

    @property
    def choices(self) -> str:
        """`a, b or c` of what it may be, `Some of a,b,c` of a list; empty where that is open."""
        kind = self.info.annotation
        if get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Literal:
            return f"Some of {','.join(get_args(get_args(kind)[0]))}"
        if get_origin(kind) is not Literal:
            return ""
        *others, last = get_args(kind)
        return f"{', '.join(others)} or {last}"

    @property
    def default(self) -> str:
        """Its default as a user would type it, or in words; empty where there is nothing to say."""
        if unset := self.fields.unset.get(self.field) or self.said["unset"]:
            return str(unset)
        default = self.info.default
        if self.info.is_required() or default in (None, []):
            return ""
        if isinstance(default, bool):
            return "on" if default else "off" if len(self.flags) > 1 else ""
        each = default if isinstance(default, tuple) else (default,)
        return ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in each)


def options(function: Make) -> tuple[list[inspect.Parameter], Callable[[Mapping[str, Any]], dict[str, Any]]]:
    """What a command shows of its function, and how what was typed becomes the function's arguments.

    Each parameter of type `Given[Model]`, which `Fields` may narrow, becomes the options of the model's fields.
    """
    from ..config import commands, few_shot, fidelity, growing, planning, sampling, settings, training, working

    models_of = (settings, sampling, fidelity, training, commands, few_shot, growing, planning, working)
    known = {name: one for module in models_of for name, one in vars(module).items()} | {"Given": Given}
    hints = get_type_hints(function, localns=known, include_extras=True)
    own: dict[str, inspect.Parameter] = {}
    models: dict[str, tuple[type[Settings], list[Option]]] = {}
    shared: dict[str, list[Option]] = {}  # by the parameter that typer sees
    order: list[str] = []
    for name, parameter in inspect.signature(function, eval_str=True, locals=known).parameters.items():
        model, fields = _model(hints[name])
        if model is None:
            own[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            order.append(name)
            continue
        section = SECTIONS.get(model.__name__, OTHERS)
        every = [Option(key, info, fields, section) for key, info in model.model_fields.items()]
        models[name] = (model, [option for option in every if option.exists])
        for option in models[name][1]:
            shared.setdefault(option.parameter, []).append(option)
            order = [*(one for one in order if one != option.parameter), option.parameter]
    if both := own.keys() & shared.keys():
        raise TypeError(f"{function.__name__}: {', '.join(both)}: both a parameter and the option of a setting")

    def arguments(typed: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {name: typed[name] for name in own}
        for name, (model, its) in models.items():
            values = {option.field: typed[option.parameter] for option in its}
            found[name] = Given(model, {key: one for key, one in values.items() if one not in (None, [], ())})
        return found

    return [own[name] if name in own else _parameter(shared[name]) for name in order], arguments


def _model(hint: Any) -> tuple[type[Settings] | None, Fields]:
    """The model and fields that a parameter of a function stands for; None where it is an option of its own."""
    kind, *extra = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if get_origin(kind) is not Given:
        return None, Fields()
    return get_args(kind)[0], next((one for one in extra if isinstance(one, Fields)), Fields())


def _parameter(shared: list[Option]) -> inspect.Parameter:
    """One option for the fields that share it."""
    last = shared[-1]
    required, kind, text = last.info.is_required(), last.kind, _help(shared)
    info: Any
    complete = completion_of(last.field, last.info.annotation)
    if last.is_argument:
        info = typer.Argument(help=text, autocompletion=complete)
    else:
        flags = "/".join(last.flags)
        info = typer.Option(flags, help=text, rich_help_panel=last.section, autocompletion=complete)
    return inspect.Parameter(
        last.parameter,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[kind if required else kind | None, info],
    )


def _help(shared: list[Option]) -> str:
    plain = [option for option in shared if not option.fields.beside] or shared
    text = "; ".join(dict.fromkeys(option.said["text"] for option in plain))
    if choices := plain[-1].choices:
        text = f"{choices}: {text}" if text else choices
    elif not re.match(r"\S+,", text):  # a list of values begins with one
        text = text[:1].upper() + text[1:]
    default = plain[-1].default
    said = [default] if default else []
    for option in shared:
        if option.fields.beside and option.default not in ("", default):
            said.append(f"with {option.fields.beside}: {option.default}")
    return " ".join([*([f"{text}."] if text else []), *([f"[default: {'; '.join(said)}]"] if said else [])])
