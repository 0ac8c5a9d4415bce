"""Strips of strengths: one thing changes along a row, and it ends where it should."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import SAMPLE, Bench

from diffusion_inversion.config.commands import StripsSettings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.errors import UsageError
from diffusion_inversion.invert.embeddings import read_embeddings
from diffusion_inversion.run.drawn_with import sampling_of
from diffusion_inversion.run.forget import forget
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.layout import STRIPS_PICTURE
from diffusion_inversion.run.strips import _drawn, _planned, draw_strips, read_strips
from diffusion_inversion.run.verify import verify
from diffusion_inversion.sample.sampling import reconstruct

ASKED = StripsSettings(images=3, interpolations=(0.0, 0.5, 1.0), noise_strengths=(0.0, 0.2, 0.4))


def test_one_thing_changes_along_a_row(run: Path, bench: Bench) -> None:
    embeddings, settings = read_embeddings(run), sampling_of(run, read_embeddings(run).class_names)
    vectors = embeddings.at(embeddings.steps[-1])
    cells = _planned(embeddings, bench.generator(), settings, ASKED, 2)
    own, partner = vectors[2], vectors[cells[0].partner]
    assert cells[0].partner != 2 and len({cell.partner for cell in cells}) == 1
    torch.testing.assert_close(
        torch.stack([c.embedding for c in cells[:3]]), torch.stack([own, (own + partner) / 2, partner])
    )
    torch.testing.assert_close(cells[3].embedding, own)
    torch.testing.assert_close(cells[5].embedding - own, 2 * (cells[4].embedding - own))
    assert (cells[4].embedding - own).std() == pytest.approx(0.2, rel=0.3)
    assert all(torch.equal(cell.initial_noise, cells[0].initial_noise) for cell in cells)


def test_a_row_begins_at_the_reconstruction(run: Path, bench: Bench) -> None:
    embeddings, settings = read_embeddings(run), sampling_of(run, read_embeddings(run).class_names)
    [drawn] = _drawn(
        embeddings, bench.generator(), settings, [_planned(embeddings, bench.generator(), settings, ASKED, 2)]
    )
    again = reconstruct(embeddings, bench.generator(), SAMPLE, [2])[0]
    for cell in (drawn[0], drawn[3]):
        assert (cell.int() - again.int()).abs().max() <= 2, "but for the batch it was drawn in"
    assert not torch.equal(drawn[0], drawn[2])


def test_the_picture_is_kept_and_goes_with_what_is_forgotten(run: Path, bench: Bench) -> None:
    embeddings, images = read_embeddings(run), open_splits(run).train
    picture = draw_strips(run, embeddings, bench.generator(), images, ASKED)
    assert picture.startswith(b"\x89PNG") and read_strips(run, embeddings) == picture
    assert draw_strips(run, embeddings, bench.generator(), images, ASKED) == picture
    assert (run / STRIPS_PICTURE).read_bytes() == picture and not verify(run).findings
    with pytest.raises(UsageError, match=r"does not hold .* any more"):
        draw_strips(run, embeddings, bench.generator(), images.subset([5]), ASKED)
    forget(run, [embeddings.ids[0]])
    assert not (run / STRIPS_PICTURE).exists()


def test_a_picture_of_other_settings_is_drawn_again_and_not_shown(
    run: Path, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """Strips may come before stage 2: what it is asked for then is what they are to show."""
    embeddings, images, ledger = read_embeddings(run), open_splits(run).train, Ledger(run)
    sampled = ledger.read_json("sample.config.json")

    def drawn() -> bytes:
        return draw_strips(run, embeddings, bench.generator(), images, ASKED)

    ledger.drop("sample.config.json")
    before = drawn()
    assert read_strips(run, embeddings) == before, "the defaults"
    sampled["settings"] |= {"guidance_scales": [4.0], "batch_size": 2, "image_size": 8, "noise_strength": 0.3}
    ledger.commit_json("sample.config.json", sampled, copied=True)
    capsys.readouterr()
    assert read_strips(run, embeddings) is None
    assert f"`dinv strips {run}` draws it again" in capsys.readouterr().err
    after = drawn()
    assert after != before and read_strips(run, embeddings) == after == drawn()
    note = ledger.note(STRIPS_PICTURE)
    assert note is not None and note["settings"]["guidance_scales"] == [4.0]
    del note["settings"]  # as earlier versions had it
    ledger.drop(STRIPS_PICTURE)
    ledger.commit(STRIPS_PICTURE, before, note)
    assert read_strips(run, embeddings) is None and drawn() == after
