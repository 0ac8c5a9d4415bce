"""`dinv bench real-size`: our path against the plain diffusers loop, on networks of Stable Diffusion's size."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...engine.graphs import WARM_CALLS
from ...errors import UsageError
from ...generator.checkpoints import read_config
from ...generator.device import describe
from ...generator.generator import Generator
from .memory import peak_rss_gb
from .ours import inversion_step, sampling_step
from .plain import encode_prompts, load_plain, plain_inversion_step, plain_sampling_step
from .timing import Timed, measure_in_turn

TOKENS, GUIDANCE = 5, 3.0  # the paper's vectors and its w = 2
DECODES = 2  # times that a decoder is measured: at 512 px it takes as long as three steps
# What the paper counts for one image of the data set (sections 3, C.1).
PAPER_LEARNING_STEPS, PAPER_VARIANTS, PAPER_SAMPLING_STEPS = 3000, 45, 100
AIMS = {
    "invert_step_ratio_128": "<= 0.35",
    "sample_step_ratio_128": "<= 0.5",
    "sampling_ratio_512_256": ">= 5",
    "sampling_ratio_512_128": ">= 20",
    "peak_rss_gb": "<= 5",
}


@dataclass(frozen=True)
class Plan:
    """What is measured: sides in px, ascending; images side by side; rounds; precision of our UNet; where."""

    sizes: tuple[int, ...] = (128, 256, 512)
    batch: int = 4
    repeats: int = 5
    dtype: str = "auto"
    device: str = "cpu"


def real_size(checkpoint: Path, plan: Plan) -> dict[str, Any]:
    """Measure and return everything as JSON data; keys carry the side in px, ratios are of CPU
    seconds, on a GPU of seconds on the clock.

    The first of `sizes` is the one at which the two paths are compared, the last is text-prompted Stable Diffusion's
    own. Raises what `check` raises.
    """
    check(checkpoint, plan)
    torch.manual_seed(0)
    generator = Generator.load(checkpoint, device=plan.device, dtype=plan.dtype)
    on_gpu = generator.device.type == "cuda"
    name = "peak_gpu_gb" if on_gpu else "peak_rss_gb"
    peak = peak_gpu_gb(generator, plan) if on_gpu else peak_rss_gb(checkpoint, plan.sizes[0], plan.batch, plan.dtype)
    print(f"bench: peak of an inversion at {plan.sizes[0]} px: {peak:.2f} GB", file=sys.stderr, flush=True)
    tasks = make_tasks(generator, load_plain(checkpoint, generator.device), plan)
    measure_in_turn(list(tasks.values()), plan.repeats)
    return {
        **ratios(tasks, plan),
        name: round(peak, 2),
        "projected_seconds": projection(tasks, plan),
        "measured": {name: task.record() for name, task in tasks.items()},
        "batch": plan.batch,
        "guidance_scale": GUIDANCE,
        "tokens": TOKENS,
        "dtype": generator.record["dtype"],
        "threads": torch.get_num_threads(),
        "device": describe(generator.device),
        "generator_hash": generator.hash,
    }


def peak_gpu_gb(generator: Generator, plan: Plan) -> float:
    """Peak memory of the GPU in GB (1e9 bytes) with the networks and an inversion of a batch at the first size."""
    torch.cuda.reset_peak_memory_stats(generator.device)
    step = inversion_step(generator, plan.sizes[0], plan.batch, TOKENS)
    for _ in range(WARM_CALLS + 1):
        step()
    return torch.cuda.max_memory_allocated(generator.device) / 1e9


def check(checkpoint: Path, plan: Plan) -> None:
    """Raise UsageError for sizes that are too few, not ascending, or that VAE and UNet cannot divide, by their configs.

    checkpoint: a diffusers folder, whose weights need not be there.
    """
    if len(plan.sizes) < 2 or list(plan.sizes) != sorted(set(plan.sizes)):
        raise UsageError(f"sizes={plan.sizes}: give at least two, ascending, such as 128,256,512.")
    cells = 1
    for part in ("vae", "unet"):
        path = checkpoint / part / "config.json"
        blocks = read_config(path).get("block_out_channels")
        if not isinstance(blocks, list) or not blocks:
            raise UsageError(f"{path}: has no list of block_out_channels. Use the config of the original checkpoint.")
        cells *= 2 ** (len(blocks) - 1)
    wrong = [size for size in plan.sizes if size <= 0 or size % cells]
    if wrong:
        raise UsageError(f"sizes={wrong}: not positive multiples of {cells}, which VAE and UNet need.")


def make_tasks(generator: Generator, pipeline: Any, plan: Plan) -> dict[str, Timed]:
    """Everything that is measured, by name.

    The two paths are compared at the same batch. For the ratios between sizes every batch has the same number of
    pixels, hence the same memory; single images are measured beside them.
    """
    small, large = plan.sizes[0], plan.sizes[-1]
    text_length = generator.tokenizer.model_max_length
    found: list[Timed] = []

    def ours(name: str, side: int, batch: int, tokens: int = TOKENS, scale: float = GUIDANCE) -> None:
        found.append(Timed(name, sampling_step(generator, side, batch, tokens, scale), batch))

    b = plan.batch
    found.append(Timed(f"plain_invert_{small}", plain_inversion_step(pipeline, small, b, TOKENS), b))
    found.append(Timed(f"ours_invert_{small}", inversion_step(generator, small, b, TOKENS), b))
    found.append(Timed(f"plain_sample_{small}", plain_sampling_step(pipeline, small, b, GUIDANCE), b))
    ours(f"ours_sample_{small}", small, b)
    ours(f"ours_sample_{small}_guidance_1", small, b, scale=1.0)
    ours(f"step_{large}_text", large, 1, text_length)
    for side in plan.sizes:
        ours(f"step_{side}", side, (large // side) ** 2)
        if side < large:
            ours(f"step_{side}_single", side, 1)
            images = (large // side) ** 2
            found.append(Timed(f"invert_{side}", inversion_step(generator, side, images, TOKENS), images))
        latents = torch.randn(1, generator.latent_channels, *[side // generator.vae_factor] * 2)
        found.append(Timed(f"decode_{side}", partial(generator.decode, latents), repeats=DECODES))
    found.append(Timed("text_encoder", lambda: encode_prompts(pipeline, 1)))
    for task in found:
        task.on_gpu = generator.device.type == "cuda"
    return {task.name: task for task in found}


def ratios(tasks: dict[str, Timed], plan: Plan) -> dict[str, float]:
    """Ours over the plain loop (smaller is better), and an image at the largest side over one at the others."""
    small, large = plan.sizes[0], plan.sizes[-1]

    def over(a: str, b: str) -> float:
        return round(tasks[a].cost_per_image / tasks[b].cost_per_image, 3)

    found = {
        f"invert_step_ratio_{small}": over(f"ours_invert_{small}", f"plain_invert_{small}"),
        f"sample_step_ratio_{small}": over(f"ours_sample_{small}", f"plain_sample_{small}"),
        f"sample_step_ratio_{small}_guidance_1": over(f"ours_sample_{small}_guidance_1", f"plain_sample_{small}"),
    }
    text = tasks["text_encoder"].cost_per_image / PAPER_SAMPLING_STEPS  # once for an image, not for a step
    with_text = tasks[f"step_{large}_text"].cost_per_image + text
    for side in plan.sizes[-2::-1]:
        step = tasks[f"step_{side}"].cost_per_image
        found[f"sampling_ratio_{large}_{side}"] = round(with_text / step, 2)
        found[f"sampling_ratio_{large}_{side}_without_text"] = round(tasks[f"step_{large}"].cost_per_image / step, 2)
        found[f"sampling_ratio_{large}_{side}_single"] = round(
            with_text / tasks[f"step_{side}_single"].cost_per_image, 2
        )
    return found


def projection(tasks: dict[str, Timed], plan: Plan) -> dict[str, dict[str, float]]:
    """Seconds (as ratios) of 45 variants of one image (figure 4): 3,000 learning steps and 45 x 100 denoising steps
    with the decoder, against 45 text-prompted images of the largest side. Our path on both sides."""
    large = plan.sizes[-1]

    def drawing(step: str, side: int) -> float:
        one = PAPER_SAMPLING_STEPS * tasks[step].cost_per_image + tasks[f"decode_{side}"].cost_per_image
        return PAPER_VARIANTS * one

    standard = drawing(f"step_{large}_text", large) + PAPER_VARIANTS * tasks["text_encoder"].cost_per_image
    found = {f"stable_diffusion_{large}": {"sampling": round(standard, 1), "total": round(standard, 1)}}
    for side in plan.sizes[:-1]:
        learning, sampling = (
            PAPER_LEARNING_STEPS * tasks[f"invert_{side}"].cost_per_image,
            drawing(f"step_{side}", side),
        )
        total = learning + sampling
        found[f"inversion_{side}"] = {
            "learning": round(learning, 1),
            "sampling": round(sampling, 1),
            "total": round(total, 1),
            "faster": round(standard / total, 2),
        }
    return found


def table(result: dict[str, Any]) -> str:
    """The result as lines of text."""
    lines = []
    for name, value in result.items():
        if "ratio" in name or name in ("peak_rss_gb", "peak_gpu_gb"):
            aim = f"  (aim {AIMS[name]})" if name in AIMS else ""
            lines.append(f"{name:45} {value}{aim}")
    for name, parts in result["projected_seconds"].items():
        lines.append(f"{name:45} {', '.join(f'{key} {value:g}' for key, value in parts.items())}")
    for name, row in result["measured"].items():
        lines.append(
            f"{name:45} {row['cpu_seconds_per_image']:.4f} CPU s, {row['wall_seconds_per_image']:.5f} s an image "
            f"({row['images']} at once, n={row['n']})"
        )
    return "\n".join(lines)
