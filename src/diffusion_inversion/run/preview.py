"""A first look: a few images with their reconstructions and variants, as a picture and a page, before any run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.planning import PreviewSettings
from ..config.sampling import SampleSettings
from ..config.settings import InvertSettings
from ..data.datasets import Splits
from ..data.images import LabelledImages, resize
from ..engine.store import commit_bytes
from ..engine.text import visible_values
from ..errors import UsageError
from ..generator.generator import Generator
from ..invert.inversion import invert as learn
from ..sample.sampling import drawn, reconstruct
from .reconstructions import likeness_of, spread_over_classes
from .report.cards import cards
from .report.figures import DPI, png, short, without_tex
from .report.html import page
from .report.pictures import ReportImages
from .report.templates import fill

EACH = 2  # variants of an image at each strength
MADE_BY = "dinv preview"  # stands in every file of a preview: such a one may be replaced
_CELL, _FONT = 1.0, 8  # inches that a picture takes; points


def chosen_rows(images: LabelledImages, count: int) -> tuple[list[int], list[int]]:
    """Rows of at most `count` images, spread over the classes, and of one more of each of their classes.

    The others are partners to interpolate with; an image whose class has no other image goes without.
    """
    shown = spread_over_classes(images.labels.tolist(), count)
    rest = [row for row in range(len(images)) if row not in set(shown)]
    labels = images.labels.tolist()
    alone = {labels[row] for row in shown if sum(labels[one] == labels[row] for one in shown) == 1}
    partners = {labels[row]: row for row in reversed(rest) if labels[row] in alone}
    return shown, sorted(partners.values())


def plain(settings: SampleSettings) -> SampleSettings:
    """The settings with a number where a run finds the noise strength by itself: the default."""
    if settings.noise_strength != "auto":
        return settings
    return settings.model_copy(update={"noise_strength": SampleSettings().noise_strength})


def stronger(settings: SampleSettings, times: float) -> SampleSettings:
    """Settings of stage 2 with so many times the strengths, as far as their ranges go."""
    known = plain(settings)
    assert known.noise_strength != "auto"
    noise, mix = times * known.noise_strength, times * known.interpolation
    return settings.model_copy(update={"noise_strength": min(noise, 10.0), "interpolation": max(min(mix, 1.0), -1.0)})


def said(settings: SampleSettings) -> str:
    """The strengths in a few characters."""
    return f"λ {float(settings.noise_strength):g}, \N{GREEK SMALL LETTER ALPHA} {settings.interpolation:g}"


def look(
    images: LabelledImages,
    generator: Generator,
    invert: InvertSettings,
    sample: SampleSettings,
    settings: PreviewSettings,
    *,
    side: int,
) -> ReportImages:
    """Learn a few images and draw them, `EACH` variants at the run's strengths and as many at stronger ones.

    `side` is that of the drawn images in px. Numbers are drawn by identity, so the same call gives the same images;
    a run learns its images in other batches, which differ from these by rounding. Nothing is kept, and no random
    state is moved.
    """
    strengths = plain(sample), stronger(sample, settings.stronger)
    rows, partners = chosen_rows(images, settings.images)
    few = images.subset([*rows, *partners])
    devices = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), TemporaryDirectory() as folder:
        embeddings = learn(few, generator, folder, invert)
        at = embeddings.row_of
        learned = [at[image_id] for image_id in few.ids[: len(rows)] if image_id in at]
        variants: list[Tensor] = []
        for strength in strengths:
            # Variant 0 begins at the noise of the reconstruction and looks like it.
            jobs = [(row, variant) for row in learned for variant in range(1, EACH + 1)]
            batches = [jobs[start : start + sample.batch_size] for start in range(0, len(jobs), sample.batch_size)]
            pictures = resize(torch.cat(list(drawn(embeddings, generator, strength, batches, "preview"))), side)
            variants.append(pictures.unflatten(0, (len(learned), EACH)))
        reconstructions = reconstruct(embeddings, generator, sample, learned)
        sources = few.subset([few.ids.index(embeddings.ids[row]) for row in learned])
        distances = likeness_of(reconstructions, sources.images, generator.device)
    return ReportImages(
        real=sources.resized(side).images,
        reconstruction=resize(reconstructions, side),
        variants=list(torch.cat(variants, 1)),
        labels=sources.labels,
        distances=distances,
        captions=tuple(said(one) for one in strengths for _ in range(EACH)),
        ids=sources.ids,
        photographs=sources.images if sources.size > side else None,
    )


@without_tex
def picture(images: ReportImages, class_names: Sequence[str]) -> bytes:
    """All of it as one PNG: a row for each real image, labelled by its class, columns labelled by what they hold."""
    from matplotlib.figure import Figure

    columns = [images.real[:, None], *([] if images.reconstruction is None else [images.reconstruction[:, None]])]
    fewest = min(map(len, images.variants))
    shown = torch.cat([*columns, torch.stack([one[:fewest] for one in images.variants])], 1)
    rows, across, _, side, _ = shown.shape
    gap = max(side // 16, 1)
    padded = F.pad(shown, (0, gap, 0, gap), value=255).permute(0, 3, 1, 4, 2)
    sheet = padded.reshape(rows * (side + gap), across * (side + gap), 3)[:-gap, :-gap]
    # A whole number of dots for a pixel, so that every image is shown as it is.
    scale = max(round(_CELL * DPI / side), 1)
    width, height = (scale * pixels / DPI for pixels in (sheet.shape[1], sheet.shape[0]))
    margin, head = 1.5, 0.55
    figure = Figure(figsize=(width + margin + 0.1, height + head + 0.1), dpi=DPI)
    whole = (width + margin + 0.1, height + head + 0.1)
    axes = figure.add_axes((margin / whole[0], 0.1 / whole[1], width / whole[0], height / whole[1]))
    axes.imshow(sheet.numpy(), interpolation="nearest", aspect="auto")
    middles = [[place * (side + gap) + (side - 1) / 2 for place in range(count)] for count in (across, rows)]
    names = ["real image", *(["reconstruction"] if images.reconstruction is not None else [])]
    names += [f"variant\n{one}" for one in images.captions or [f"{k + 1}" for k in range(fewest)]]
    axes.set_xticks(middles[0], names, fontsize=_FONT, parse_math=False)
    labels = [short(class_names[label]) for label in images.labels.tolist()]
    axes.set_yticks(middles[1], labels, fontsize=_FONT, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return png(figure, MADE_BY)


def files_of(out: Path) -> tuple[Path, Path]:
    """The picture and the page that `--out` names. Raises UsageError where a file there is no preview."""
    if out.suffix.lower() == ".html":
        out = out.with_suffix(".png")
    picture = out if out.suffix.lower() == ".png" else out / "preview.png"
    found = picture, picture.with_suffix(".html")
    for path in found:
        if path.is_dir() or (path.exists() and MADE_BY.encode() not in path.read_bytes()):
            raise UsageError(f"--out {path}: exists and is no preview. Choose another name, or move it away.")
    return found


@dataclass(frozen=True)
class Wanted:
    """What is looked at, where it is written, and what the page says beside it."""

    settings: PreviewSettings
    files: tuple[Path, Path]  # the picture, the page
    command: str
    notes: Sequence[str] = ()


def make(
    splits: Splits,
    generator: Generator,
    invert: InvertSettings,
    sample: SampleSettings,
    wanted: Wanted,
    *,
    side: int,
    plan: Sequence[str],
) -> int:
    """Look, and write picture and page, each whole or as it was; return how many images are shown. Raises as `look`."""
    if sample.noise_strength == "auto":
        known = plain(sample).noise_strength
        wanted = replace(wanted, notes=[*wanted.notes, f"A run finds each image's noise strength; here it is {known}."])
    images = look(splits.train, generator, invert, sample, wanted.settings, side=side)
    made = picture(images, splits.train.class_names), _page(images, splits, wanted, plan).encode()
    for path, content in zip(wanted.files, made, strict=True):
        commit_bytes(path, content)
    return len(images.real)


def _page(images: ReportImages, splits: Splits, wanted: Wanted, plan: Sequence[str]) -> str:
    """The same as a page with the report's gallery, and what the whole run takes; it loads nothing."""
    train = splits.train
    run: Mapping[str, Any] = visible_values(
        {
            "data": {"name": train.name, "n_train": len(train), "class_names": list(train.class_names)},
            "command": wanted.command,
            "preview": {
                "count": len(images.real),
                "stronger": f"at {wanted.settings.stronger:g} times the strength",
                "plan": list(plan),
                "notes": list(wanted.notes),
            },
        }
    )
    gallery = fill("parts/images.html", run=run, images=images, cards=cards(images, run["data"]["class_names"]))
    return page(f"{run['data']['name']}: a first look", [fill("parts/preview.html", run=run), gallery])
