"""The rule of a choice, on planted draws: what helps is chosen, what harms or is nothing is not, within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_inversion.train.evaluation import compare
from diffusion_inversion.train.halving import Cell, Choice, Trial, halve, rungs, trials_of
from diffusion_inversion.train.verdict import recalls

FOLDS = 5


class Draws:
    """Trials without trainings: each classifier recognises an image by a chance of the image, the fold and its own."""

    def __init__(
        self,
        gains: Sequence[float],
        images: int = 200,
        seed: int = 0,
        labels: Tensor | None = None,
        seconds: Sequence[float] | float = 1.0,
        drawing: float = 0.0,
    ) -> None:
        self.stream = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(images) % 4 if labels is None else labels
        self.fold = torch.randperm(images, generator=self.stream) % FOLDS
        self.hard = 0.4 + 0.5 * torch.rand(images, generator=self.stream)
        self.gains = dict(enumerate(gains)) | {None: 0.0}
        # What a training has in common on a whole fold, of which folds' overlap is a part.
        self.luck = {one: 0.02 * torch.randn(FOLDS, generator=self.stream) for one in self.gains}
        self.cost = seconds if isinstance(seconds, float) else dict(enumerate([*seconds[1:]])) | {None: seconds[0]}
        self.drawing = drawing
        self.done: list[tuple[int | None, Cell]] = []
        self.kept: dict[tuple[int | None, Cell], Trial] = {}

    def __call__(self, one: int | None, cell: Cell) -> Trial:
        if (one, cell) not in self.kept:
            first = all(other != one for other, _ in self.kept)
            rows = (self.fold == cell.fold).nonzero()[:, 0]
            chance = self.hard[rows] + self.gains[one] + self.luck[one][cell.fold]
            correct = torch.rand(len(rows), generator=self.stream) < chance
            took = self.cost if isinstance(self.cost, float) else self.cost[one]
            self.kept[one, cell] = Trial(cell.fold, rows.tolist(), correct, took, self.drawing if first else 0.0)
            self.done.append((one, cell))
        return self.kept[one, cell]


def cells(seeds: int = 1) -> list[Cell]:
    return [Cell(seed, fold) for seed in range(seeds) for fold in range(FOLDS)]


def run(draws: Draws, seeds: int = 1, budget: float | None = None) -> Choice:
    return halve(len(draws.gains) - 1, cells(seeds), draws, draws.labels, budget=budget)


@given(st.integers(1, 12), st.integers(1, 20))
def test_rungs_halve_the_candidates_and_end_with_one_on_all_cells(candidates: int, count: int) -> None:
    found = rungs(candidates, count)
    assert found[0][0] == candidates and found[-1] == (1, count)
    assert [upto for _, upto in found] == sorted(upto for _, upto in found)
    assert all(after == -(-before // 2) for (before, _), (after, _) in pairwise(found))
    draws = Draws([0.0] * candidates, images=40)
    choice = halve(candidates, cells(4)[:count], draws, draws.labels)
    assert choice.trials == trials_of(candidates, count) == len(draws.done)
    assert choice.trials <= (candidates + 1) * count


def test_one_other_value_costs_one_training_a_fold() -> None:
    assert trials_of(1, FOLDS) == 2 * FOLDS and trials_of(4, FOLDS) == 2 * 5 + 1 * 3 + 2 * 2 == 17


@pytest.mark.parametrize("place", [0, 3])
def test_a_choice_that_helps_by_construction_is_chosen(place: int) -> None:
    gains = [-0.1] * 4
    gains[place] = 0.25
    assert [run(Draws(gains, images=400, seed=seed)).chosen for seed in range(30)].count(place) >= 28


def test_a_choice_that_harms_is_refused() -> None:
    for seed in range(100):
        choice = run(Draws([-0.25, -0.1], images=400, seed=seed))
        assert choice.chosen is None
        first = choice.comparisons[0]
        assert first is not None and first.difference < 0, "a wrong sign would show"


@pytest.mark.parametrize(("candidates", "images", "uneven"), [(1, 60, False), (4, 200, False), (4, 200, True)])
def test_where_no_choice_matters_the_default_stays_in_at_least_95_of_100(
    candidates: int, images: int, uneven: bool
) -> None:
    labels = (torch.arange(images) % 10 == 0).long() if uneven else None
    changed = sum(
        run(Draws([0.0] * candidates, images=images, seed=seed, labels=labels)).chosen is not None
        for seed in range(200)
    )
    assert changed <= 0.05 * 200


def test_the_intervals_are_those_of_the_comparison_of_arms() -> None:
    """Worked out here from the trials, with a fold as a unit that has test images of its own."""
    draws = Draws([0.1], images=100)
    found = run(draws, seeds=2).comparisons[0]
    correct = {name: torch.full((FOLDS, 100), torch.nan, dtype=torch.float64) for name in ("candidate", "default")}
    for name, one in (("candidate", 0), ("default", None)):
        for fold in range(FOLDS):
            both = [draws(one, Cell(seed, fold)) for seed in range(2)]
            for place, row in enumerate(both[0].rows):
                correct[name][fold, row] = sum(float(trial.correct[place]) for trial in both) / 2
    rates = {name: [float(row[~row.isnan()].mean()) for row in hits] for name, hits in correct.items()}
    assert found == compare("candidate", rates, correct=correct, baseline="default", unit="folds")
    assert found is not None and found.test_images == pytest.approx(100)


def test_where_classes_are_uneven_balanced_accuracy_counts() -> None:
    """The candidate names the large class of every image: right in 9 of 10, and no better than a guess."""
    labels = (torch.arange(300) % 10 == 0).long()
    draws = Draws([0.0], images=300, labels=labels)
    for cell in cells():
        draws(None, cell)
        rows = draws(0, cell).rows
        draws.kept[0, cell] = Trial(cell.fold, rows, labels[list(rows)] == 0, 1.0)
    choice = run(draws)
    assert choice.measure == "balanced accuracy" and choice.chosen is None
    (found,) = choice.comparisons
    assert found is not None
    default = torch.full((FOLDS, 300), torch.nan, dtype=torch.float64)
    for cell in cells():
        default[cell.fold, list(draws(None, cell).rows)] = draws(None, cell).correct.double()
    assert found.difference == pytest.approx(0.5 - float(recalls(default, labels, 2).nanmean(1).mean()))


def test_fewer_than_three_folds_are_no_ground_for_a_choice() -> None:
    draws = Draws([0.6], images=400)
    draws.hard[:] = 0.2
    choice = halve(1, cells()[:2], draws, draws.labels)
    (found,) = choice.comparisons
    assert found is not None and found.difference > 0.4 and choice.chosen is None
    assert run(Draws([], images=40)).trials == 0


@given(
    costs=st.lists(st.floats(0.1, 5.0), min_size=2, max_size=6),
    budget=st.floats(0.5, 200.0),
    drawing=st.floats(0.0, 3.0),
)
@settings(max_examples=60)
def test_no_training_exceeds_the_budget_but_the_first(costs: list[float], budget: float, drawing: float) -> None:
    """Where none takes longer than those before it; what takes longer exceeds it once at most, by the surplus."""
    costs = sorted(costs, reverse=True)
    draws = Draws([0.1] * (len(costs) - 1), images=60, seconds=costs, drawing=drawing)
    choice = run(draws, seeds=3, budget=budget)
    assert choice.seconds == pytest.approx(sum(t.seconds + t.drawing for t in draws.kept.values()))
    assert choice.seconds <= max(budget, costs[0] + drawing) + 1e-9
    assert choice.cut_short == (choice.trials < trials_of(len(costs) - 1, 3 * FOLDS))


def test_a_later_choice_knows_how_long_trainings_are() -> None:
    draws = Draws([0.1], images=60)
    nothing = halve(1, cells(), draws, draws.labels, budget=2.5, longest=(2.0, 1.0))
    assert (nothing.trials, nothing.chosen, nothing.cut_short) == (0, None, True)
    assert halve(1, cells(), draws, draws.labels, budget=3.0, longest=(2.0, 1.0)).trials == 1


def test_a_budget_is_planned_so_that_the_last_rung_is_reached() -> None:
    draws = Draws([0.0] * 4, images=100)
    whole = trials_of(4, 3 * FOLDS)
    choice = run(draws, seeds=3, budget=whole - 10.0)
    assert choice.cut_short and choice.trials <= whole - 10
    assert sorted(choice.cells)[-1] > sorted(choice.cells)[-2] > sorted(choice.cells)[0], "one went on to the end"
    assert not run(Draws([0.0] * 4, images=100), seeds=3, budget=float(whole)).cut_short


@pytest.mark.parametrize("budget", [None, 24.0])
def test_what_was_killed_anywhere_goes_on_to_the_same_choice(budget: float | None) -> None:
    class Killed(Exception):
        pass

    def draws() -> Draws:
        return Draws([-0.1, 0.3, 0.0], images=300, seconds=[1.0, 1.5, 0.5, 1.0], drawing=0.5)

    whole, reference = draws(), None
    reference = run(whole, seeds=2, budget=budget)
    assert reference.chosen == 1
    for stop in range(1, reference.trials):
        again = draws()

        def until(one: int | None, cell: Cell, again: Draws = again, stop: int = stop) -> Trial:
            if (one, cell) not in again.kept and len(again.done) == stop:
                raise Killed
            return again(one, cell)

        with pytest.raises(Killed):
            halve(3, cells(2), until, again.labels, budget=budget)
        assert run(again, seeds=2, budget=budget) == reference
        assert again.done == whole.done, "and no training is done twice"
