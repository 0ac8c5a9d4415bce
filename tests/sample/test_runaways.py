"""Images whose numbers run away in stage 1: learned again at a lower rate or given up, and nobody else notices."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up import made_up
from torch import Tensor
from toy import SD14_SCHEDULER, WIDTH, build_checkpoint, toy_images

from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.engine import faults
from diffusion_inversion.engine import state as unit_state
from diffusion_inversion.engine.state import UnitState
from diffusion_inversion.errors import PartialError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.embeddings import NOT_FINITE, EmbeddingStore, read_embeddings
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.invert.objective import draw, stage1_loss
from diffusion_inversion.invert.optimisation import invert_batch
from diffusion_inversion.invert.packing import LARGEST_NORM
from diffusion_inversion.invert.trajectory import BatchResult
from diffusion_inversion.randomness import generator_for

IMAGES = toy_images(3)
BAD = 1
STEPS = 3


def learn(
    generator: Generator, initial: Tensor, rate: float, state: UnitState | None = None, rows: slice = slice(None)
) -> BatchResult:
    settings = InvertSettings(steps=STEPS, keep_steps=(1,), learning_rate=rate, weight_decay=0.0, eval_draws=2)
    pixels, ids = to_model_range(IMAGES.images[rows]), IMAGES.ids[rows]
    return invert_batch(generator, pixels, initial[rows], ids, settings, state=state)


def plain_norm(generator: Generator, c0: Tensor, rate: float) -> float:
    """The longest token that a plain AdamW loop meets on the bad image, alone."""
    dist = generator.encode(to_model_range(IMAGES.images[BAD : BAD + 1]))
    stream = generator_for(0, "invert", IMAGES.ids[BAD])
    c = c0[None].clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([c], lr=rate, weight_decay=0.0)
    norms = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        stage1_loss(generator, *draw(generator, dist, [stream]), c).sum().backward()
        optimizer.step()
        norms.append(float(c.detach().norm(dim=-1).max()))
    return max(norms)


@pytest.fixture(scope="module")
def near_the_edge(generator: Generator) -> tuple[Tensor, float]:
    """Starts of three images, one of which is just below the longest vector that is stored; a rate that crosses it.

    A third of the rate does not.
    """
    torch.manual_seed(3)
    initial = torch.randn(3, 5, WIDTH) * 0.3
    initial[BAD] *= 0.999 * LARGEST_NORM / initial[BAD].norm(dim=-1, keepdim=True)
    rate = 30.0
    while plain_norm(generator, initial[BAD], rate) <= LARGEST_NORM:
        rate *= 3
    return initial, rate


def test_a_runaway_is_learned_again_at_a_third_of_the_rate(
    generator: Generator, near_the_edge: tuple[Tensor, float]
) -> None:
    initial, rate = near_the_edge
    found = learn(generator, initial, rate)
    assert found.causes.tolist() == [0, 0, 0]
    assert found.rates.tolist() == [rate, rate / 3, rate]
    alone = learn(generator, initial, rate / 3, rows=slice(BAD, BAD + 1))
    # The images were encoded in a batch of 3 and of 1, which differs in the last bits.
    torch.testing.assert_close(found.vectors[:, BAD : BAD + 1], alone.vectors, rtol=1e-4, atol=1.0)
    torch.testing.assert_close(found.losses[:, BAD : BAD + 1], alone.losses, rtol=1e-4, atol=1e-5)
    twice = learn(generator, initial, 3 * rate)
    assert twice.rates[BAD] == 3 * rate / 3 / 3 and twice.causes[BAD] == 0
    given_up = learn(generator, initial, 9 * rate)
    assert given_up.causes.tolist() == [0, 3, 0] and given_up.rates.tolist() == [9 * rate, rate, 9 * rate]
    assert not given_up.vectors[:, BAD].any()
    assert given_up.notes(IMAGES.ids, 9 * rate)["reasons"].keys() == {IMAGES.ids[BAD]}


def test_the_others_keep_their_bits(generator: Generator, near_the_edge: tuple[Tensor, float]) -> None:
    initial, rate = near_the_edge
    harmless = initial.clone()
    harmless[BAD] = 0.1
    others = [row for row in range(3) if row != BAD]
    for bad in (initial[BAD], torch.full_like(initial[BAD], 3e38), torch.full_like(initial[BAD], torch.nan)):
        start = initial.clone()
        start[BAD] = bad
        # At 9 rates even the last retry fails. The rate is huge, but vectors of norm 1e4 do no harm to the arithmetic.
        found, without = learn(generator, start, 9 * rate), learn(generator, harmless, 9 * rate)
        assert found.causes[BAD] and not without.causes.any()
        for name in ("vectors", "losses"):
            assert torch.equal(getattr(found, name)[:, others], getattr(without, name)[:, others]), name
        assert torch.equal(found.null_losses[others], without.null_losses[others])


@pytest.mark.parametrize(("start", "counted", "stopped"), [(torch.nan, [9], 0), (0.1, [3, 6], 1)])
def test_nothing_more_is_computed_once_all_have_stopped(
    generator: Generator, start: float, counted: list[int], stopped: int
) -> None:
    """The steps that are left of the first attempt are counted at once; the retries are not counted.

    All stop at their start, or at the first step, which moves a token by rate * sqrt(32), above 1e6 in all attempts.
    """
    done: list[int] = []
    settings = InvertSettings(steps=STEPS, learning_rate=9e6, weight_decay=0.0, eval_draws=2)
    vectors = torch.full((3, 5, WIDTH), start)
    found = invert_batch(generator, to_model_range(IMAGES.images), vectors, IMAGES.ids, settings, done.append)
    assert done == counted and found.causes.tolist() == [3] * 3 and found.stopped.tolist() == [stopped] * 3


def test_a_loss_under_the_empty_prompt_that_is_not_finite_costs_no_vector(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a text encoder that overflows: what stage 1 gains over the empty prompt is unknown, and that is all."""
    start = torch.full((3, 5, WIDTH), 0.1)
    whole = learn(generator, start, 0.01)
    monkeypatch.setattr(generator, "text_tokens", lambda texts: torch.full((1, 5, WIDTH), torch.nan))
    found = learn(generator, start, 0.01)
    assert found.causes.tolist() == [0, 0, 0] and found.null_losses.tolist() == [NOT_FINITE] * 3
    assert torch.equal(found.vectors, whole.vectors) and (whole.null_losses > 0).all()


def test_the_mean_loss_under_the_empty_prompt_is_of_the_finite_ones(generator: Generator) -> None:
    embeddings = made_up(generator, torch.zeros(1, 3, 5, WIDTH), [0, 1, 1])
    for losses, mean in (((0.5, NOT_FINITE, 0.25), 0.375), ((NOT_FINITE,) * 3, None)):
        assert replace(embeddings, null_losses=torch.tensor(losses)).null_loss == mean


class Cut(Exception):
    pass


@pytest.mark.parametrize("saves", [2, 4, 5, 6])
def test_a_kill_among_the_retries_changes_no_bit(
    generator: Generator,
    near_the_edge: tuple[Tensor, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saves: int,
) -> None:
    """Saves 1 to 3 are of the first attempt, 4 to 6 of the second."""
    initial, rate = near_the_edge
    whole = learn(generator, initial, rate)
    monkeypatch.setattr(unit_state, "EVERY", 0.0)
    left = saves

    def cut(point: faults.Point) -> None:
        nonlocal left
        if point == "committed":
            left -= 1
            if left == 0:
                raise Cut

    monkeypatch.setattr(faults, "on_point", cut)
    with pytest.raises(Cut):
        learn(generator, initial, rate, UnitState(tmp_path, IMAGES.ids, 0))
    monkeypatch.setattr(faults, "on_point", None)
    again = learn(generator, initial, rate, UnitState(tmp_path, IMAGES.ids, 0))
    for name in ("vectors", "losses", "null_losses", "rates", "causes"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name


def test_a_class_whose_name_overflows_is_listed_with_its_reason(tmp_path: Path) -> None:
    """Finite weights, but a token of one class's name is so large that the text encoder gives NaN for it alone."""
    from safetensors.torch import load_file, save_file

    sound = build_checkpoint(tmp_path / "sound", SD14_SCHEDULER)
    broken = Path(shutil.copytree(sound, tmp_path / "broken"))
    tokens = Generator.load(sound, device="cpu", dtype="float32").tokenizer(["cat", "dog", "owl"]).input_ids
    path = broken / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    (name,) = [name for name in weights if name.endswith("token_embedding.weight")]
    weights[name][list(set(tokens[2]) - {*tokens[0], *tokens[1]})] = 3e38
    save_file(weights, path, metadata={"format": "pt"})

    images = toy_images(6, classes=3)
    settings = InvertSettings(steps=2, batch_size=4, eval_draws=2)
    whole = invert(images, Generator.load(sound, device="cpu", dtype="float32"), tmp_path / "a", settings)
    run = tmp_path / "b"
    generator = Generator.load(broken, device="cpu", dtype="float32")
    with pytest.raises(
        PartialError, match=r"2 of 6 images .* \(first: toy/002\.png: its vector is not finite"
    ) as caught:
        invert(images, generator, run, settings)
    owls = ["toy/002.png", "toy/005.png"]
    assert list(caught.value.details["failed"]) == list(EmbeddingStore(run).failed()) == owls
    left = invert(images, generator, run, settings)
    rows = [row for row, image_id in enumerate(whole.ids) if image_id not in owls]
    assert left.ids == tuple(whole.ids[row] for row in rows)
    assert torch.equal(left.vectors, whole.vectors[:, rows]) and torch.equal(left.losses, whole.losses[:, rows])
    EmbeddingStore(run).remove({"toy/002.png"})
    assert "toy/002.png" not in (run / "embeddings" / "manifest.jsonl").read_text()
    assert list(EmbeddingStore(run).failed()) == owls[1:]
    assert torch.equal(read_embeddings(run).vectors, left.vectors)


def test_a_retry_is_on_record(generator: Generator, tmp_path: Path) -> None:
    """At this rate every image leaves the norms that are stored at first, and at a ninth none does."""
    settings = InvertSettings(
        steps=1, init="random", learning_rate=9e5, weight_decay=0.0, batch_size=2, eval_draws=1, seed=1
    )
    images = toy_images(2)
    invert(images, generator, tmp_path, settings)
    (record,) = EmbeddingStore(tmp_path).manifest.units().values()
    # One AdamW step moves every number by the rate: a token by rate * sqrt(32), and 3e5 * sqrt(32) is above 1e6 too.
    assert record["rates"] == {image_id: pytest.approx(1e5) for image_id in images.ids} and record["failed"] == []
    assert float(read_embeddings(tmp_path).at().abs().max()) == pytest.approx(1e5, rel=1e-3)
