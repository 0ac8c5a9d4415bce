"""Stage `figures`: the numbers of mini's card, measured on a target data set it was never trained on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..classifiers import Classifier
from ..config import InvertSettings, SampleSettings, TrainSettings
from ..datasets import load_images
from ..denoising import denoise
from ..engine.progress import track
from ..engine.store import commit_bytes
from ..errors import UsageError
from ..evaluation import evaluate
from ..features import load_lite0
from ..generator import Generator
from ..images import LabelledImages, to_model_range, to_uint8
from ..inversion import invert
from ..sampling import reconstruct
from ..training import train
from .corpus import Corpus
from .vae import image_psnr

PROMPTED_SAMPLES, INVERTED_IMAGES = 10_000, 250
INVERTED_STEPS, GUIDANCE_SCALES = (25, 50, 100, 200), (1.0, 1.5, 2.0, 3.0)
PROMPT_GUIDANCE, INFERENCE_STEPS = 2.0, 16
CLASSIFIER = TrainSettings(architecture="resnet20", steps=2500)
FILE = "figures.json"


def measure(folder: Path, validation: Corpus, target_train: Path, target_test: Path) -> dict[str, Any]:
    """Measure folder/mini and write folder/figures.json; a figure already there for the same weights is kept.

    The ResNet-20 is trained on all of `target_train` (2,500 steps of 128) and kept in `folder`. Nothing is
    selected on `target_test`. Raises UsageError without torchmetrics.
    """
    generator = Generator.load(folder / "mini")
    path = folder / FILE
    real, test = load_images(target_train), load_images(target_test)
    made_from = {
        "generator_hash": generator.hash,
        "target_train": real.digest,
        "target_test": test.digest,
        "constants": [PROMPTED_SAMPLES, INVERTED_IMAGES, INVERTED_STEPS, GUIDANCE_SCALES, PROMPT_GUIDANCE],
        "judge": CLASSIFIER.model_dump(mode="json"),
    }
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if found.get("made_from") != json.loads(json.dumps(made_from)):
        found = {"made_from": made_from, "summary": {}}
    classifier = _classifier(folder, real)

    def keep(name: str, compute: Callable[[], dict[str, Any]], describe: Callable[[dict[str, Any]], str]) -> None:
        if name not in found:
            started = time.monotonic()
            found[name] = compute() | {"seconds": round(time.monotonic() - started)}
        found["summary"][name] = describe(found[name])
        commit_bytes(path, (json.dumps(found, indent=2) + "\n").encode())

    keep(
        "autoencoder",
        lambda: autoencoder_figures(generator, classifier, test),
        lambda f: (
            f"PSNR {f['psnr_db']:.2f} dB on {f['n']:,} test images; ResNet-20 accuracy {100 * f['accuracy']:.1f} % "
            f"on originals, {100 * f['accuracy_autoencoded']:.1f} % on autoencoded (the same classifier)"
        ),
    )
    keep(
        "inversion",
        lambda: inversion_figures(generator, classifier, real, folder / "inversion"),
        _describe_inversion,
    )
    keep(
        "fid_lite0",
        lambda: fid_figures(generator, validation),
        lambda f: (
            f"{f['fid_lite0']:.4g} for {f['n']:,} prompted samples (guidance {f['guidance_scale']:g}, "
            f"{f['inference_steps']} DPM-Solver++ steps) against {f['n_real']:,} validation images"
        ),
    )
    return found


def autoencoder_figures(generator: Generator, classifier: Classifier, test: LabelledImages) -> dict[str, Any]:
    """PSNR in dB of decode(encode(x)), and the classifier's accuracy on x and on it."""
    decoded = []
    with track("autoencode", len(test)) as advance:
        for chunk in test.images.split(250):
            decoded.append(to_uint8(generator.decode(generator.encode(to_model_range(chunk)).mean)).cpu())
            advance(len(chunk))
    autoencoded = _with_pixels(test, torch.cat(decoded))
    return {
        "n": len(test),
        "psnr_db": float(image_psnr(autoencoded.images, test.images).mean()),
        "accuracy": evaluate(classifier, test).accuracy,
        "accuracy_autoencoded": evaluate(classifier, autoencoded).accuracy,
    }


def inversion_figures(
    generator: Generator, classifier: Classifier, real: LabelledImages, folder: Path
) -> dict[str, Any]:
    """Share of reconstructions (lambda = alpha = 0) to which the classifier gives their source's label.

    At every kept step and guidance scale: the table from which the defaults of `--steps` and `--guidance-scales` were
    chosen. Its images are training images of the target, never test images.
    """
    per_class = INVERTED_IMAGES // len(real.class_names)
    rows = [row for k in range(len(real.class_names)) for row in (real.labels == k).nonzero()[:per_class, 0].tolist()]
    sources = real.subset(rows)
    settings = InvertSettings(steps=INVERTED_STEPS[-1], keep_steps=INVERTED_STEPS)
    embeddings = invert(sources, generator, folder / generator.hash[:12], settings)
    agreement: dict[str, dict[str, float]] = {}
    for step in INVERTED_STEPS:
        agreement[str(step)] = {}
        for scale in GUIDANCE_SCALES:
            drawn = reconstruct(embeddings, generator, SampleSettings(guidance_scales=(scale,), kept_steps=(step,)))
            agreement[str(step)][f"{scale:g}"] = evaluate(classifier, _with_pixels(sources, drawn)).accuracy
    losses = dict(zip(map(str, embeddings.curve_steps), embeddings.losses.mean(1).tolist(), strict=True))
    return {
        "n": len(sources),
        "agreement": agreement,
        "agreement_source": evaluate(classifier, sources).accuracy,
        "null_loss": float(embeddings.null_losses.mean()),
        "loss": losses,
    }


def _describe_inversion(found: dict[str, Any]) -> str:
    step, scale = str(InvertSettings().steps), f"{SampleSettings().guidance_scales[0]:g}"
    table = found["agreement"]
    best_step, best_scale = max(((s, g) for s in table for g in table[s]), key=lambda key: table[key[0]][key[1]])
    return (
        f"source's label given to {100 * table[step][scale]:.1f} % of {found['n']:,} reconstructions at the defaults "
        f"({step} steps, guidance {scale}), {100 * table[best_step][best_scale]:.1f} % at best ({best_step} steps, "
        f"guidance {best_scale}), {100 * found['agreement_source']:.1f} % of the sources themselves; bank loss: empty "
        f"{found['null_loss']:.3f}, adapter {found['loss']['0']:.3f}, {step} steps {found['loss'][step]:.3f}"
    )


def fid_figures(generator: Generator, validation: Corpus) -> dict[str, Any]:
    """Frechet distance on pooled Lite0 features, not the standard FID, between prompted samples and real images."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise UsageError(
            "the stage figures needs torchmetrics, which no extra brings but dev. Install it: pip install torchmetrics."
        ) from error

    metric = FrechetInceptionDistance(feature=_PooledLite0(), normalize=False, input_img_size=(3, 32, 32))
    with track("real features", len(validation.images)) as advance:
        for chunk in validation.images.split(100):
            metric.update(chunk, real=True)
            advance(len(chunk))
    names = [validation.names[i % len(validation.names)] for i in range(PROMPTED_SAMPLES)]
    stream = torch.Generator().manual_seed(0)
    with track("prompted samples", PROMPTED_SAMPLES) as advance:
        for start in range(0, PROMPTED_SAMPLES, 200):
            batch = names[start : start + 200]
            metric.update(prompted(generator, batch, stream), real=False)
            advance(len(batch))
    return {
        "n": PROMPTED_SAMPLES,
        "n_real": len(validation.images),
        "guidance_scale": PROMPT_GUIDANCE,
        "inference_steps": INFERENCE_STEPS,
        "fid_lite0": float(metric.compute()),
    }


def prompted(generator: Generator, names: Sequence[str], stream: torch.Generator) -> Tensor:
    """One image per class name, drawn from "a photo of a <name>": uint8 (B, 3, R, R)."""
    tokens = generator.text_tokens([f"a photo of a {name}" for name in names])
    side = generator.resolution // generator.vae_factor
    noise = torch.randn(len(tokens), generator.latent_channels, side, side, generator=stream)
    scales = torch.full((len(tokens),), PROMPT_GUIDANCE)
    empty = generator.text_tokens([""]).expand_as(tokens)
    latents = denoise(generator, noise, tokens, empty, scales, "dpm++", INFERENCE_STEPS)
    return to_uint8(generator.decode(latents)).cpu()


def prompt_grid(generator: Generator, names: Sequence[str], rows: int = 5) -> Tensor:
    """`rows` draws of every name, one name a column, enlarged twice: uint8 (3, H, W)."""
    from torchvision.utils import make_grid

    drawn = prompted(generator, [name for _ in range(rows) for name in names], torch.Generator().manual_seed(0))
    grid: Tensor = make_grid(drawn, nrow=len(names), padding=2, pad_value=255)
    return grid.repeat_interleave(2, 1).repeat_interleave(2, 2)


class _PooledLite0(nn.Module):
    """uint8 (B, 3, 32, 32) to pooled Lite0 features (B, 1280) at 128 px."""

    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        self.lite0 = load_lite0()

    def forward(self, images: Tensor) -> Tensor:
        from ..features import profile

        return profile(self.lite0, to_model_range(images))[:, -self.num_features :]


def _classifier(folder: Path, real: LabelledImages) -> Classifier:
    """The ResNet-20 that judges: trained once on all real target images."""
    path = folder / f"judge-{real.digest[:8]}-{CLASSIFIER.steps}.safetensors"
    if not path.is_file():
        with track("train the judge", CLASSIFIER.steps, "steps") as advance:
            train(real, settings=CLASSIFIER, on_step=lambda step, loss: advance(1)).save(path)
    return Classifier.load(path)


def _with_pixels(images: LabelledImages, pixels: Tensor) -> LabelledImages:
    """The same labels and ids over other pixels."""
    return replace(images, images=pixels)
