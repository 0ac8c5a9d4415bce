"""What choosing on test images adds to a few-shot learner's accuracy: Tip-Adapter and Tip-Adapter-F, both ways.

Command:  python benchmarks/few_shot_optimism.py six-train.parquet six-test.parquet mini-clip few-shot-optimism.csv
Method:   the same shots, features and trainings, scored twice on the same test images. `folds`, as `dinv few-shot`
          does it: alpha and beta from folds of the shots, the last epoch. `test`, as the released code does it for
          ImageNet: alpha and beta of the same grid that are best on the test images; of F the epoch that is best there
          at the first alpha and beta, and the larger of its accuracy and of that after the search (Tip-Adapter's
          `main_imagenet.py`, `max(best_acc, acc)`).
Writes:   one line for each method, number of shots and seed; prints the table of docs/results/figure7a.md, which
          tests/test_published.py compares with that file.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion_inversion.config.few_shot import FewShotSettings
from diffusion_inversion.data.datasets import load_splits
from diffusion_inversion.data.sources import default_root
from diffusion_inversion.run.few_shot.additions import NONE, Addition
from diffusion_inversion.run.few_shot.bench import Bench
from diffusion_inversion.run.few_shot.jobs import check_shots, plan_jobs, shots_of
from diffusion_inversion.train.few_shot.clip import Clip
from diffusion_inversion.train.few_shot.examples import Encoded
from diffusion_inversion.train.few_shot.tip_adapter import (
    Cache,
    affinity,
    build_cache,
    choose,
    fine_tune,
    grid,
    tip_logits,
)
from diffusion_inversion.train.few_shot.zero_shot import zero_shot_logits

METHODS = ("tip-adapter", "tip-adapter-f")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("train")
    options.add_argument("test")
    options.add_argument("clip", help="mini-clip, or any CLIP of transformers")
    options.add_argument("out", type=Path, help="the table, a CSV file")
    options.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = options.parse_args()
    splits = load_splits(given.train, test=given.test, allow_near_duplicates=True)
    settings = FewShotSettings(shots=given.shots, seeds=given.seeds, methods=METHODS)
    check_shots(splits.train, settings)
    clip = Clip.load(given.clip, torch.device("cpu"), None)
    jobs = plan_jobs(splits, settings, [Addition(NONE, None)], {}, None)
    bench = Bench.build(splits, clip, settings, jobs, {}, default_root(None) / "features")
    with given.out.open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["method", "shots", "seed", "folds", "test"])
        for seed in given.seeds:
            for shots in given.shots:
                rows = [bench.real_row[row] for row in shots_of(splits.train, shots, seed)]
                for method, pair in both_ways(bench, bench.real.rows(rows), seed):
                    writer.writerow([method, shots, seed, *pair])
    print(table(given.out))


def table(file: Path) -> str:
    """What the CSV says, as Markdown: accuracies in %, mean ± standard deviation (n)."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            found.setdefault((row["method"], int(row["shots"])), []).append((float(row["folds"]), float(row["test"])))
    shown = ["| learner | shots | chosen on folds, last epoch | chosen on test images | added by it | n |"]
    shown.append("| --- | --- | --- | --- | --- | --- |")
    for (method, shots), pairs in sorted(found.items()):
        ours, theirs = zip(*pairs, strict=True)
        added = said([chosen - own for own, chosen in pairs])
        shown.append(f"| {method} | {shots} | {said(ours)} | {said(theirs)} | {added} | {len(pairs)} |")
    return "\n".join(shown)


def said(values: Sequence[float]) -> str:
    """Mean and standard deviation of shares, in %."""
    return f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def both_ways(bench: Bench, real: Encoded, seed: int) -> Iterator[tuple[str, tuple[float, float]]]:
    """By method the test accuracies of the choice on folds, and of the choice on the test images."""
    settings, weights, scale = bench.settings, bench.weights, bench.clip.scale
    labels = bench.splits.test.labels

    def accuracy(cache: Cache, alpha: float, beta: float) -> float:
        logits = tip_logits(bench.test, weights, cache, alpha=alpha, beta=beta, scale=scale)
        return float((logits.argmax(1) == labels).double().mean())

    def make(some: Encoded, _: Encoded | None) -> Cache:
        return build_cache([some])

    def trained(some: Encoded, _: Encoded | None) -> Cache:
        return fine_tune(build_cache([some]), some, None, weights, scale, settings, seed)

    choice = choose(real, None, weights, scale, settings, make)
    cache = build_cache([real])
    yield METHODS[0], (accuracy(cache, choice.alpha, choice.beta), best_on_test(bench, cache, labels))

    choice = choose(real, None, weights, scale, settings, trained)
    epochs: list[Cache] = []
    last = fine_tune(cache, real, None, weights, scale, settings, seed, epochs.append)
    each = -(-len(real) // settings.tip_batch_size)
    scores = [accuracy(one, settings.tip_alpha, settings.tip_beta) for one in epochs[each - 1 :: each]]
    peak = max(range(len(scores)), key=scores.__getitem__)
    searched = best_on_test(bench, epochs[each - 1 :: each][peak], labels)
    yield METHODS[1], (accuracy(last, choice.alpha, choice.beta), max(scores[peak], searched))


def best_on_test(bench: Bench, cache: Cache, labels: Tensor) -> float:
    """The best accuracy on the test images over the grid of alpha and beta."""
    settings = bench.settings
    near = affinity(bench.test, cache.keys)
    plain = zero_shot_logits(bench.test, bench.weights, bench.clip.scale)
    alphas, best = grid(settings.largest_alpha, settings.alphas)[:, None, None], 0.0
    for beta in grid(settings.largest_beta, settings.betas).tolist():
        logits = plain + alphas * (torch.exp(-beta * (1 - near)) @ cache.values)
        best = max(best, float((logits.argmax(2) == labels).double().mean(1).max()))
    return best


if __name__ == "__main__":
    main()
