"""What a run leaves out to end within a time limit: decided once, before it begins, so its results can be had again.

In this order, each as little as suffices: variants down to three of each image; seeds down to the three that a verdict
takes; steps of stage 1 and of training, by the same share, down to a quarter; variants down to one. All images and all
arms have the same steps. Which images are learned, how often they are drawn again (--replicates) and tested stays.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...config.sampling import SampleSettings
from ...config.settings import InvertSettings
from ...config.training import TrainSettings
from ...engine.frozen_settings import differences, listed
from ...engine.ledger import Ledger
from ...engine.progress import duration
from ...errors import ConfigMismatchError, UsageError
from ...invert.embeddings import EmbeddingStore
from ...train.evaluation import MIN_UNITS
from ..layout import TIME_LIMIT_FILE

MARGIN = 0.2  # of the limit that is kept free, for what a forecast errs by (docs/results/plan.md)
FEW_VARIANTS = 3
SHARES = tuple(percent / 100 for percent in range(95, 24, -5))  # of the steps, the most first


@dataclass(frozen=True)
class Amounts:
    """The settings of a run that a time limit may lower."""

    invert: InvertSettings
    sample: SampleSettings
    train: TrainSettings

    def described(self) -> dict[str, Any]:
        """As JSON data to compare runs by."""
        return {stage: settings.described() for stage, settings in vars(self).items()}

    def with_variants(self, variants: int) -> Amounts:
        return Amounts(self.invert, self.sample.model_copy(update={"variants": variants}), self.train)

    def with_seeds(self, count: int) -> Amounts:
        return Amounts(self.invert, self.sample, self.train.model_copy(update={"seeds": self.train.seeds[:count]}))

    def with_share(self, share: float) -> Amounts:
        """With this share of the steps; those of stage 1 stay where some of them are named to be kept."""
        trained = max(round(self.train.steps * share), 2 * self.train.warm_up_steps, 1)
        train = self.train.model_copy(update={"steps": min(trained, self.train.steps)})
        if self.invert.keep_steps or not self.invert.steps:
            return Amounts(self.invert, self.sample, train)
        steps = max(round(self.invert.steps * share), 1)
        return Amounts(self.invert.model_copy(update={"steps": steps}), self.sample, train)

    def cut_from(self, asked: Amounts) -> list[str]:
        """What is less than was asked for: `variants 10 -> 4`."""
        pairs = {
            "variants": (asked.sample.variants, self.sample.variants),
            "seeds": (len(asked.train.seeds), len(self.train.seeds)),
            "steps of stage 1": (asked.invert.steps, self.invert.steps),
            "steps of training": (asked.train.steps, self.train.steps),
        }
        return [f"{name} {before} -> {now}" for name, (before, now) in pairs.items() if now < before]


def within(limit: float, asked: Amounts, seconds: Callable[[Amounts], float], *, gone: float = 0.0) -> Amounts:
    """What is asked for, less what must be left out so that it ends within `limit` seconds, less a fifth of them.

    `seconds` says how long amounts take, and less for less; `gone` are seconds that passed or are needed besides.
    Raises UsageError, which says how long the least takes.
    """
    # Combinations in turn stay whole: each kept step and guidance scale equally often.
    sample, now = asked.sample, asked
    turn = max(len(sample.kept_steps), 1) * len(sample.guidance_scales) if sample.combinations == "grid" else 1

    def fewer(least: int) -> range:
        return range((sample.variants - 1) // turn * turn, least - 1, -turn)

    cuts: tuple[tuple[Sequence[Any], Callable[[Amounts, Any], Amounts]], ...] = (
        ((sample.variants,), Amounts.with_variants),
        (fewer(FEW_VARIANTS), Amounts.with_variants),
        (range(len(asked.train.seeds) - 1, MIN_UNITS - 1, -1), Amounts.with_seeds),
        (SHARES, Amounts.with_share),
        (fewer(1), Amounts.with_variants),
    )
    for values, change in cuts:
        fits = partial(_fits, (1 - MARGIN) * limit - gone, seconds, partial(change, now))
        if (place := bisect_left(values, True, key=fits)) < len(values):
            return change(now, values[place])
        now = change(now, values[-1]) if values else now
    least = seconds(now) + gone
    raise UsageError(
        f"--time-limit {duration(limit)}: even with {', '.join(now.cut_from(asked)) or 'what is asked for'} it takes "
        f"about {duration(least)}, and a fifth of the limit is kept free. Give at least "
        f"{duration(least / (1 - MARGIN) + 1)}, or cheaper classifiers "
        "(--recipe fast, --no-own-size, fewer --arms), or fewer images (--limit)."
    )


def _fits(limit: float, seconds: Callable[[Amounts], float], change: Callable[[Any], Amounts], value: Any) -> bool:
    return seconds(change(value)) <= limit


def recorded(run: Path, limit: float, asked: Amounts, **also: Any) -> Amounts | None:
    """What was decided for the run before; None where nothing was. `also` is compared too.

    Raises ConfigMismatchError where the run was begun without a limit, or with another or for other settings.
    """
    kept = Ledger(run).read_json(TIME_LIMIT_FILE)
    begun = EmbeddingStore(run).begun()
    if kept is None:
        if begun:
            raise ConfigMismatchError(
                f"{run}: begun without --time-limit, which is decided before the work. Leave it out to go on, or "
                "choose another run folder."
            )
        return None
    now = json.loads(json.dumps({"limit": limit, **also, **asked.described()}))
    lines = list(differences(kept["asked"], now))
    if lines and begun:
        raise ConfigMismatchError(
            f"{run}: --time-limit was decided here for other settings:\n{listed(lines)}\nUse the old ones to go on, or "
            "choose another run folder."
        )
    if lines:
        return None
    chosen = kept["chosen"]
    return Amounts(
        InvertSettings(**chosen["invert"]), SampleSettings(**chosen["sample"]), TrainSettings(**chosen["train"])
    )


def record(run: Path, limit: float, asked: Amounts, chosen: Amounts, **also: Any) -> None:
    """Write what was decided, for the same command that goes on and for the report."""
    content = {
        "asked": {"limit": limit, **also, **asked.described()},
        "chosen": chosen.described(),
        "cut": chosen.cut_from(asked),
    }
    Ledger(run).commit_json(TIME_LIMIT_FILE, content, copied=True, indent=1)


def said(limit: float, cut: list[str]) -> str:
    """What was left out, as a sentence."""
    return f"for the time limit of {duration(limit)}: {', '.join(cut) or 'nothing is cut'}"
