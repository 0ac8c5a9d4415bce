"""Images of cells that no vectors are learned for: found in a pool, drawn from prompts, kept by CLIP, or a GAN's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..config.commands import GanInvertSettings
from ..config.sampling import RetrieveSettings
from ..data.datasets import Splits
from ..data.pools import Pool, open_pool
from ..errors import UsageError
from ..generator.device import resolve_device
from ..generator.generator import Generator
from ..measure.extractors.catalog import open_extractor
from ..measure.extractors.extractor import Extractor
from ..measure.extractors.lite0 import open_lite0
from ..pretrain.gan.inversion import invert_gan
from ..pretrain.gan.sampling import sample_gan
from ..pretrain.gan.weights import Gan, load_gan
from ..run.lecf.sentences import T5_SENTENCES, Language, sentences_of_frames
from ..run.lecf.stage import DRAWN, lecf, to_keep
from ..run.retrieval import check as check_pool
from ..run.retrieval import retrieve
from ..sample.prompting import CLASS, Prompt, check, draw_prompts, read_prompts
from ..train.few_shot.clip import Clip
from ..train.few_shot.prompts import check_classes
from ..train.mixing import refuse_unjudged
from .plan import Cell
from .ways import Lecf, OfGan, Prompted


def depends_on(cell: Cell, device: str) -> list[Any]:
    """All that a cell's images depend on beside the generator and their side, as JSON data; of models what is in them.

    Cells of LECF that differ in the threshold, or in how many images are kept, share what is drawn.
    """
    data = cell.data.described()
    match cell.way:
        case RetrieveSettings():
            weights = weights_of(cell.way.extractor, cell.way.weights, device)
            return ["retrieval", data, cell.way.described(), _pool(cell.way, cell).listing, *weights]
        case Lecf(filtering, drawing):
            language = _language(filtering.language)
            models = [_clip(cell.way, device).hash, None if language is None else language.hash]
            return ["lecf", data, filtering.described({"thresholds", "per_class"}), drawing.described(), models]
        case Prompted(prompts, drawing):
            texts = [] if CLASS in prompts else [[one.class_name, one.text] for one in read_prompts(prompts)]
            return ["prompts", data, texts or prompts, drawing.described()]
        case OfGan(weights, settings):
            return ["gan", data, _gan(weights, device).hash, type(settings).__name__, settings.described()]
    raise AssertionError("a cell of vectors")


def place(cell: Cell) -> str:
    """Where its images lie in the folder that `fill` is given; empty: right there.

    Of LECF one for each number kept and each threshold.
    """
    if not isinstance(cell.way, Lecf):
        return ""
    kept, threshold = cell.way.filtering.per_class, f"t{cell.way.filtering.thresholds[0]:g}"
    return threshold if kept is None else f"n{kept}/{threshold}"


def check_cell(cell: Cell, splits: Splits, folder: Path, side: int, generator: Generator, device: str) -> None:
    """Raise what can be said of a cell's pool, prompts, CLIP or GAN before all work: UsageError, DataError.

    side: that of all arms, in px.
    """
    refuse_unjudged(cell.train)
    of_no_image = not isinstance(cell.way, RetrieveSettings) and not _inverts(cell)
    if of_no_image and cell.train.mixing == "curriculum" and "real+synthetic" in cell.train.arms:
        raise UsageError(
            "mixing=curriculum: no real image is the source of these images, of sentences or random latents. Give "
            "another mixing."
        )
    names = splits.train.class_names
    match cell.way:
        case RetrieveSettings():
            check_pool({cell.way.k[0]: folder}, _pool(cell.way, cell))
        case Lecf(filtering, drawing):
            check_classes(_clip(cell.way, device), names, filtering.templates)
            check(generator, drawing, folder)
            if _language(filtering.language) is None:
                prompts = sentences_of_frames(names, filtering.sentences, drawing.seed)
                sentences = dict(Counter(prompt.class_name for prompt in prompts))
            else:  # which may repeat itself, and then says fewer
                sentences = dict.fromkeys(names, filtering.sentences or T5_SENTENCES)
            to_keep(splits.train, filtering, drawing, sentences)
        case Prompted(prompts, drawing):
            _prompts(prompts, names)
            check(generator, drawing.model_copy(update={"image_size": side}), folder)
        case OfGan(weights):
            gan = _gan(weights, device)
            gan.labels_of(names, splits.train.name)
            gan.refuse_tested(splits.test.ids, splits.test.hashes)
            if gan.size != side:
                raise UsageError(
                    f"gan.weights={weights}: draws {gan.size} px, and the arms have {side} px. Give data.size = "
                    f"{gan.size}, or weights of that side."
                )


def fill(home: Path, cell: Cell, splits: Splits, side: int, generator: Generator, device: str) -> dict[str, Any]:
    """Put a cell's images of `side` px into its folder: `home`, or its `place` in there."""
    features, train = cell.root / "features", splits.train
    match cell.way:
        case RetrieveSettings():
            k, network = cell.way.k[0], open_extractor(cell.way.extractor, resolve_device(device), cell.way.weights)
            found = retrieve(
                {k: home}, splits, _pool(cell.way, cell), network, cell.way.model_copy(update={"image_size": side}),
                cache=features, drop_test_images=cell.data.drop_test_duplicates,
            )  # fmt: skip
            return {"images": found[k]["images"]}
        case Lecf(filtering, drawing):
            drawing = drawing.model_copy(update={"image_size": side})
            clip, language = _clip(cell.way, device), _language(filtering.language)
            sets = (home / place(cell)).parent
            kept = lecf(sets, train, filtering, drawing, generator, clip, language, cache=features, drawn=home / DRAWN)
            return {"images": kept[filtering.thresholds[0]]["images"]}
        case Prompted(prompts, drawing):
            asked = _prompts(prompts, train.class_names)
            draw_prompts(asked, generator, home, drawing.model_copy(update={"image_size": side}))
            return {"images": len(asked) * drawing.variants}
        case OfGan(weights, settings):
            gan = _gan(weights, device)
            if isinstance(settings, GanInvertSettings):
                distance = invert_gan(gan, train, open_lite0(gan.device), home, settings)
                return {"images": len(train), "psnr": distance}
            of_class = Counter(train.labels.tolist())
            counts = {name: of_class[label] for label, name in enumerate(train.class_names)}
            return {"images": sample_gan(gan, counts, home, settings)}
    raise AssertionError("a cell of vectors")


def made_by(cells: Sequence[Cell], device: str) -> str:
    """What a page says of the CLIPs and GANs that made images of its cells; empty where none did."""
    used = {}
    for cell in cells:
        match cell.way:
            case Lecf():
                clip = _clip(cell.way, device)
                used[clip.hash] = f"LECF by CLIP {clip.name}"
            case OfGan(weights):
                used[_gan(weights, device).hash] = f"GAN {_gan(weights, device).name}"
    return "".join(f"; {name}, files {digest[:12]}" for digest, name in used.items())


def _inverts(cell: Cell) -> bool:
    return isinstance(cell.way, OfGan) and isinstance(cell.way.settings, GanInvertSettings)


def _prompts(prompts: str, class_names: Sequence[str]) -> tuple[Prompt, ...]:
    """Prompts of these classes. Raises UsageError where a class has none, or one is of another class."""
    found = read_prompts(prompts, class_names)
    if odd := sorted({prompt.class_name for prompt in found} ^ set(class_names)):
        raise UsageError(
            f"prompts.prompts={prompts}: class {odd[0]!r} ({len(odd)} in all) is either without a prompt or not in the "
            f"data, whose classes are {', '.join(class_names[:5])}. Give every class a prompt, and no other."
        )
    return found


def weights_of(extractor: str, weights: str | Path | None, device: str) -> list[str]:
    """What is in weights that were given in place of an extractor's own: [sha256 hex], or nothing where none were."""
    return [] if weights is None else [_extractor(extractor, device, weights).weights_sha256]


@cache
def _extractor(name: str, device: str, weights: str | Path) -> Extractor:
    return open_extractor(name, resolve_device(device), weights)


def _pool(way: RetrieveSettings, cell: Cell) -> Pool:
    return _open(way.pool, cell.root)


@cache
def _open(pool: str, root: Path) -> Pool:
    return open_pool(pool, root)


def _clip(way: Lecf, device: str) -> Clip:
    return _load(way.filtering.clip, device, way.filtering.clip_revision)


@cache
def _load(clip: str, device: str, revision: str | None) -> Clip:
    return Clip.load(clip, resolve_device(device), revision)


@cache
def _gan(weights: str, device: str) -> Gan:
    return load_gan(Path(weights), resolve_device(device))


@cache
def _language(source: str | None) -> Language | None:
    return None if source is None else Language.load(source)
