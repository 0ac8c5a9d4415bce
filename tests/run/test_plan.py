"""What a run will take: arithmetic on the seconds of steps, and what a time limit leaves out."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from diffusion_inversion.config.planning import LimitSettings
from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.config.settings import DataSettings, InvertSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.errors import UsageError
from diffusion_inversion.run.online import HELD
from diffusion_inversion.run.plan.forecast import REPORT, Forecast, Left, left, seconds, sum_left
from diffusion_inversion.run.plan.steps import Steps, at_size
from diffusion_inversion.run.plan.time_limit import MARGIN, Amounts, within
from diffusion_inversion.run.replicates import replicate

STEPS = Steps(
    begin=1.0, evaluation=0.1, learning=0.01, drawing=0.5, likeness=0.25, setup=0.75, training=2.0, testing=0.001,
    own_training=3.0, own_testing=0.002, autoencoder=7.0, memory=1000,
)  # fmt: skip
ALL = Left(vectors=10, variants=40, reconstructions=10, classifiers=6, own_classifiers=2, probes=1, reports=1)
ASKED = Amounts(InvertSettings(steps=20), SampleSettings(variants=4), TrainSettings(steps=100, seeds=(0, 1)))


def taken(amounts: Amounts, todo: Left = ALL, steps: Steps = STEPS) -> dict[str, float]:
    return seconds(steps, todo, 50, 10, amounts.invert, amounts.sample, amounts.train)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("45min", 2700), ("45 m", 2700), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("1d 2h", 93600)],
)
def test_a_duration_is_read(text: str, expected: float) -> None:
    assert LimitSettings.model_validate({"time_limit": text}).time_limit == expected


@pytest.mark.parametrize("text", ["2", "h", "2 weeks", "-2h", "2h and more", "", "1:30"])
def test_another_text_is_no_duration(text: str) -> None:
    with pytest.raises(ValidationError, match="give a number with its unit, such as 90s"):
        LimitSettings.model_validate({"time_limit": text})


def test_a_limit_of_nothing_is_none() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        LimitSettings.model_validate({"time_limit": "0s"})


def test_seconds_are_steps_times_how_many() -> None:
    found = taken(ASKED)
    # 5 points of the curve (0, 5, 10, 15, 20) and the empty prompt, 8 draws each.
    assert found["stage 1"] == pytest.approx(10 * (1.0 + 6 * 8 * 0.1 + 20 * 0.01))
    assert found["stage 2"] == pytest.approx((40 + 10) * 0.5 + 10 * 0.25)
    assert found["training"] == pytest.approx(6 * (0.75 + 100 * 2.0 + 50 * 0.001) + 2 * (0.75 + 100 * 3.0 + 50 * 0.002))
    assert (found["before"], found["report"]) == (7.0, REPORT)


def test_an_image_of_a_joint_group_has_a_loss_at_some_steps_alone() -> None:
    joint = InvertSettings(steps=20, grouping="joint", group_size=100, joint_batch_size=25)
    amounts = Amounts(joint, ASKED.sample, ASKED.train)
    assert taken(amounts)["stage 1"] == pytest.approx(10 * (1.0 + 6 * 8 * 0.1 + 20 / 4 * 0.01))


def test_adversarial_rounds_are_counted() -> None:
    train = TrainSettings(
        steps=100, arms=("real",), batch_size=5, me_ada_every=40, me_ada_share=0.5, me_ada_steps=15
    )  # rounds after steps 40 and 80, each 15 ascent steps on 5 of the 10 images: a batch
    found = taken(Amounts(ASKED.invert, ASKED.sample, train), Left(0, 0, 0, 1, 0, 0, 0))
    assert found["training"] == pytest.approx(0.75 + (100 + 2 * 15) * 2.0 + 50 * 0.001)


def test_a_folder_without_a_run_lacks_everything(tmp_path: Path) -> None:
    settings = (ASKED.invert, ASKED.sample, ASKED.train)
    plans = [replicate(tmp_path / "run", number, DataSettings(data="digits"), *settings) for number in range(2)]
    one = left(plans[0], 10, own=True)
    assert one == Left(10, 40, 10, 6, 2, 1, 1)
    both = sum_left(plans, 10, own=False)
    assert both == Left(20, 80, 20, 12, 0, 1, 2), "the probe is of the run alone"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("kept", "at_once"), [(True, 96), (False, HELD + 1)])
def test_what_is_drawn_online_takes_room(tmp_path: Path, kept: bool, at_once: int) -> None:
    train = ASKED.train.model_copy(update={"online": 100, "online_keep": kept})
    plan = replicate(tmp_path / "run", 0, DataSettings(data="digits"), ASKED.invert, ASKED.sample, train)
    todo = left(plan, 10, own=False)
    assert (todo.variants, todo.online, todo.kept) == (40, 960, 10 * at_once)


def test_cost_is_of_all_machines() -> None:
    found = Forecast({"stage 1": 3600.0, "training": 1800.0}, disk=1, memory=1, workers=4)
    assert found.cost(2.0) == pytest.approx(1.5 * 4 * 2.0)
    assert found.after(1800).total == pytest.approx(7200)
    lines = found.lines(2.0)
    assert lines[0].startswith("about 1:30:00 with 4 workers: stage 1 1:00:00, training 30:00")
    assert lines[-1] == "cost 12.00: 1.50 h x 4 machines x 2"


def test_the_count_grows_as_far_as_the_time_allows() -> None:
    tried: list[int] = []

    def slow(count: int) -> tuple[float, ...]:
        tried.append(count)
        time.sleep(0.01 * count)
        return (float(count),)

    assert at_size(slow, 100, 0.0) == ((2.0,), 2), "a first look"
    tried.clear()
    found, count = at_size(slow, 8, 10.0)
    assert (found, count, tried) == ((8.0,), 8, [2, 8])
    tried.clear()
    _, count = at_size(slow, 1000, 0.5)
    assert 2 < count < 50 and tried == sorted(tried)
    tried.clear()
    assert at_size(slow, 1, 1.0)[1] == 1 and tried == [1, 1], "the first call warms up"


def test_a_count_that_does_not_fit_into_memory_is_not_needed() -> None:
    def narrow(count: int) -> tuple[float, ...]:
        if count > 4:
            raise MemoryError
        return (float(count),)

    assert at_size(narrow, 100, 10.0) == ((2.0,), 2)
    with pytest.raises(MemoryError):
        at_size(lambda count: narrow(count + 4), 100, 10.0)


def total(amounts: Amounts) -> float:
    return sum(
        (
            amounts.invert.steps * 1.0,
            amounts.sample.variants * 100.0,
            len(amounts.train.seeds) * amounts.train.steps * 1.0,
        )
    )


WHOLE = Amounts(
    InvertSettings(steps=100), SampleSettings(variants=10), TrainSettings(steps=1000, seeds=(0, 1, 2, 3, 4))
)  # 100 + 1,000 + 5,000 seconds


@pytest.mark.parametrize(
    ("room", "cut"),
    [
        (6100, []),
        (6099, ["variants 10 -> 9"]),
        (5400, ["variants 10 -> 3"]),
        (5399, ["variants 10 -> 3", "seeds 5 -> 4"]),
        (3400, ["variants 10 -> 3", "seeds 5 -> 3"]),
        (3399, ["variants 10 -> 3", "seeds 5 -> 3", "steps of stage 1 100 -> 95", "steps of training 1000 -> 950"]),
        (1075, ["variants 10 -> 3", "seeds 5 -> 3", "steps of stage 1 100 -> 25", "steps of training 1000 -> 250"]),
        (1074, ["variants 10 -> 2", "seeds 5 -> 3", "steps of stage 1 100 -> 25", "steps of training 1000 -> 250"]),
    ],
)
def test_what_is_worth_least_goes_first_and_as_little_as_suffices(room: float, cut: list[str]) -> None:
    limit = room / (1 - MARGIN) + 1e-6
    assert within(limit, WHOLE, total).cut_from(WHOLE) == cut
    assert within(limit + 125, WHOLE, total, gone=100.0).cut_from(WHOLE) == cut


def test_what_does_not_fit_at_all_is_refused_with_what_would() -> None:
    with pytest.raises(UsageError, match=r"--time-limit 10:00: even with variants 10 -> 1, seeds 5 -> 3, .* 14:35"):
        within(600, WHOLE, total)
    assert within(875 / (1 - MARGIN) + 1, WHOLE, total).sample.variants == 1


def test_a_million_variants_are_not_tried_one_by_one() -> None:
    many = Amounts(WHOLE.invert, SampleSettings(variants=100_000_000), WHOLE.train)
    assert within(10_000, many, total).sample.variants == 29


def test_combinations_in_turn_stay_whole() -> None:
    sample = SampleSettings(variants=18, guidance_scales=(2.0, 3.0), kept_steps=(50, 100), combinations="grid")
    asked = Amounts(InvertSettings(steps=100, keep_steps=(50, 100)), sample, WHOLE.train)
    found = within(6600 / (1 - MARGIN), asked, total)
    assert found.sample.variants == 12, "a multiple of two steps times two scales"


def test_steps_that_are_named_stay() -> None:
    asked = Amounts(
        InvertSettings(steps=100, keep_steps=(50,)),
        SampleSettings(variants=2),
        TrainSettings(steps=1000, warm_up_steps=300, seeds=(0, 1, 2)),
    )
    with pytest.raises(UsageError, match="even with variants 2 -> 1, steps of training 1000 -> 600 it takes"):
        within(1, asked, total)
