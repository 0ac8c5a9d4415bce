"""The card of a published data set, README.md: what it is, what it was made of, and what it was measured to do."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator

from ...engine.text import shown
from ...measure.copies.said import sentence
from ..report import RunRecord
from .images import SyntheticImages
from .parquet import FILE

GRID = "samples.png"
# Names that the hub has for sizes: the first bound that the number of images stays below.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def card(images: SyntheticImages, record: RunRecord | None, source: str, source_licence: str, licence: str) -> str:
    """README.md of the data set.

    record: the run's, where it was trained and tested.
    source, source_licence: name and licence of the images that it was made of; "" where none is known.
    licence: of the data set, an id of the hub.
    """
    from huggingface_hub import DatasetCardData

    header = DatasetCardData(
        license=licence,
        task_categories=["image-classification"],
        size_categories=next((name for bound, name in _SIZES if len(images) < bound), "n>1M"),
        tags=["synthetic", "diffusion-inversion"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": FILE}]}],
    )
    return f"---\n{header.to_yaml()}\n---\n" + "\n".join(_body(images, record, source, source_licence)) + "\n"


def _body(images: SyntheticImages, record: RunRecord | None, source: str, source_licence: str) -> Iterator[str]:
    counts = Counter(images.table["label"].to_pylist())
    yield f"# Synthetic images of {_text(source)}"
    yield f"{len(images)} images for training classifiers, drawn by a generator with `dinv` (diffusion-inversion)."
    yield f"\n![One row a class]({GRID})\n"
    yield "| class | images |\n|---|---|"
    for label, name in enumerate(images.class_names):
        yield f"| {_text(name)} | {counts[label]} |"
    yield "\n## Where they come from"
    yield f"- Source: {_text(source)}; its licence: {_text(source_licence) or 'not known'}."
    facts = {"method": "Made by", "generator": "Generator", "generator_hash": "SHA-256 of its weights"}
    for column in [name for name in facts if name in images.table.column_names]:
        values = sorted(set(images.table[column].to_pylist()))
        yield f"- {facts[column]}: {', '.join(map(_text, values))}."
    yield "- Each row names its source and partner, seed, guidance and the weight of its label."
    yield "- Images may be near to their sources. Learned vectors, which would draw these again, are not here."
    if record is not None and "copies" in record:
        then = " Of these none is here." if "redrawn" in record["copies"] else ""
        yield f"- {_text(sentence(record['copies']))}.{then}"
    yield "\n## What they were measured to do"
    yield from _measured(record)


def _measured(record: RunRecord | None) -> Iterator[str]:
    if record is None:
        yield "Not measured."
        return
    verdict = record["verdict"]
    yield f"Verdict: **{_text(verdict.get('headline', verdict['outcome']))}** ({_text(verdict['sentence'])}).\n"
    yield f"Accuracy on {record['data']['n_test']} real test images:\n\n| trained on | accuracy |\n|---|---|"
    for arm, found in record["arms"].items():
        spread = "" if found["std"] is None else f" ± {100 * found['std']:.1f}"
        yield f"| {_text(arm)} | {100 * found['mean']:.1f}{spread} % (n={found['n']}) |"
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
