"""Ways in which a cell's images come other than around vectors, as the file's sections ask for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..config.commands import GanInvertSettings, GanSampleSettings, LecfSettings
from ..config.sampling import PromptSettings, RetrieveSettings
from ..data.sources import absolute
from ..errors import UsageError
from ..run.replicates import drawn_anew, seed_of
from ..sample.prompting import CLASS
from ..train.few_shot.clip_files import MINI_CLIP


@dataclass(frozen=True)
class Prompted:
    """What images are drawn from: a template with {class}, or a file of lines class<TAB>prompt; and how."""

    prompts: str
    drawing: PromptSettings


@dataclass(frozen=True)
class Lecf:
    """How images of sentences are drawn, and filtered at one threshold."""

    filtering: LecfSettings
    drawing: PromptSettings


@dataclass(frozen=True)
class OfGan:
    """Images of a GAN's weights: of latents at random, or of those nearest to the training images."""

    weights: str
    settings: GanSampleSettings | GanInvertSettings


Way = RetrieveSettings | Lecf | Prompted | OfGan  # settings of retrieval have one k
SECTIONS: dict[type[Any], str] = {RetrieveSettings: "retrieve", Lecf: "lecf", Prompted: "prompts", OfGan: "gan"}


def read_way(sections: Mapping[str, Mapping[str, Any]]) -> Way | None:
    """The way that one of `SECTIONS` asks for; None: images are drawn around vectors.

    Raises UsageError where two of them have settings, or a setting has more values than a cell can have, and
    ValidationError.
    """
    given = [name for name in SECTIONS.values() if sections.get(name)]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: a cell's images are made in one way; give one of them.")
    readers: dict[str, Callable[[Mapping[str, Any]], Way]]
    readers = {"retrieve": _retrieve, "lecf": _lecf, "prompts": _prompts, "gan": _gan}
    return readers[given[0]](sections[given[0]]) if given else None


def way_anew(way: Way | None, number: int) -> Way | None:
    """The way of replicate `number`: what it draws, it draws with another seed; pools and weights stay."""
    match way:
        case Lecf() | Prompted():
            return replace(way, drawing=drawn_anew(way.drawing, number))
        case OfGan():
            seed = seed_of(way.settings.seed, number)
            return replace(way, settings=way.settings.model_copy(update={"seed": seed}))
    return way


def _retrieve(section: Mapping[str, Any]) -> RetrieveSettings:
    pool = {"pool": absolute(str(section["pool"]))} if "pool" in section else {}
    settings = RetrieveSettings.model_validate({**section, **pool})
    if len(settings.k) > 1:
        raise UsageError(f"retrieve.k={list(settings.k)}: one number a cell; vary it as a key of the grid.")
    return settings


def _lecf(section: Mapping[str, Any]) -> Lecf:
    given = {key: str(section[key]) for key in ("clip", "language") if section.get(key)}
    embedded = ("clip", MINI_CLIP.name)  # whatever folder lies beside
    paths = {key: name if (key, name) == embedded else absolute(name) for key, name in given.items()}
    drawing = {key: value for key, value in section.items() if key in PromptSettings.model_fields}
    filtering = LecfSettings.model_validate({k: v for k, v in section.items() if k not in drawing} | paths)
    if len(filtering.thresholds) > 1:
        raise UsageError("lecf.thresholds: one number a cell; vary it as a key of the grid.")
    return Lecf(filtering, PromptSettings.model_validate(drawing))


def _prompts(section: Mapping[str, Any]) -> Prompted:
    prompts, drawing = _taken(section, "prompts", "prompts", "a template with {class}, or a file of class<TAB>prompt")
    return Prompted(prompts if CLASS in prompts else str(absolute(prompts)), PromptSettings.model_validate(drawing))


def _gan(section: Mapping[str, Any]) -> OfGan:
    weights, others = _taken(section, "gan", "weights", "what `dinv gan train` made, or the folder of a BigGAN")
    how = others.pop("how", "sample")
    if how not in ("sample", "invert"):
        raise UsageError(f"gan.how={how!r}: give sample (latents at random) or invert (one for each training image).")
    kind = GanSampleSettings if how == "sample" else GanInvertSettings
    return OfGan(str(absolute(weights)), kind.model_validate(others))


def _taken(section: Mapping[str, Any], name: str, key: str, what: str) -> tuple[str, dict[str, Any]]:
    """A text that the section must have, and its other settings."""
    if not isinstance(section.get(key), str):
        raise UsageError(f"{name}.{key}: missing, or no text. Give {what}.")
    return section[key], {other: value for other, value in section.items() if other != key}
