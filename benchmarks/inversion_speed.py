"""What an equal loss costs on a CPU: stage 1 at its defaults, the reference code's recipe, and a strong baseline.

    OMP_NUM_THREADS=1 python benchmarks/inversion_speed.py DATA [--images 12] [--rounds 5]
    OMP_NUM_THREADS=1 python benchmarks/inversion_speed.py DATA --shares   # of a step's time, by kind of work

`mini` learns `--images` training images of DATA. What the defaults reach is the goal: the mean loss on the evaluation
bank. The others take steps until theirs passes it (measured at every `--every` steps, linear in between; measuring is
not counted), 3,000 at most, as the paper:

reference: from noise, AdamW 0.03, float32, the images encoded at every step, a plain diffusers loop. Which step passes
    is found with latents encoded once and a fresh sample of them at each step: the same numbers in distribution.
baseline: from noise too, latents encoded once, bfloat16, plain attention, which are our own step; the learning rate of
    RATES that is best after TUNING_STEPS on other training images.

Costs are CPU seconds of one process an image, the parts measured in turn, as medians of the rounds (lowest to highest
ratio of a round). The loss is the model's own training target, for all three. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch

from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.data.datasets import load_images
from diffusion_inversion.data.images import LabelledImages, to_model_range
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.inversion import guesses
from diffusion_inversion.invert.objective import EvaluationBank, encode
from diffusion_inversion.invert.optimisation import curve_steps, invert_batch
from diffusion_inversion.invert.trajectory import Trajectory, UnitInputs
from diffusion_inversion.run.bench.ours import inversion_step
from diffusion_inversion.run.bench.plain import load_plain, plain_inversion_step
from diffusion_inversion.run.bench.timing import Timed, measure_in_turn

RATES, TUNING_STEPS, PAPER_STEPS = (0.03, 0.1, 0.3), 60, 3000
KINDS = {
    "convolutions": ("mkldnn_convolution", "convolution_backward"),
    "products of matrices": ("mm", "addmm", "bmm", "baddbmm"),
    "activations": ("gelu", "gelu_backward", "silu", "silu_backward"),
    "normalisations and softmax": (
        "native_group_norm", "native_group_norm_backward", "native_layer_norm", "native_layer_norm_backward",
        "_softmax", "_softmax_backward_data",
    ),
    "sums, factors, copies": ("add", "add_", "mul", "div", "copy_", "cat", "_to_copy", "sum", "fill_"),
}  # fmt: skip
DEFAULTS = InvertSettings()
FROM_NOISE = InvertSettings(init="random", steps=PAPER_STEPS)


@dataclass(frozen=True)
class Curve:
    """Mean losses on the bank by step, up to the first that is at most `goal`, or to the last step."""

    losses: dict[int, float]
    goal: float

    @property
    def passed(self) -> float | None:
        """The step at which the loss passes the goal, linear between two measurements; None where it does not."""
        for (before, above), (step, loss) in pairwise(self.losses.items()):
            if loss <= self.goal:
                return before + (step - before) * (above - self.goal) / (above - loss)
        return None


def learned(
    generator: Generator, images: LabelledImages, settings: InvertSettings, every: int, goal: float = 0.0
) -> Curve:
    """Take steps until the mean loss is at most `goal`."""
    pixels = to_model_range(images.resized(generator.resolution).images)
    latents, count = encode(generator, pixels, len(pixels)), len(images)
    bank = EvaluationBank.draw(generator, latents, images.ids, settings)
    initial = guesses(images, pixels, generator, settings)
    inputs = UnitInputs(generator, settings, images.ids, latents, bank, initial, count)
    run, losses = Trajectory(inputs, torch.arange(count), settings.learning_rate, 0), dict[int, float]()
    for step in range(settings.steps + 1):
        if step % every == 0:
            run.measure(bank, step)
            losses[step] = float(run.losses[-1].mean())
            if losses[step] <= goal:
                break
        run.step(step)
    return Curve(losses, goal)


def parts(generator: Generator, images: LabelledImages) -> dict[str, Timed]:
    """What the three recipes are made of, each for all of these images at once."""
    side, batch = generator.resolution, len(images)
    pixels = to_model_range(images.resized(side).images)
    latents = encode(generator, pixels, batch)
    one = EvaluationBank.draw(generator, latents, images.ids, InvertSettings(eval_draws=1))
    vectors = guesses(images, pixels, generator, DEFAULTS)
    calls: dict[str, Callable[[], object]] = {
        "reference step": plain_inversion_step(load_plain(generator.folder), side, batch, DEFAULTS.tokens),
        "step": inversion_step(generator, side, batch, DEFAULTS.tokens),
        "encode": lambda: encode(generator, pixels, batch),
        "guess": lambda: guesses(images, pixels, generator, DEFAULTS),
        "draw of the bank": lambda: one.loss(generator, vectors, batch),
    }
    return {name: Timed(name, call, batch) for name, call in calls.items()}


def shares(step: Callable[[], object], steps: int) -> dict[str, float]:
    """The share that each of KINDS has of the CPU time of a step, and all else."""
    from torch.profiler import ProfilerActivity, profile

    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
    times = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in found.key_averages()}
    by_kind = {kind: sum(times.get(name, 0.0) for name in names) for kind, names in KINDS.items()}
    whole = sum(times.values())
    return {kind: time / whole for kind, time in (by_kind | {"all else": whole - sum(by_kind.values())}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--tuned-on", type=int, default=8, help="other training images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="images at once where costs are measured")
    parser.add_argument("--every", type=int, default=10, help="steps between two measurements of the loss")
    parser.add_argument("--shares", action="store_true", help="only say where the time of a step goes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.shares:
        mini = Generator.load("mini", device="cpu")
        step = inversion_step(mini, mini.resolution, given.batch, DEFAULTS.tokens)
        for kind, share in shares(step, given.rounds).items():
            print(f"| {kind} | {share:.0%} |")
        return
    generator, exact = (Generator.load("mini", device="cpu", dtype=dtype) for dtype in ("auto", "float32"))
    every = load_images(given.data, limit=given.images + given.tuned_on)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    images, others = every.subset(order[: given.images]), every.subset(order[given.images :])

    pixels = to_model_range(images.resized(generator.resolution).images)
    start = guesses(images, pixels, generator, DEFAULTS)
    goal = float(invert_batch(generator, pixels, start, images.ids, DEFAULTS).losses[-1].mean())
    print(f"goal: {goal:.4f} after {DEFAULTS.steps} steps, n={len(images)} images of {every.name}", flush=True)
    tried = {}
    for rate in RATES:
        brief = FROM_NOISE.model_copy(update={"learning_rate": rate, "steps": TUNING_STEPS})
        tried[rate] = learned(generator, others, brief, TUNING_STEPS).losses[TUNING_STEPS]
    best = min(tried, key=tried.__getitem__)
    print(f"loss after {TUNING_STEPS} steps by rate, n={len(others)}: {tried}; best: {best}", flush=True)
    baseline = learned(generator, images, FROM_NOISE.model_copy(update={"learning_rate": best}), given.every, goal)
    print(f"baseline: {baseline.passed}, {baseline.losses}", flush=True)
    reference = learned(exact, images, FROM_NOISE, given.every, goal)
    print(f"reference: {reference.passed}, {reference.losses}", flush=True)

    timed = parts(generator, load_images(given.data, limit=given.batch))
    measure_in_turn(list(timed.values()), given.rounds)
    draws = (len(curve_steps(DEFAULTS)) + 1) * DEFAULTS.eval_draws
    ours: list[float] = []
    rows: dict[str, tuple[str, list[float]]] = {
        "ours, defaults": (f"{DEFAULTS.steps}", ours),
        "ours, its losses measured too": (f"{DEFAULTS.steps}", []),
        "baseline": (_steps(baseline), []),
        "reference": (_steps(reference), []),
    }
    for number in range(given.rounds):
        cost = {name: part.cpu[number] / part.images for name, part in timed.items()}
        ours.append(cost["encode"] + cost["guess"] + DEFAULTS.steps * cost["step"])
        rows["ours, its losses measured too"][1].append(ours[-1] + draws * cost["draw of the bank"])
        rows["baseline"][1].append(cost["encode"] + (baseline.passed or PAPER_STEPS) * cost["step"])
        rows["reference"][1].append((reference.passed or PAPER_STEPS) * cost["reference step"])
    print(f"\n| to a loss of {goal:.3f} | steps | CPU s an image (n={given.rounds}) | over ours |\n|---|---|---|---|")
    for name, (steps, costs) in rows.items():
        ratios = [cost / own for cost, own in zip(costs, ours, strict=True)]
        ratio = f"{median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"| {name} | {steps} | {median(costs):.2f} ({min(costs):.2f} to {max(costs):.2f}) | {ratio} |")
    print("\n| part, ms an image | median (lowest to highest) |\n|---|---|")
    for name, part in timed.items():
        costs = [1e3 * seconds / part.images for seconds in part.cpu]
        print(f"| {name} | {median(costs):.1f} ({min(costs):.1f} to {max(costs):.1f}) |")


def _steps(curve: Curve) -> str:
    return f"> {PAPER_STEPS:,}" if curve.passed is None else f"{curve.passed:.0f}"


if __name__ == "__main__":
    main()
