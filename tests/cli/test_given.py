"""Options that are made from the fields of settings models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import Field, model_validator
from typer.testing import CliRunner

from diffusion_inversion.cli.command import add
from diffusion_inversion.cli.given import Fields, Given, settings_of
from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import InvertSettings, Settings, setting
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.errors import UsageError


class Soup(Settings):
    bowl: str = setting(..., "what it is served in", option="BOWL")
    spoons: int = setting(2, "how many spoons", "ours", ge=1)
    salt: float | None = setting(None, "grams of salt", unset="to taste", lt=9)
    kind: Literal["pea", "leek"] = setting("pea", "what it is of", option="soup-kind")
    herbs: tuple[Literal["dill", "mint"], ...] = setting(("dill",), "what floats on it")
    times: tuple[int, ...] = setting((), "minutes")
    share: Annotated[float, Field(gt=0)] | Literal["all"] = setting(0.5, "what is eaten")
    hot: bool = setting(True, "warm it")
    fast: bool = setting(False, "hurry")
    cold: bool = setting(False, "cool it", option="cold/--no-cold")
    guests: list[str] = setting([], "a guest")
    recipe: Path | None = setting(None, "the card")
    bread: int = Field(1, description="slices beside it")
    plates: int = 4
    secret: int = setting(7, "nobody's business", option=None)

    @model_validator(mode="after")
    def _spoons_suffice(self) -> Soup:
        if len(self.guests) > self.spoons:
            raise ValueError(f"spoons={self.spoons}: fewer than guests={len(self.guests)}; add some")
        return self


class Bread(Settings):
    spoons: int = setting(2, "how many spoons of flour")
    salt: float | None = setting(None, "grams of salt", unset="none")
    loaves: int = setting(1, "how many loaves")


def cook(
    soup: Given[Soup], pot: Annotated[str, typer.Option(help="Which pot.")] = "large", first: bool = False
) -> dict[str, Any]:
    """Cook soup.

    It takes a while.
    """
    return {"soup": soup.settings().model_dump(mode="json"), "pot": pot, "text": ""}


def dine(
    *,
    bread: Annotated[Given[Bread], Fields(beside="--bread")],
    soup: Annotated[Given[Soup], Fields(only=("spoons", "salt"), unset={"spoons": "as at home"})],
) -> dict[str, Any]:
    """Dine."""
    return {"bread": dict(bread.values), "soup": dict(soup.values), "flags": list(soup.flags().values()), "text": ""}


app = typer.Typer(add_completion=False, rich_markup_mode=None)
add(app, cook, "cook-soup")
add(app, dine)


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], terminal_width=200)


def cooked(*arguments: object) -> Any:
    done = call("cook-soup", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_nothing_given_is_the_model_itself() -> None:
    found = cooked("bowl")
    assert found["soup"] == Soup(bowl="bowl").model_dump(mode="json") and found["pot"] == "large"


def test_every_kind_of_field_is_read() -> None:
    found = cooked(
        "--pot", "small", "--spoons", 3, "--salt", 1.5, "--soup-kind", "leek", "--herbs", "mint, dill", "--times",
        "3,4", "--share", "all", "--no-hot", "--fast", "--cold", "--guests", "a,b", "--guests", "c", "--recipe", "x",
        "--plates", 5, "cup",
    )  # fmt: skip
    assert found["pot"] == "small"
    assert found["soup"] == {
        "bowl": "cup", "spoons": 3, "salt": 1.5, "kind": "leek", "herbs": ["mint", "dill"], "times": [3, 4],
        "share": "all", "hot": False, "fast": True, "cold": True, "guests": ["a,b", "c"], "recipe": "x", "bread": 1,
        "plates": 5, "secret": 7,
    }  # fmt: skip
    assert cooked("--share", "0.25", "cup")["soup"]["share"] == 0.25
    assert cooked("--no-cold", "cup")["soup"]["cold"] is False


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--spoons", 0], "--spoons 0: give at least 1"),
        (["--salt", 9], "--salt 9: give less than 9"),
        (["--salt", "nan"], "--salt nan: give a finite number"),
        (["--soup-kind", "fish"], "--soup-kind fish: give pea or leek"),
        (["--soup-kind", "leak"], "--soup-kind leak: give pea or leek; did you mean leek?"),
        (["--herbs", "dill,hay"], "--herbs dill,hay: give dill or mint in place of hay"),
        (["--times", "1,x"], "--times 1,x: give a whole number in place of x"),
        (["--times", "x"], "--times x: give a whole number in place of x"),
        (["--times", "9,0-4"], "--times 9,0-4: give each number in place of 0-4, as in 0,1,2"),
        (["--share", "half"], "--share half: give a number or all"),
        (["--share", "-1"], "--share -1: give more than 0 or all"),
        (["--spoons", 1, "--guests", "a", "--guests", "b"], "--spoons 1: fewer than --guests 2; add some"),
    ],
)
def test_an_error_names_the_option_as_it_is_typed_and_the_remedy(arguments: list[object], line: str) -> None:
    done = call("cook-soup", "cup", *arguments)
    assert done.exit_code == 2
    assert done.output == f"error: settings that cannot be used:\n  {line}\n"


def test_all_errors_are_said_at_once() -> None:
    done = call("cook-soup", "cup", "--spoons", 0, "--soup-kind", "fish", "--times", "y,x")
    assert done.exit_code == 2
    assert [line.split(":")[0].strip() for line in done.output.splitlines()[1:]] == [
        "--spoons 0", "--soup-kind fish", "--times y,x",
    ]  # fmt: skip
    assert "a whole number in place of y or a whole number in place of x" in done.output


@pytest.mark.parametrize("arguments", [["--secret", 1], ["--no-fast"], ["--kind", "pea"], ["--spoons", "many"]])
def test_what_is_no_option_is_refused_by_the_parser(arguments: list[object]) -> None:
    done = call("cook-soup", "cup", *arguments)
    assert done.exit_code == 2 and "Usage:" in done.output


def test_help_has_texts_choices_and_defaults() -> None:
    page = " ".join(call("cook-soup", "--help").output.split())
    for part in (
        "Cook soup. It takes a while.", "What it is served in. [required]", "How many spoons. [default: 2]",
        "Grams of salt. [default: to taste]", "pea or leek: what it is of. [default: pea]",
        "Some of dill,mint: what floats on it. [default: dill]", "What is eaten. [default: 0.5]",
        "--hot / --no-hot Warm it. [default: on]", "--fast Hurry.", "--cold / --no-cold Cool it. [default: off]",
        "Which pot. [default: large]", "Slices beside it. [default: 1] --plates <int> [default: 4]",
    ):  # fmt: skip
        assert part in page, (part, page)
    assert "secret" not in page and "--no-fast" not in page


def test_an_option_that_models_share_is_given_to_both() -> None:
    found = json.loads(call("dine", "--spoons", 5, "--loaves", 2, "--json").stdout)
    assert (found["bread"], found["soup"]) == ({"spoons": 5, "loaves": 2}, {"spoons": 5})
    assert found["flags"] == ["--spoons"]
    page = " ".join(call("dine", "--help").output.split())
    assert page.count("--spoons") == 1 and "How many spoons. [default: as at home; with --bread: 2]" in page
    assert "[default: to taste; with --bread: none]" in page
    assert page.index("--loaves") < page.index("--spoons") < page.index("--salt")


def test_the_settings_behind_options_name_options_too() -> None:
    with pytest.raises(UsageError, match=r"\n  --keep-steps \[9\]: outside 0\.\.--steps 5; lower them or raise steps$"):
        settings_of(InvertSettings, None, "invert", steps=5, keep_steps="9")
    with pytest.raises(UsageError, match=r"\n  --guidance-interval 0\.2: give one more$"):
        settings_of(SampleSettings, None, "sample", guidance_interval="0.2")
    with pytest.raises(UsageError, match=r"\n  --architecture best: unknown; use one of resnet20, "):
        settings_of(TrainSettings, None, "train", architecture="best")
    with pytest.raises(UsageError, match=r"\n  --augmentations ,: give at least 1$"):
        settings_of(TrainSettings, None, "train", augmentations=",")
