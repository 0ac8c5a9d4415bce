"""What every command does: signals, the lock, the summary, errors as one message and an exit code."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
import typer.core

from ..errors import DinvError, UsageError

if TYPE_CHECKING:
    from ..config.settings import DataSettings, Settings
    from ..generator.generator import Generator

INTERRUPTED = 130
Model = TypeVar("Model", bound="Settings")


class Command(typer.core.TyperCommand):
    """A command that refuses an empty value: as a path it would be the working folder, as `"$OUT"` it is a mistake."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click does, once no option or argument has an empty value."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for param in self.get_params(ctx):
            value = given.get(param.name or "")
            if value == "" or (isinstance(value, (list, tuple)) and "" in value):
                raise typer.BadParameter(f"{param.opts[0]} is empty; give a value, or leave it out", ctx)
        return super().parse_args(ctx, args)


@contextmanager
def command(as_json: bool) -> Iterator[dict[str, Any]]:
    """Run a command: print its summary, turn expected errors and interrupts into messages and exit codes."""
    from ..engine import signals
    from ..engine.redaction import redact
    from ..engine.text import shown

    signals.install()
    summary: dict[str, Any] = {}
    try:
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
def hold(run: Path, join: bool = False, restart: bool = False) -> Iterator[None]:
    """Hold the run folder, alone or with others, after finishing what a killed `dinv forget` left."""
    if join and restart:
        raise UsageError("--join --restart: one would delete what the others do. Restart alone, then let others join.")
    from ..engine.lock import run_lock
    from ..run.forget import finish_pending

    with run_lock(run, shared=join):
        finish_pending(run)
        yield


def command_line() -> str:
    """The command that was given, as it can be typed again, without secrets."""
    from ..engine.redaction import redact

    return redact(shlex.join(["dinv", *sys.argv[1:]]))


def load(name: str, revision: str | None, device: str, dtype: str) -> Generator:
    """Load a generator by the options of a command."""
    from ..generator.generator import Generator

    return Generator.load(name, revision, device, dtype)


def settings_of(model: type[Model], preset: str | None, stage: str, *, of: str | None = None, **given: Any) -> Model:
    """The preset's settings of a stage (no preset: the defaults), overridden by the options that were given.

    of: the DATA that the preset is for.
    """
    from pydantic import ValidationError

    from ..config.presets import read_preset

    chosen = {} if preset is None else read_preset(preset, of)[stage]
    values = {**chosen, **{key: value for key, value in given.items() if value is not None}}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or stage}={e['input']!r}: {e['msg']}" for e in error.errors()]
        raise UsageError("settings that cannot be used:\n" + "\n".join(f"  {line}" for line in problems)) from error


def regrouped(settings: Model, group_size: int | None) -> Model:
    """The settings with another group size, checked; as they are where it is None."""
    if group_size is None:
        return settings
    return settings_of(type(settings), None, "settings", **{**settings.model_dump(), "group_size": group_size})


def data_settings(
    data: str, test: str | None, size: int | None, limit: int | None, test_limit: int | None, holdout: float | None,
    seed: int | None, root: str | None, drop_test_duplicates: bool, allow_near_duplicates: bool, balanced: bool,
    per_class: int | None,
) -> DataSettings:  # fmt: skip
    """The data options of a command, checked."""
    from ..config.settings import DataSettings
    from ..data.sources import absolute

    return settings_of(
        DataSettings, None, "data", data=absolute(data), test=absolute(test), size=size, limit=limit,
        test_limit=test_limit, holdout=holdout, seed=seed, root=root, drop_test_duplicates=drop_test_duplicates,
        allow_near_duplicates=allow_near_duplicates, balanced=balanced, per_class=per_class,
    )  # fmt: skip


def notes_on(count: int, data: str, test: str | None) -> list[str]:
    """The line that says where files of DATA that are not used, or worth a look, are listed; none for none."""
    many = f"{count} notes" if count > 1 else "1 note"
    return (
        [f"{many} on the data: {shlex.join(['dinv', 'inspect', data, *(['--test', test] if test else [])])}"]
        if count
        else []
    )


def words(text: str | None) -> tuple[str, ...] | None:
    """Parse a comma-separated list; None stays None."""
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def integers(text: str | None) -> tuple[int, ...] | None:
    """Parse a comma-separated list of whole numbers; None stays None. Raises UsageError."""
    try:
        return None if text is None else tuple(int(word) for word in words(text) or ())
    except ValueError as error:
        raise UsageError(f"{text!r}: not a comma-separated list of whole numbers, such as 0,1,2.") from error


def numbers(text: str | None) -> tuple[float, ...] | None:
    """Parse a comma-separated list of numbers; None stays None. Raises UsageError."""
    try:
        return None if text is None else tuple(float(word) for word in words(text) or ())
    except ValueError as error:
        raise UsageError(f"{text!r}: not a comma-separated list of numbers, such as 1.5,2,3.") from error


def number_or_auto(text: str | None) -> float | str | None:
    """Parse a number or the word auto; None stays None. Raises UsageError."""
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{text!r}: neither a number nor auto.") from error


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
