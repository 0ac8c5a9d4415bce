"""How fast a GPU learns and samples, against the path without graphs and against the card's own matrix product.

    python benchmarks/gpu_speed.py           # on CUDA, about a minute
    python benchmarks/gpu_speed.py --toy     # the same lines on a CPU, tiny: does it run?

Medians of 5 timings (lowest to highest), clocks read when the card is done. `mini` at its own size: image-steps of
stage 1 a second, images a second of stage 2 at the default scheduler and steps, without guidance, decoded. "Before" is
the path without graphs, its draws from the streams of a CPU. Then the UNet of Stable Diffusion 1.4 with random weights
at 128 px: the floating-point operations of a step (PyTorch's own counter) a second, and their share of a large product.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.engine.graphs import WARM_CALLS
from diffusion_inversion.generator.device import bfloat16_is_fast, describe
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.run.bench.ours import inversion_step
from diffusion_inversion.run.bench.sd14 import ARCHITECTURE
from diffusion_inversion.sample.denoising import denoise

REPEATS, TOKENS = 5, 5
SAMPLE = SampleSettings()


def seconds(call: Callable[[], object], device: torch.device, times: int, warm: int = WARM_CALLS + 2) -> list[float]:
    """Seconds of one call, of each of 5 timings of `times` calls, after `warm` calls."""
    found = []
    for number in range(REPEATS + 1):
        finish(device)
        start, count = time.perf_counter(), times if number else warm
        for _ in range(count):
            call()
        finish(device)
        found.append((time.perf_counter() - start) / count)
    return found[1:]


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def line(name: str, values: list[float], unit: str, note: str = "") -> None:
    """Print the median of rates and their range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    print(f"{name:58} {middle:12,.1f} {unit:16} ({low:,.1f} to {high:,.1f}, n={len(values)}){note}", flush=True)


def without_graphs(generator: Generator) -> Generator:
    """The generator, whose UNet is from now on launched kernel by kernel."""
    generator.__dict__["_recorded"] = generator._predict  # in place of the cached property
    return generator


def product(device: torch.device, side: int) -> float:
    """TFLOP/s of a product of two square bfloat16 matrices, float32 where the device has no such arithmetic."""
    dtype = torch.bfloat16 if bfloat16_is_fast(device) else torch.float32
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    taken = seconds(lambda: torch.mm(a, b), device, 20)
    rates = [2 * side**3 / t / 1e12 for t in taken]
    line(f"product of {side} x {side}, {str(dtype).removeprefix('torch.')}", rates, "TFLOP/s")
    return statistics.median(rates)


def sampling(generator: Generator, batch: int) -> Callable[[], object]:
    side = generator.resolution // generator.vae_factor
    noise = torch.randn(batch, generator.latent_channels, side, side)
    vectors = 0.1 * torch.randn(batch, TOKENS, generator.text_width)
    ones = torch.ones(batch)

    def draw() -> torch.Tensor:
        latents = denoise(generator, noise, vectors, vectors, ones, SAMPLE.scheduler, SAMPLE.inference_steps)
        return generator.decode(latents).cpu()

    return draw


def mini(device: torch.device, batches: tuple[int, ...], times: int) -> None:
    now, before = Generator.load("mini", device=str(device)), without_graphs(Generator.load("mini", device=str(device)))
    for batch in batches:
        for name, generator, streams in (("now", now, False), ("before", before, True)):
            step = inversion_step(generator, generator.resolution, batch, TOKENS, streams=streams)
            taken = seconds(step, device, 1 if streams else times, 2 if streams else WARM_CALLS + 2)
            line(f"mini, stage 1, batch {batch}, {name}", [batch / t for t in taken], "image-steps/s")
            taken = seconds(sampling(generator, batch), device, 1, 2)
            line(f"mini, stage 2, batch {batch}, {name}", [batch / t for t in taken], "images/s")


def real_size(device: torch.device, batches: tuple[int, ...], times: int, peak: float, toy: bool) -> None:
    """The UNet of SD 1.4 (of mini in the toy) with random weights, made on the device."""
    generator = random_generator(device, toy)
    for batch in batches:
        try:
            learning_and_sampling(generator, batch, times, peak)
        except torch.OutOfMemoryError:
            print(f"SD 1.4, batch {batch}: more than the card's memory", flush=True)
        generator._recorded.release()
        gc.collect()


def learning_and_sampling(generator: Generator, batch: int, times: int, peak: float) -> None:
    device, side = generator.device, 16 * generator.vae_factor
    step = inversion_step(generator, side, batch, TOKENS)
    flops = operations(step)  # its first calls are not recorded yet
    report(f"SD 1.4, stage 1, {side} px, batch {batch}", seconds(step, device, times), batch, flops, peak)
    del step
    gc.collect()
    latents = torch.randn(batch, generator.latent_channels, 16, 16, device=device)
    timesteps = torch.full((batch,), 500, device=device)
    vectors = 0.1 * torch.randn(batch, TOKENS, generator.text_width, device=device)

    @torch.no_grad()
    def predict() -> None:
        generator.predict(latents, timesteps, vectors)

    flops = operations(predict)
    taken = seconds(predict, device, times)
    report(f"SD 1.4, a denoising step, {side} px, batch {batch}", taken, batch, flops, peak)


def operations(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def report(name: str, taken: list[float], batch: int, flops: float, peak: float) -> None:
    rates = [flops / t / 1e12 for t in taken]
    share = statistics.median(rates) / peak
    each = 1000 * statistics.median(taken) / batch
    line(name, rates, "TFLOP/s", f" {share:.1%} of the product, {each:.3f} ms an image")


def random_generator(device: torch.device, toy: bool) -> Generator:
    """A generator without text encoder: nothing that is measured here reads a text."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = Path(sys.modules[Generator.__module__].__file__ or "").parent / "weights" / "mini" if toy else ARCHITECTURE
    dtype = torch.bfloat16 if bfloat16_is_fast(device) else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        vae, unet = (
            kind.from_config(json.loads((folder / part / "config.json").read_text()))
            for kind, part in ((AutoencoderKL, "vae"), (UNet2DConditionModel, "unet"))
        )
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    text, tokenizer = torch.nn.Identity(), None
    unet = torch.nn.Module.to(unet, dtype)  # not `unet.to`, where diffusers warns
    return Generator("random", str(folder), None, "0" * 64, vae, unet, text, tokenizer, scheduler, None, device, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="on a CPU, tiny")
    toy = parser.parse_args().toy
    if not toy and not torch.cuda.is_available():
        sys.exit("gpu_speed: no CUDA here. --toy runs the same lines on a CPU.")
    started = time.perf_counter()
    device = torch.device("cpu" if toy else "cuda")
    print(f"{describe(device)}; PyTorch {torch.__version__}, Python {platform.python_version()}", flush=True)
    peak = product(device, 256 if toy else 8192)
    mini(device, (2, 4) if toy else (64, 256, 512), 1 if toy else 10)
    real_size(device, (1,) if toy else (16, 64, 128), 1 if toy else 3, peak, toy)
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
