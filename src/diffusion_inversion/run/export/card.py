"""The card of a data set, README.md: what it is, what it was made of, its licence, and what it was measured to do."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...config.commands import ImageFormat, SourceIds
from ...data.licences import Finding, Material, read_licence
from ...data.naming import METADATA
from ...engine.text import shown
from ...measure.copies.said import sentence
from ...sample.xmp import GENERATED
from ..report import RunRecord
from ..report.formats import accuracy
from .images import SyntheticImages
from .parquet import PATTERN
from .vectors import WRITTEN

GRID = "samples.png"
# What `load_dataset(folder)` reads: by itself it guesses splits from words in paths and takes every file for data.
_READ: dict[ImageFormat, list[str]] = {
    "imagefolder": ["*/*.png", METADATA],
    "parquet": [PATTERN],
    "webdataset": ["*.tar"],
    "fiftyone": ["data/*.png"],
    "coco-classification": ["images/*.png"],
}
# Names that the hub has for sizes: the first bound that the number of images stays below.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class Origin:
    """What is said of a data set as a whole.

    name: of the source.
    made_of: everything with a licence that it was made with.
    licence: the one that was asked for; "" where none was.
    findings: lines about these.
    source_ids: how sources are named: hashed, plain or none.
    with_vectors: whether learned vectors lie beside the images.
    """

    name: str
    made_of: Sequence[Material]
    licence: str
    findings: Sequence[Finding]
    source_ids: SourceIds
    with_vectors: bool = False

    @property
    def rights(self) -> str:
        """What each image that a model drew says of its licence."""
        sources = dict.fromkeys(one.licence for one in self.made_of if one.drawn_from and one.licence)
        return self.licence or (f"Drawn from images under {', '.join(sources)}" if sources else "")


def card(images: SyntheticImages, record: RunRecord | None, origin: Origin, to: ImageFormat, *, grid: bool) -> str:
    """README.md of the data set, which makes all images of every format one split, train, of `load_dataset(folder)`.

    record: the run's, where it was trained and tested.
    grid: whether samples.png lies beside it.
    """
    from huggingface_hub import DatasetCardData

    files = {"split": "train", "path": _READ[to]}
    header = DatasetCardData(
        **_licence_of(origin),
        configs=[{"config_name": "default", "data_files": [files]}],
        task_categories=["image-classification"],
        size_categories=next((name for bound, name in _SIZES if len(images) < bound), "n>1M"),
        tags=[*(["synthetic"] if images.drawn else []), "diffusion-inversion"],
    )
    return f"---\n{header.to_yaml()}\n---\n" + "\n".join(_body(images, record, origin, grid)) + "\n"


def _licence_of(origin: Origin) -> dict[str, Any]:
    """The hub's names for a licence; `other` has a name of its own."""
    if not origin.licence:
        known = any(one.licence for one in origin.made_of if one.drawn_from)
        return {"license": "other" if known else "unknown"}
    name = read_licence(origin.licence).name
    if name and " " not in name:
        return {"license": name.lower()}
    return {"license": "other", "license_name": shown(origin.licence)}


def _body(images: SyntheticImages, record: RunRecord | None, origin: Origin, grid: bool) -> Iterator[str]:
    counts = Counter(images.table["label"].to_pylist())
    title = "Synthetic images of" if images.drawn else "Images adopted for" if images.adopted else "Images found for"
    yield f"# {title} {_text(origin.name)}"
    yield f"{len(images)} images for training classifiers, {images.how} with `dinv` (diffusion-inversion)."
    if grid:
        yield f"\n![One row a class]({GRID})\n"
    yield "\n| class | images |\n|---|---|"
    for label, name in enumerate(images.class_names):
        yield f"| {_text(name)} | {counts[label]} |"
    yield "\n## Where they come from"
    yield f"- Source: {_text(origin.name)}."
    if added := sum(path in images.grown for path in images.table["path"].to_pylist()):
        yield f"- `dinv grow` added {added} of them, where classifiers of folds of the training images were wrong."
    facts = {"method": "Made by", "generator": "Generator", "generator_hash": "SHA-256 of its weights"}
    if images.adopted:
        facts = {"generator": "Taken from"}
    elif not images.drawn:
        facts |= {"generator": "Pool", "generator_hash": "SHA-256 of its images"}
    for column in [name for name in facts if name in images.table.column_names]:
        values = sorted(set(images.table[column].to_pylist()))
        yield f"- {facts[column]}: {', '.join(map(_text, values))}."
    named = {
        "hashed": "Each row names its source and partner by a salted hash: the same image, the same hash.",
        "plain": "Each row names its source and partner.",
        "none": "Rows do not name their sources.",
    }
    yield f"- {named[origin.source_ids]} Seed, guidance and the weight of its label are there too."
    if images.drawn:
        yield f"- Each file says in XMP that a model drew it: IPTC digital source type <{GENERATED}>."
        vectors = WRITTEN if origin.with_vectors else "Learned vectors, which would draw these again, are not here."
        yield f"- Images may be near to their sources. {vectors}"
    others = record is not None and images.asked != record["stages"]["sample"]["images"]  # than were trained on
    if record is not None and "copies" in record and not others:
        then = " Of these none is here." if "redrawn" in record["copies"] else ""
        yield f"- {_text(sentence(record['copies']))}.{then}"
    yield "\n## Licences"
    for found in origin.findings:
        yield f"- {_text(found.line[:1].upper() + found.line[1:].rstrip('.'))}."
    yield "\n## What they were measured to do"
    if record is not None and len(images.grown) != record["stages"]["sample"].get("grown", 0):
        yield "These figures were measured before `dinv grow` added some of the images.\n"
    if others:
        yield "These figures were measured with another number of images of stage 2.\n"
    yield from _measured(record)


def _measured(record: RunRecord | None) -> Iterator[str]:
    if record is None:
        yield "Not measured."
        return
    verdict = record["verdict"]
    yield f"Verdict: **{_text(verdict.get('headline', verdict['outcome']))}** ({_text(verdict['sentence'])}).\n"
    yield f"Accuracy on {record['data']['n_test']} real test images:\n\n| trained on | accuracy |\n|---|---|"
    for arm, found in record["arms"].items():
        yield f"| {_text(arm)} | {accuracy(found['mean'], found['std'], found['n'])} |"
    if "fidelity" in record:
        judged = record["fidelity"]
        yield (
            f"\nThe classifiers were trained with --filter {judged['filter']}. The images here are the first drawings, "
            f"as they were before it: {judged['failed']} of {judged['judged']} show another class than their label, by "
            "its judge."
        )
    if "scope" in verdict:
        yield f"\n{_text(verdict['scope'])}"


def _text(text: str) -> str:
    """Text of others as Markdown that shows it: no markup, no cell's end, one line."""
    return "".join(f"\\{c}" if c in "\\`*_[]|#!" else c for c in html.escape(shown(text), quote=False))
