"""What a shell completes, asked as bash asks it."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.cli.completion import completion_of
from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.training import ARCHITECTURES, TrainSettings


def completed(line: str) -> list[str]:
    """What bash shows after `dinv LINE<tab>`."""
    words = f"dinv {line}"
    place = len(words.split()) - (not words.endswith(" "))
    asked = {"_DINV_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
    return CliRunner().invoke(app, [], prog_name="dinv", env=asked).stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ver", ["verify"]),
        ("run cifar", ["cifar10", "cifar100"]),
        ("run photos --partner near", ["nearest"]),
        ("run photos --arms real,", ["real,synthetic", "real,real+synthetic"]),
        ("sample runs/photos --preset p", ["paper"]),
        ("run photos --generator m", ["mini"]),
        ("train runs/photos --noise-s", []),
        ("sample runs/photos --noise-s", ["--noise-strength"]),
    ],
)
def test_a_word_is_completed(line: str, expected: list[str]) -> None:
    assert completed(line) == expected


def test_names_and_choices_are_those_of_the_settings() -> None:
    architecture = completion_of("architecture", str)
    assert architecture is not None and set(architecture("res")) == {
        name for name in ARCHITECTURES if name.startswith("res")
    }
    partner = completion_of("partner", SampleSettings.model_fields["partner"].annotation)
    assert partner is not None and partner("o") == ["other-class"]
    assert completion_of("steps", TrainSettings.model_fields["steps"].annotation) is None, "files are the shell's"
