"""What every command does: signals, the lock, the summary, errors as one message and an exit code."""

from __future__ import annotations

import inspect
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
import typer.core
import typer.main
from typer.models import ArgumentInfo

from ..errors import DinvError, UsageError
from .given import Given, Make, options
from .pages import HELP_ALL, SHORT, Page

if TYPE_CHECKING:
    from ..config.settings import DataSettings, GeneratorSettings
    from ..engine.object_store import ObjectStore
    from ..generator.generator import Generator

INTERRUPTED = 130
_WANTS_JSON = "dinv.json"
# Click's, or that of the click that typer carries with it: both have no public name.
_USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")
_AS_JSON = inspect.Parameter(
    "as_json",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--json", help="Print one machine-readable summary on stdout.")],
)
_THREADS = inspect.Parameter(
    "threads",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of a CPU. [default: $OMP_NUM_THREADS, else as many cores as other work leaves]"
        ),
    ],
)


class Careful(Page):
    """A command that refuses an empty value: as a path it would be the working folder, as `"$OUT"` it is a mistake."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click does, once no option or argument has an empty value."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for param in self.get_params(ctx):
            value = given.get(param.name or "")
            if value == "" or (isinstance(value, (list, tuple)) and "" in value):
                raise typer.BadParameter(f"{param.opts[0]} is empty; give a value, or leave it out", ctx)
        return super().parse_args(ctx, args)


class Commands(typer.core.TyperGroup):
    """The commands of `dinv`; one that cannot be read says so on stdout too, where its summary was to be JSON."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click does; notes whether JSON is wanted."""
        ctx.meta[_WANTS_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """As click does."""
        try:
            return super().invoke(ctx)
        except _USAGE as error:
            if ctx.meta[_WANTS_JSON] and ctx.parent is None:
                _print(_json({"ok": False, "exit_code": error.exit_code, "error": error.format_message()}))
            raise


def add(app: typer.Typer, function: Make, name: str | None = None) -> None:
    """Add `dinv NAME` to an app: it runs a function, which returns what --json prints, and `text` for people.

    Its options are those of the function and of the settings the function takes (`given.py`). They are made when the
    command is called, not for `dinv --help`: the models take longer to import than that page to print.
    """

    @cache
    def whole() -> Any:
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        single.command(cls=Careful, help=inspect.getdoc(function))(with_options(function))
        return typer.main.get_command(single)

    class Late(typer.core.TyperCommand):
        def make_context(self, *args: Any, **extra: Any) -> Any:
            return whole().make_context(*args, **extra)

    def stub() -> None: ...

    text = inspect.getdoc(function) or ""
    app.command(name or function.__name__, cls=Late, help=text, short_help=" ".join(text.partition("\n\n")[0].split()))(
        stub
    )


def with_options(function: Make) -> Callable[..., None]:
    """The function as typer takes it: with every option by itself and --json, printing what it returns.

    A command that computes, which has --device, has --threads too.
    """
    own, arguments = options(function)
    computes = any(one.name == "device" for one in own)
    shared = [*([_THREADS] if computes else []), _AS_JSON, *([HELP_ALL] if len(own) > SHORT else [])]
    parameters = sorted([*own, *shared], key=_is_option)

    def call(**typed: Any) -> None:
        typed.pop(HELP_ALL.name, None)
        with command(typed["as_json"], typed.get("threads")) as summary:
            summary |= function(**arguments({name: _at_home(value) for name, value in typed.items()}))

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    return call


def _at_home(value: Any) -> Any:
    """A path whose `~` the shell left as it was, as in `--out "~/run"`, in the home folder."""
    try:
        return value.expanduser() if isinstance(value, Path) else value
    except RuntimeError as error:
        raise UsageError(f"{value}: no home folder is known for its ~; write the whole path") from error


def _is_option(parameter: inspect.Parameter) -> bool:
    return not any(isinstance(one, ArgumentInfo) for one in get_args(parameter.annotation))


@contextmanager
def command(as_json: bool, number_of_threads: int | None = None) -> Iterator[dict[str, Any]]:
    """Run a command: print its summary, turn expected errors and interrupts into messages and exit codes."""
    from ..engine import signals, threads
    from ..engine.redaction import redact
    from ..engine.text import shown

    signals.install()
    summary: dict[str, Any] = {}
    try:
        threads.share_cores(number_of_threads)
        yield summary
    except DinvError as error:
        message = "\n".join(shown(line) for line in redact(str(error)).split("\n"))
        typer.echo(f"error: {message}", err=True)
        if as_json:
            _print(_json({"ok": False, "exit_code": error.exit_code, "error": message, **error.details}))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        again = command_line().replace(" --restart", "")  # what this call made is not to be deleted
        typer.echo(f"interrupted; what was committed is kept. Go on with: {again}", err=True)
        if as_json:
            failed = {"ok": False, "exit_code": INTERRUPTED, "error": "interrupted", "go_on": again}
            _print(_json(failed))
        raise typer.Exit(INTERRUPTED) from error
    text = summary.pop("text")
    _print(_json({"ok": True, **summary}) if as_json else text)


def _print(text: str) -> None:
    """Print the result. Where stdout cannot take it (a full disk), say so and exit with 7: the work is kept."""
    from ..errors import DiskError

    try:
        typer.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with suppress(OSError):
            typer.echo(f"error: stdout: cannot be written ({error.strerror}); what was committed is kept", err=True)
        # What is left in the buffer would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(DiskError.exit_code) from error


def _json(record: Mapping[str, Any]) -> str:
    """JSON of one line. Numbers that are not finite, which JSON has none of, are null."""
    return json.dumps(_finite(record), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(child) for key, child in value.items()}
    return [_finite(child) for child in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def hold(run: Path, join: bool = False, restart: bool = False, store: ObjectStore | None = None) -> Iterator[None]:
    """Hold the run folder, alone or with others, after finishing what a killed `dinv forget` left."""
    if join and restart:
        raise UsageError("--join --restart: one would delete what the others do. Restart alone, then let others join.")
    from ..engine.lock import run_lock
    from ..engine.object_store import shared_through
    from ..run.forget import finish_pending

    with run_lock(run, shared=join or store is not None), shared_through(run, store):
        finish_pending(run)
        yield


def opened(store: str | None, restart: bool = False) -> ObjectStore | None:
    """The object store of --store, which was tried."""
    if store is None:
        return None
    if restart:
        raise UsageError("--store --restart: the others would bring back what one deletes. Begin with another prefix.")
    from ..engine.object_store import ObjectStore

    return ObjectStore(store)


def is_watched() -> bool:
    """Whether somebody sits before a terminal and waits for words, not for JSON."""
    return sys.stderr.isatty() and sys.stdout.isatty() and "--json" not in sys.argv


def command_line() -> str:
    """The command that was given, as it can be typed again, without secrets."""
    from ..engine.redaction import redact

    return redact(shlex.join(["dinv", *sys.argv[1:]]))


def load(where: GeneratorSettings) -> Generator:
    """Load the generator that the options of a command name."""
    from ..generator.generator import Generator

    return Generator.load(where.generator, where.revision, where.device, where.dtype)


def data_settings(given: Given[DataSettings]) -> DataSettings:
    """The data options of a command, checked, with paths that hold in any working folder."""
    from ..data.sources import absolute

    paths = {name: absolute(given.values[name]) for name in ("data", "test") if name in given.values}
    if "groups" in given.values:
        paths["groups"] = absolute_file(given.values["groups"])
    return replace(given, values={**given.values, **paths}).settings()


def absolute_file(given: str | None) -> str | None:
    """A file by its whole path; what names none, a column or a pattern, as it is."""
    return os.path.abspath(given) if given is not None and os.path.isfile(given) else given


def notes_on(count: int, data: str, test: str | None) -> list[str]:
    """The line that says where files of DATA that are not used, or worth a look, are listed; none for none."""
    many = f"{count} notes" if count > 1 else "1 note"
    return (
        [f"{many} on the data: {shlex.join(['dinv', 'inspect', data, *(['--test', test] if test else [])])}"]
        if count
        else []
    )


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """NAME=DATA as a mapping. Raises UsageError for what is not one, or a name twice."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in found:
            raise UsageError(f"{option} {text}: give NAME=DATA, each name once.")
        found[name] = value
    return found


def labelled(names: Sequence[str]) -> dict[str, str]:
    """LABEL=NAME, or names that are their own labels (of a folder its last part), as label => name."""
    found: dict[str, str] = {}
    for text in names:
        label, equals, name = text.partition("=")
        if not equals or Path(text).exists():
            label, name = Path(text).name if Path(text).is_dir() else text, text
        if not label or not name or label in found:
            raise UsageError(f"{text}: two generators of this name. Tell them apart by LABEL=NAME.")
        found[label] = name
    return found
