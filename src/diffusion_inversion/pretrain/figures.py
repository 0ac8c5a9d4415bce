"""Stage `figures`: what generators can do, measured side by side on images that none of them was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.training import TrainSettings
from ..data.datasets import load_images
from ..data.images import LabelledImages
from ..data.naming import safe_name
from ..data.sources import BUILTINS
from ..engine.store import commit_bytes
from ..errors import UsageError
from ..generator.generator import Generator
from ..measure.extractors.lite0 import open_lite0
from ..randomness import shuffled
from ..train.classifiers import Classifier
from .corpus import Corpus
from .domains import AUTOENCODED, GUESS, domain_figures, drawn_at, learned
from .figures_text import CORPUS, TARGET, figures_markdown, short
from .judge import CLASSIFIER, CLASSIFIER_SEEDS, CLASSIFIER_SIZE, JUDGE, accuracy_lost, recognised, share, trained
from .likeness import COMMON_SIZES, FeatureDistance, autoencoder_figures, through_autoencoder
from .pieces import Pieces
from .quality import INFERENCE_STEPS, PROMPT_GUIDANCE, quality_figures

FILE, TEXT, PICTURES, WORK = "figures.json", "figures.md", "figures", "work"
Data = str | Path
Classifiers = Callable[[], Sequence[Classifier]]


@dataclass(frozen=True)
class Amounts:
    """How much of everything is measured."""

    sources: int = 1000  # images of the target whose label is looked for, an equal share a class
    images: int = 100  # training images a domain, an equal share a class
    samples: int = 10_000  # prompted samples
    autoencoded: int = 1000  # held-out images of the corpus that go through the autoencoder
    steps: tuple[int, ...] = (25, 50, 100)
    guidance_scales: tuple[float, ...] = (1.0, 1.5, 2.0)  # diffusers' convention, 1 = off
    judge: TrainSettings = JUDGE
    classifier: TrainSettings = CLASSIFIER
    seeds: tuple[int, ...] = CLASSIFIER_SEEDS


@dataclass(frozen=True)
class Measured:
    """What is measured beside the held-out images; see `measure`."""

    target_train: str | None = None
    target_test: str | None = None
    judge: Path | None = None
    domains: Mapping[str, str] = field(default_factory=dict)  # name => DATA
    tests: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)  # label => another generator
    amounts: Amounts = field(default_factory=Amounts)


def measure(
    folder: Path,
    heldout: Corpus | None = None,
    target_train: Data | None = None,
    target_test: Data | None = None,
    *,
    generators: Mapping[str, Generator],
    judge: Path | None = None,
    domains: Mapping[str, Data] | None = None,
    tests: Mapping[str, Data] | None = None,
    amounts: Amounts | None = None,
) -> dict[str, Any]:
    """Measure generators side by side; write `folder`/figures.json, figures.md and figures/*.png; return the JSON.

    What is not given is not measured. A piece that is in figures.json for the same inputs is kept, so the same call
    goes on after a kill, and one with a generator or a data set more measures that alone. Call it inside `run_lock`.

    heldout: images that no generator saw, with class names for the prompts: quality of samples, autoencoder.
    target_train, target_test: DATA whose labels a judge looks for in reconstructions of training images
        (CIFAR-10). Nothing is selected on the test images: they say how good the judge is, and what the autoencoder
        costs it.
    generators: label => generator.
    judge: a file of `Classifier.save`, of the target's classes, for any side; default: one is trained on all of
        `target_train` (`Amounts.judge`) and kept in `folder`.
    domains: name => DATA, whose training images are learned and drawn again.
    tests: name => DATA with held-out images of domains (a built-in name: its test part, else all of DATA): what the
        autoencoder costs them, in accuracy of ResNet-20s trained on the domain's training images too.

    Raises UsageError for parts that lack another (also torchmetrics, for `heldout`), DataError for data.
    """
    domains, tests = dict(domains or {}), dict(tests or {})
    if (target_train is None) != (target_test is None):
        raise UsageError("target train and target test: give both; the judge's own accuracy stands beside its figures.")
    if judge is not None and target_train is None:
        raise UsageError(f"judge {judge}: nothing to judge. Give the target's training and test images.")
    if strange := sorted(tests.keys() - domains.keys()):
        raise UsageError(f"test images of {', '.join(strange)}: no such domain. Give its training images by that name.")
    call = _Call(folder, generators, amounts or Amounts(), list(domains), list(tests))
    if target_train is not None and target_test is not None:
        call.target(load_images(target_train), _held_out(target_test), judge)
    for name, data in domains.items():
        call.domain(name, load_images(data, limit=call.amounts.images))
    for name, data in tests.items():
        test = _held_out(data)
        call.specialised(name, load_images(domains[name], size=min(CLASSIFIER_SIZE, test.size)), test)
    if heldout is not None:
        call.corpus(heldout.images, heldout.names)
    return call.finish()


class _Call:
    """One call of `measure`: what its pieces share."""

    def __init__(
        self,
        folder: Path,
        generators: Mapping[str, Generator],
        amounts: Amounts,
        domains: Sequence[str],
        tests: Sequence[str],
    ) -> None:
        described = {
            "generators": [_described(label, generator) for label, generator in generators.items()],
            "domains": list(domains),
            "tests": list(tests),
            "steps": [GUESS, *amounts.steps],
            "guidance_scales": list(amounts.guidance_scales),
            "sizes": list(COMMON_SIZES),
            "sampler": {"guidance_scale": PROMPT_GUIDANCE, "inference_steps": INFERENCE_STEPS},
        }
        self.folder, self.generators, self.amounts = folder, list(generators.values()), amounts
        self.pieces = Pieces(folder / FILE, described)
        self._distance: FeatureDistance | None = None

    def target(self, real: LabelledImages, test: LabelledImages, judge: Path | None) -> None:
        """Label agreement at every step and guidance scale, and what the autoencoder costs the judge."""
        keep, amounts = self.pieces.keep, self.amounts
        path = judge or trained(self.folder, "judge", real, amounts.judge)
        classifier = Classifier.load(path)
        sources = balanced(real, amounts.sources)
        judged_by = {"judge": hashlib.sha256(path.read_bytes()).hexdigest(), "tested_on": test.digest}
        inputs = {"judge": judged_by["judge"], "sources": sources.digest}
        keep("judge", judged_by, lambda: _judge_figures(classifier, test))
        keep("agreement/sources", inputs, lambda: share(recognised(classifier, sources, sources.images)))

        def of_autoencoded(generator: Generator) -> dict[str, Any]:
            return share(recognised(classifier, sources, through_autoencoder(generator, sources.images)))

        def of_drawn(generator: Generator, step: int, scale: float) -> dict[str, Any]:
            embeddings, ordered = learned(generator, sources, amounts.steps, self._work(TARGET, generator, sources))
            return share(recognised(classifier, ordered, drawn_at(embeddings, generator, step, scale)))

        for generator in self.generators:
            key = f"agreement/{short(generator.hash)}"
            of: dict[str, Any] = {**inputs, "generator": generator.record}
            keep(f"{key}/{AUTOENCODED}", of, partial(of_autoencoded, generator))
            of["steps"] = list(amounts.steps)
            for step in (GUESS, *amounts.steps):
                for scale in amounts.guidance_scales:
                    keep(f"{key}/{step}/{scale:g}", of, partial(of_drawn, generator, step, scale))
        self._autoencoder(TARGET, test, judged_by, lambda: [classifier])

    def domain(self, name: str, sources: LabelledImages) -> None:
        """Bank loss and likeness of every generator on one domain."""
        for generator in self.generators:
            picture = self.folder / PICTURES / f"{safe_name(name)}-{short(generator.hash)}.png"
            inputs = {"generator": generator.record, "sources": sources.digest, "side": sources.size}
            self.pieces.keep(
                f"domain/{name}/{short(generator.hash)}",
                {**inputs, "steps": list(self.amounts.steps), "sizes": list(COMMON_SIZES)},
                partial(self._domain, name, sources, generator, picture),
                files=[picture],
            )

    def _domain(self, name: str, sources: LabelledImages, generator: Generator, picture: Path) -> dict[str, Any]:
        if self._distance is None:
            self._distance = FeatureDistance()
        work = self._work(name, generator, sources)
        return domain_figures(generator, sources, self.amounts.steps, COMMON_SIZES, work, picture, self._distance)

    def specialised(self, name: str, real: LabelledImages, test: LabelledImages) -> None:
        """What the autoencoders cost classifiers that were trained on all real training images of a domain."""
        settings, seeds = self.amounts.classifier, self.amounts.seeds
        inputs = {"trained_on": real.digest, "size": real.size, "settings": settings.model_dump(mode="json")}

        def classifiers() -> list[Classifier]:
            files = [trained(self.folder, f"classifier-{safe_name(name)}", real, settings, seed) for seed in seeds]
            return [Classifier.load(file) for file in files]

        self._autoencoder(name, test, {**inputs, "seeds": list(seeds)}, classifiers)

    def _autoencoder(self, name: str, test: LabelledImages, judged_by: dict[str, Any], judges: Classifiers) -> None:
        def compute(generator: Generator) -> dict[str, Any]:
            decoded = through_autoencoder(generator, test.images)
            return {
                **autoencoder_figures(decoded, test.images, COMMON_SIZES),
                **accuracy_lost(judges(), test, decoded),
            }

        for generator in self.generators:
            inputs = {**judged_by, "images": test.digest, "side": test.size, "generator": generator.record}
            inputs["sizes"] = list(COMMON_SIZES)
            self.pieces.keep(f"autoencoder/{name}/{short(generator.hash)}", inputs, partial(compute, generator))

    def corpus(self, images: Tensor, names: Sequence[str]) -> None:
        """Quality of prompted samples, and the autoencoder, on held-out images uint8 (N, 3, S, S) of the corpus."""
        amounts = self.amounts
        digest = hashlib.sha256(images.contiguous().numpy().data).hexdigest()
        some = images[torch.linspace(0, len(images) - 1, min(amounts.autoencoded, len(images))).round().long()]
        sizes = [size for size in COMMON_SIZES if size <= images.shape[-1]] or [images.shape[-1]]

        def of_autoencoder(generator: Generator) -> dict[str, Any]:
            return autoencoder_figures(through_autoencoder(generator, some), some, sizes)

        def of_samples(generator: Generator) -> dict[str, Any]:
            extractor = open_lite0(generator.device)
            cache = self.folder / "features"
            return quality_figures(generator, images, names, amounts.samples, sizes, cache, extractor)

        for generator in self.generators:
            inputs: dict[str, Any] = {"generator": generator.record, "images": digest, "sizes": sizes}
            key = short(generator.hash)
            self.pieces.keep(
                f"autoencoder/{CORPUS}/{key}", {**inputs, "n": len(some)}, partial(of_autoencoder, generator)
            )
            inputs |= {"names": list(names), "n": amounts.samples, "sampler": [PROMPT_GUIDANCE, INFERENCE_STEPS]}
            self.pieces.keep(f"quality/{key}", inputs, partial(of_samples, generator))

    def finish(self) -> dict[str, Any]:
        """Commit the file and its text."""
        self.pieces.save()
        commit_bytes(self.folder / TEXT, figures_markdown(self.pieces.content).encode())
        return self.pieces.content

    def _work(self, name: str, generator: Generator, sources: LabelledImages) -> Path:
        """The folder of the vectors of some sources; other sources or steps have another."""
        made_from = [generator.record, sources.digest, sources.size, self.amounts.steps]
        key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]
        return self.folder / WORK / f"{safe_name(name)}-{short(generator.hash)}-{key}"


def _judge_figures(judge: Classifier, test: LabelledImages) -> dict[str, Any]:
    found = share(recognised(judge, test, test.images))
    return {**found, "architecture": judge.architecture, "size": judge.image_size}


def _described(label: str, generator: Generator) -> dict[str, Any]:
    return {
        "label": label,
        **generator.record,
        "resolution": generator.resolution,
        "vae_factor": generator.vae_factor,
        "latent_channels": generator.latent_channels,
        "unet_parameters": sum(parameter.numel() for parameter in generator.unet.parameters()),
        "adapter": generator.adapter is not None,
    }


def balanced(images: LabelledImages, count: int) -> LabelledImages:
    """`count` images, an equal share a class as far as it goes, chosen by id; all where there are no more."""
    label_of = dict(zip(images.ids, images.labels.tolist(), strict=True))
    row_of = {image_id: row for row, image_id in enumerate(images.ids)}
    place: dict[int, int] = dict.fromkeys(label_of.values(), 0)
    ranked = []
    for image_id in shuffled(images.ids, seed=0):
        label = label_of[image_id]
        ranked.append((place[label], label, row_of[image_id]))
        place[label] += 1
    return images.subset(sorted(row for _, _, row in sorted(ranked)[:count]))


def _held_out(data: Data) -> LabelledImages:
    """The test part of a built-in data set, else all of DATA."""
    return load_images(data, split="test" if data in BUILTINS else "train")
