"""The step of stage 1 that a GPU replays, on a CPU: the same trajectory given equal draws, and the same promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import Cut, cut_after
from torch.utils._python_dispatch import TorchDispatchMode
from toy import WIDTH, toy_images

from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.engine import state as unit_state
from diffusion_inversion.engine.frozen_settings import settings_file
from diffusion_inversion.engine.memory import within_memory
from diffusion_inversion.engine.state import UnitState
from diffusion_inversion.generator.generator import Generator, LatentDistribution
from diffusion_inversion.invert import inversion, trajectory
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.invert.objective import EvaluationBank, encode
from diffusion_inversion.invert.optimisation import invert_batch
from diffusion_inversion.invert.philox import philox, round_keys
from diffusion_inversion.invert.slots import CounterDraws, Slots, slots_for
from diffusion_inversion.invert.trajectory import BatchResult, UnitInputs
from diffusion_inversion.randomness import words_for

COUNT = 3000
IDS = tuple(f"image {number}" for number in range(COUNT))
SETTINGS = InvertSettings(steps=6, keep_steps=(2, 4), init="random", eval_draws=2)


def toys(count: int = 4) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    images = toy_images(count)
    initial = torch.randn(count, 5, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.1
    return to_model_range(images.images), initial, images.ids


def learn(generator: Generator, settings: InvertSettings = SETTINGS, count: int = 4, **given: Any) -> BatchResult:
    pixels, initial, ids = toys(count)
    return invert_batch(generator, pixels, initial, ids, settings, **{"slots": Slots(), **given})


def test_draws_have_the_distribution_of_the_streams(generator: Generator) -> None:
    """Latents of mean 3 and standard deviation 1/2, standard normal noise, timesteps over the whole schedule."""
    ones = torch.ones(COUNT, generator.latent_channels, 1, 1)
    found = CounterDraws(generator, 0, IDS, LatentDistribution(3 * ones, -2 * ones * torch.log(2 * ones)))
    latents, noise, timesteps = found.at(torch.tensor(0))
    pair = torch.stack([(latents.flatten() - 3) * 2, noise.flatten()]).double()
    assert float(pair.mean(1).abs().max()) < 0.05
    torch.testing.assert_close(pair.cov(), torch.eye(2, dtype=torch.float64), atol=0.05, rtol=0)
    tenths = (timesteps * 10 // generator.training_timesteps).bincount(minlength=10)
    assert len(tenths) == 10 and int(tenths.min()) > 300 - 83 and int(tenths.max()) < 300 + 83
    again, _, later = found.at(torch.tensor(1))
    correlation = torch.stack([latents.flatten(), again.flatten()]).corrcoef()[0, 1]
    assert abs(float(correlation)) < 0.05 and not torch.equal(later, timesteps)


@pytest.mark.parametrize("side", [1, 3, 8])
def test_draws_of_an_image_depend_on_nothing_beside_it(generator: Generator, side: int) -> None:
    zeros = torch.zeros(5, generator.latent_channels, side, side)
    whole, step = CounterDraws(generator, 7, IDS[:5], LatentDistribution(zeros, zeros)).at(torch.tensor(11)), 11
    for rows in ([3], [4, 1]):
        part = LatentDistribution(zeros[rows], zeros[rows])
        alone = CounterDraws(generator, 7, tuple(IDS[row] for row in rows), part).at(torch.tensor(step))
        assert all(torch.equal(mine, theirs[rows]) for mine, theirs in zip(alone, whole, strict=True))
    other = CounterDraws(generator, 8, IDS[:5], LatentDistribution(zeros, zeros)).at(torch.tensor(step))
    assert not any(torch.equal(mine, theirs) for mine, theirs in zip(other[:2], whole[:2], strict=True))
    latents, noise, _ = whole
    assert len(torch.cat([latents.flatten(), noise.flatten()]).unique()) == 2 * latents.numel()


def test_the_timestep_is_the_first_word_of_the_block_after_the_normal_numbers(generator: Generator) -> None:
    """So it stays: a run that another version of this program continues has the same draws."""
    zeros = torch.zeros(4, generator.latent_channels, 2, 2)
    _, _, timesteps = CounterDraws(generator, 7, IDS[:4], LatentDistribution(zeros, zeros)).at(torch.tensor(11))
    words = words_for([(7, "invert", image_id) for image_id in IDS[:4]])
    block = torch.tensor(2 * generator.latent_channels * 4 // 4)
    first = philox((block, torch.tensor(11), words[2], words[3]), round_keys(words[:2]))[0]
    assert timesteps.tolist() == [word * generator.training_timesteps >> 32 for word in first.tolist()]


def with_equal_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The present loop, its streams replaced by the counters: its `draw` is called once for each step."""
    done: dict[tuple[str, ...], int] = {}

    def streams(seed: int, purpose: str, image_id: str) -> str:
        return image_id

    def draw(generator: Generator, latents: LatentDistribution, ids: list[str]) -> tuple[torch.Tensor, ...]:
        step = done.get(tuple(ids), 0)
        done[tuple(ids)] = step + 1
        return CounterDraws(generator, 0, tuple(ids), latents).at(torch.tensor(step))

    monkeypatch.setattr(trajectory, "generator_for", streams)
    monkeypatch.setattr(trajectory, "draw", draw)


def assert_close(mine: BatchResult, theirs: BatchResult) -> None:
    for name in ("vectors", "losses", "null_losses"):
        torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), rtol=1e-4, atol=1e-5)
    for name in ("rates", "causes", "stopped"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


@pytest.mark.parametrize("at_once", [4, 3])
def test_it_is_the_loop_that_there_was_given_equal_draws(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    mine = learn(generator, at_once=at_once)
    with_equal_draws(monkeypatch)
    assert_close(mine, learn(generator, at_once=at_once, slots=None))


@pytest.mark.parametrize("runs_away", ["loss", "gradient", "vector", "at the start"])
def test_images_that_run_away_stop_and_are_tried_again_as_before(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, runs_away: str
) -> None:
    """Image 1 has NaN latents, a start that nothing computes with, or one that is too long; image 2 a huge rate."""
    pixels, initial, ids = toys()
    settings = SETTINGS
    match runs_away:
        case "loss":
            initial[1, 0, 0] = 1e38
        case "gradient":
            initial[1] = 1e5
        case "vector":
            settings = SETTINGS.model_copy(update={"learning_rate": 4e5})
        case "at the start":
            initial[1, 2, 3] = float("nan")
    mine = invert_batch(generator, pixels, initial, ids, settings, slots=Slots())
    with_equal_draws(monkeypatch)
    theirs = invert_batch(generator, pixels, initial, ids, settings)
    for name in ("causes", "rates", "stopped"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
    assert mine.notes(ids, settings.learning_rate) == theirs.notes(ids, settings.learning_rate)
    good = mine.causes == 0
    torch.testing.assert_close(mine.vectors[:, good], theirs.vectors[:, good], rtol=1e-3, atol=1e-4)
    if runs_away in ("loss", "at the start"):
        assert mine.causes.tolist() == [0, 3, 0, 0] and mine.stopped.tolist() == [0, 0, 0, 0]
    if runs_away == "vector":
        assert bool(((mine.rates < settings.learning_rate) | (mine.causes > 0)).any()), "some were tried again"


def test_an_image_does_not_depend_on_its_unit(generator: Generator) -> None:
    pixels, initial, ids = toys()
    together = invert_batch(generator, pixels, initial, ids, SETTINGS, slots=Slots())
    alone = invert_batch(generator, pixels[2:3], initial[2:3], ids[2:3], SETTINGS, slots=Slots())
    torch.testing.assert_close(together.vectors[:, 2:3], alone.vectors, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together.losses[:, 2:3], alone.losses, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_slots_are_used_again_to_the_same_bits(generator: Generator) -> None:
    """Other images in between, of the same size and of another, leave nothing behind; nor does a run that ran away."""
    slots, first = Slots(), learn(generator)
    assert torch.equal(learn(generator, slots=slots).vectors, first.vectors)
    pixels, initial, ids = toys(4)
    initial[1] = float("nan")
    invert_batch(generator, pixels.flip(0), initial, ids[::-1], SETTINGS, slots=slots)
    kept = slots._run
    again = learn(generator, slots=slots)
    assert slots._run is kept, "the tensors of the unit before were used"
    learn(generator, slots=slots, count=2)
    assert slots._run is not kept
    for found in (again, learn(generator, slots=slots)):
        for name in ("vectors", "losses", "null_losses", "causes", "stopped"):
            assert torch.equal(getattr(found, name), getattr(first, name)), name


class NothingWaits(TorchDispatchMode):
    """Raise for what a CUDA graph cannot hold: a number read by the host, a size that depends on numbers, host data."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if masked or name in WAITING:
            raise AssertionError(f"{func}: not in a step that is recorded")
        return func(*args, **(kwargs or {}))


WAITING = {
    *("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "repeat_interleave"),
    *(
        "lift_fresh",
        "lift_fresh_copy",
        "scalar_tensor",
        "pin_memory",
        "randn",
        "rand",
        "randint",
        "normal_",
        "bernoulli",
    ),
    *("random_", "native_dropout"),
}


@pytest.mark.parametrize("of", ["toy", "mini"])
def test_a_step_waits_for_nothing(generator: Generator, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    """All of it but AdamW, which has its own way on a GPU (`capturable`); and a prediction without gradients."""
    generator = generator if of == "toy" else Generator.load("mini", device="cpu", dtype="float32")
    side, width = generator.resolution // generator.vae_factor, generator.text_width
    latents = LatentDistribution(*torch.randn(2, 3, generator.latent_channels, side, side))
    bank = EvaluationBank(latents.mean[None], latents.mean[None], torch.arange(3)[None])
    inputs = UnitInputs(generator, SETTINGS, IDS[:3], latents, bank, torch.randn(3, 5, width), 2)
    run = Slots().begin(inputs, torch.arange(3), 0.03, 0)
    before = run.vectors.detach().clone()
    run.step(0)
    assert not torch.equal(run.vectors, before) and int(run.done) == 1
    monkeypatch.setattr(run.optimizer, "step", lambda: None)
    with NothingWaits():
        run.step(1)
        with torch.no_grad():
            generator.predict(latents.mean, bank.timesteps[0], run.vectors.detach())
    assert int(run.done) == 2 and run.causes.tolist() == [0, 0, 0]
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingWaits():
        run.nobody_left(0)


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_unit_that_is_cut_goes_on_to_the_same_bits(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls: int
) -> None:
    monkeypatch.setattr(unit_state, "EVERY", 0.0)
    whole, slots = learn(generator), Slots()
    with pytest.raises(Cut):
        learn(generator, advance=cut_after(calls), state=UnitState(tmp_path, ("x",), 0), slots=slots)
    done: list[int] = []
    again = learn(generator, advance=done.append, state=UnitState(tmp_path, ("x",), 0), slots=slots)
    assert done == [calls * 4, *[4] * (6 - calls)], "the saved steps are counted, not done again"
    for name in ("vectors", "losses", "null_losses"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name


@pytest.mark.slow
def test_slots_are_forgotten_where_memory_is_short(generator: Generator) -> None:
    slots = Slots()

    def learned(at_once: int) -> BatchResult:
        if at_once == 4:
            learn(generator, slots=slots)
            raise MemoryError
        assert slots._run is None
        return learn(generator, slots=slots, at_once=at_once)

    found, at_once = within_memory(learned, 4)
    assert at_once == 2
    torch.testing.assert_close(found.vectors, learn(generator).vectors, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_with_the_draws_that_it_began_with(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a CPU they come from streams; a run of a GPU, here one that takes counters, says so and is continued so."""
    images, settings = toy_images(4), SETTINGS.model_copy(update={"batch_size": 2})
    assert slots_for(generator, settings) is None
    streams = invert(images, generator, tmp_path / "streams", settings)
    invert(images.subset([0, 1]), generator, tmp_path / "begun by streams", settings)
    with monkeypatch.context() as patched:
        patched.setattr(inversion, "slots_for", lambda generator, settings: Slots())
        counters = invert(images, generator, tmp_path / "counters", settings)
        invert(images.subset([0, 1]), generator, tmp_path / "begun by counters", settings)
        continued = invert(images, generator, tmp_path / "begun by streams", settings)
    assert torch.equal(continued.vectors, streams.vectors)
    assert torch.equal(invert(images, generator, tmp_path / "begun by counters", settings).vectors, counters.vectors)
    assert not torch.allclose(counters.vectors, streams.vectors, atol=1e-3)
    recorded = {name: (tmp_path / name / settings_file("invert")).read_text() for name in ("streams", "counters")}
    assert '"draws": "philox4x32-10"' in recorded["counters"] and "draws" not in recorded["streams"].replace(
        "eval_draws", ""
    )


def test_latents_are_those_of_the_images(generator: Generator) -> None:
    pixels, _, ids = toys(2)
    latents = encode(generator, pixels, 2)
    steps = torch.arange(400)
    draws = CounterDraws(generator, 0, ids, latents)
    mean = torch.stack([draws.at(step)[0] for step in steps]).mean(0)
    assert float((mean - latents.mean).abs().max()) < 5 * float((0.5 * latents.logvar).exp().max()) / 20
