"""What a page says its spread and its intervals are over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from diffusion_inversion.sweep import SweepPlan, table
from diffusion_inversion.sweep.plan import cells
from diffusion_inversion.train.replicated import components

VECTORS = {"name": "vectors", "set": {}}
REAL = {"name": "real", "set": {"train.arms": ["real"]}}
PROMPTS = {"name": "prompts", "set": {"prompts.prompts": "a {class}"}}
POOL = {"name": "pool", "set": {"retrieve.pool": "nowhere", "retrieve.k": 1}}


def test_spreads_between_seeds_are_told_where_a_replicate_has_several() -> None:
    def found(replicates: int, *of_seeds: tuple[float, ...]) -> Any:
        row = SimpleNamespace(at={}, arm="real", spread=components(of_seeds))
        return SimpleNamespace(plan=SimpleNamespace(replicates=replicates, metrics=None), rows=[row], cells=())

    one_seed, alone = found(3, (0.3,), (0.4,), (0.5,)), found(1, (0.3, 0.4))
    assert table.spread_table(one_seed) is None and table.spread_table(alone) is None
    assert "One classifier seed each" in table.scope(one_seed)
    several = found(2, (0.3, 0.5), (0.7, 0.9))
    told = table.spread_table(several)
    # within^2 = .02; the means' variance is .08, of which half of that is due to the seeds.
    assert told is not None and told[1] == [["all", "real", "26.5", "14.1"]]
    assert "One classifier seed each" not in table.scope(several)


@pytest.mark.parametrize(
    ("cases", "data", "once", "several"),
    [
        (
            [VECTORS, REAL], {"limit": 4},
            "Of one subset of the training images and one draw of the synthetic ones: what another would give is not "
            "in this (--replicates 5).",
            "Each replicate has its own subset or hold-out where there is one, its own vectors, synthetic images and "
            "classifiers.",
        ),
        (
            [VECTORS, PROMPTS], {"test": "other"},
            "Of one draw of the synthetic images: what another would give is not in this (--replicates 5).",
            "Each replicate has its own vectors where they are learned, synthetic images and classifiers.",
        ),
        (
            [POOL], {"test": "other"},
            "All is of the same images: the spread is that of the classifiers alone.",
            "Each replicate has its own classifiers. Images of a pool are the same in all.",
        ),
        (
            [POOL, VECTORS], {"per_class": 2},
            "Of one subset of the training images and one draw of the synthetic ones: what another would give is not "
            "in this (--replicates 5).",
            "Each replicate has its own subset or hold-out where there is one, its own vectors where they are learned, "
            "synthetic images where they are drawn and classifiers. Images of a pool are found for its training "
            "images.",
        ),
        (
            [REAL], {"limit": 4},
            "Of one subset of the training images: what another would give is not in this (--replicates 5).",
            "Each replicate has its own subset or hold-out where there is one, and its own classifiers.",
        ),
    ],
)  # fmt: skip
def test_the_scope_is_that_of_the_cells(cases: list[Any], data: dict[str, Any], once: str, several: str) -> None:
    for count, said in ((1, once), (3, several)):
        named = {"name": "a", "title": "A", "data": {"data": "digits", **data}, "cases": cases, "replicates": count}
        plan = SweepPlan.model_validate(named)
        rows = [SimpleNamespace(at={}, arm="real", spread=components([(0.3, 0.4)] * count))]
        assert table.scope(SimpleNamespace(plan=plan, cells=cells(plan), rows=rows)) == said  # type: ignore[arg-type]
