"""The licence in a model card, which others write."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_inversion.generator.checkpoints import MINI
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.generator.model_card import card_licence


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: creativeml-openrail-m\ntags: [a]\n---\n# SD", "creativeml-openrail-m"),
        ("---\nlicense: other\nlicense_name: ours, non-commercial\n---\n", "ours, non-commercial"),
        ("---\nlicense: mit\nlicense_name: not this\n---\n", "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("---\nlicense: {a: b}\n---\n", ""),
        ("---\nlicense: 5\n---\n", ""),
        ("---\ntags: [a]\n---\n", ""),
        ("---\n- a\n---\n", ""),
        ("---\nlicense: mit\n", ""),  # a header that does not end
        ("---\n!!python/object/apply:os.system ['true']\n---\n", ""),
        ("# license: mit\n", ""),
        ("", ""),
    ],
)
def test_the_header_is_read_and_nothing_else(tmp_path: Path, card: str, licence: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert card_licence(tmp_path) == licence


def test_a_card_that_is_missing_no_text_or_too_large_names_none(tmp_path: Path) -> None:
    assert card_licence(tmp_path) == ""
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert card_licence(tmp_path) == ""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n" + "x" * 2**20)
    assert card_licence(tmp_path) == ""
    (tmp_path / "README.md").write_text(f"---\nlicense: {'m' * 1000}\n---\n")
    assert card_licence(tmp_path) == "m" * 200


def test_generators_have_the_licence_of_their_card(checkpoint: Path) -> None:
    assert "Tiny-ImageNet" in card_licence(MINI)
    assert Generator.load(checkpoint, device="cpu", dtype="float32").licence == ""
