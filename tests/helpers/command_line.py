"""`dinv` as a user gives it, in this process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from diffusion_inversion.cli import app


def dinv(*arguments: object) -> Any:
    """What the command prints, and how it ends."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
