"""A judge of labels that never saw what it judges: linear heads on frozen features, cross-fitted over the sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .fidelity import doubts, margin
from .folds import NEVER

STRENGTH = 1e-3  # C of the logistic regression on standardised features, as of the probe of run/coarseness.py
FALSE_ALARMS = 0.05  # of images that show their class as the real ones do, the share that fails at most
FEWEST = math.ceil(1 / FALSE_ALARMS) - 1  # held-out images that this can be said by
_SHARPEST = 1e6  # 1 / T that is tried at most


@dataclass(frozen=True, eq=False)
class Head:
    """Multinomial logistic regression on standardised features of D numbers, over K classes."""

    mean: Tensor  # (D,) float64, of the images it learned from
    scale: Tensor  # (D,) their standard deviation, 1 where that is 0
    weights: Tensor  # (D, K)
    bias: Tensor  # (K,)

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, classes: int) -> Head:
        """Learn from features (N, D) and labels (N,) int64, each of 0..classes-1 at least once."""
        from sklearn.linear_model import LogisticRegression

        x = features.double()
        scale, mean = torch.std_mean(x, 0, correction=0)
        scale[scale == 0] = 1
        found = LogisticRegression(C=STRENGTH, max_iter=500).fit(((x - mean) / scale).numpy(), labels.numpy())
        weights, bias = torch.from_numpy(found.coef_.T.copy()), torch.from_numpy(found.intercept_.copy())
        if classes == 2:  # scikit-learn has the logit of the second class alone
            weights, bias = (F.pad(one, (1, 0)) for one in (weights, bias))
        return cls(mean, scale, weights, bias)

    def logits(self, features: Tensor) -> Tensor:
        """(N, K) float64 of features (N, D)."""
        logits: Tensor = (features.double() - self.mean) / self.scale @ self.weights + self.bias
        return logits


@dataclass(frozen=True, eq=False)
class Judge:
    """Heads that one fold of the images had no part in; nor had it in temperature, thresholds and margin."""

    heads: tuple[Head, ...]
    temperature: float
    thresholds: Tensor  # (C,) float64: mean confidence in its own class of the real images of a class; inf where none
    margin: float  # what a doubt must exceed
    known: Tensor  # (K,) int64, ascending: classes that there are images of

    def answers(self, features: Tensor) -> Tensor:
        """Calibrated probabilities (N, C) float64 of features (N, D): the mean over the heads."""
        found = torch.stack([(head.logits(features) / self.temperature).softmax(1) for head in self.heads]).mean(0)
        return found.new_zeros(len(found), len(self.thresholds)).index_copy_(1, self.known, found)


def cross_fitted(features: Tensor, labels: Tensor, folds: Sequence[int], classes: int) -> dict[int, Judge]:
    """A judge for each fold, of real images' features (N, D), labels (N,) int64 and folds (N), as `fold_of` gives them.

    For each two folds a head learns from all other images. The judge of a fold k has the heads that are without k and
    one other fold each, which is the head's hold-out: by what they say of their hold-outs, taken together, the
    temperature is fitted (`fitted_temperature`) and the thresholds are set: for each class the mean confidence in it of
    its own images (Northcutt et al. 2021, arXiv 1911.00068, eq. 2). Of them at most 5 % would fail by the margin. So
    all real images but those of k say what is usual, each by a head that never saw it, and nothing of k has a part in
    its judge. Which folds have one: `hold_outs`.
    """
    known, numbers = labels.unique(return_inverse=True)
    fold = torch.tensor(folds)
    heads: dict[frozenset[int], Head] = {}
    judges = {}
    for name, others in hold_outs(labels, folds).items():
        logits = []
        for other in others:
            if (pair := frozenset({name, other})) not in heads:
                inside = (fold != name) & (fold != other)
                heads[pair] = Head.fit(features[inside], numbers[inside], len(known))
            logits.append(heads[pair].logits(features[fold == other]))
        truth = torch.cat([numbers[fold == other] for other in others])
        own = [heads[frozenset({name, other})] for other in others]
        judges[name] = _judge(own, torch.cat(logits), truth, classes, known)
    return judges


def _judge(heads: Sequence[Head], logits: Tensor, truth: Tensor, classes: int, known: Tensor) -> Judge:
    """The judge of these heads, by their logits (N, K) of their hold-outs and the numbers (N,) of the true classes."""
    temperature = fitted_temperature(logits, truth)
    answers = (logits / temperature).softmax(1)
    thresholds = torch.full((len(known),), math.inf, dtype=torch.float64)
    for number in truth.unique().tolist():
        thresholds[number] = answers[truth == number, number].mean()
    usual = margin(doubts(answers, thresholds, truth), FALSE_ALARMS)
    every = torch.full((classes,), math.inf, dtype=torch.float64).index_copy_(0, known, thresholds)
    return Judge(tuple(heads), temperature, every, usual, known)


def hold_outs(labels: Tensor, folds: Sequence[int]) -> dict[int, list[int]]:
    """For each fold that can have a judge the folds that its heads hold out; labels (N,) int64, folds (N).

    A head that is left without a class cannot be. Of the hold-outs of a judge there are at least 19 images. Images that
    are `NEVER` held out have no judge.
    """
    fold, names, found = torch.tensor(folds), sorted({*folds} - {NEVER}), {}
    known = len(labels.unique())
    for name in names if known > 1 else ():
        left = {other: (fold != name) & (fold != other) for other in names if other != name}
        others = [other for other, rows in left.items() if len(labels[rows].unique()) == known]
        if sum(int((fold == other).sum()) for other in others) >= FEWEST:
            found[name] = others
    return found


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """T > 0 of the least mean cross-entropy of softmax(logits / T) (Guo et al. 2017, section 4.2), logits (N, K).

    The labels (N,) int64 are smoothed by 1 / (N + 1), as if one image more showed every class alike: a hold-out that
    is recognised without an error has no least T else. The cross-entropy is convex in 1 / T, whose derivative is
    bisected: mean(E_p[z] - E_target[z]).
    """
    z = logits.double()
    spread = 1 / (len(z) + 1)
    goal = ((1 - spread) * z.gather(1, labels[:, None])[:, 0] + spread * z.mean(1)).mean()
    low, high = -math.log(_SHARPEST), math.log(_SHARPEST)
    for _ in range(60):
        middle = (low + high) / 2
        rising = ((math.exp(middle) * z).softmax(1) * z).sum(1).mean() > goal
        low, high = (low, middle) if rising else (middle, high)
    return math.exp(-(low + high) / 2)
