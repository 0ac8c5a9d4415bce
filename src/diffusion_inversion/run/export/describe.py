"""What lies beside exported images: the card, its picture, and their description in Croissant."""

from __future__ import annotations

import io
from pathlib import Path

from ...config.commands import ImageFormat, SourceIds
from ...data.licences import findings
from ...engine.ledger import Ledger
from ...sample.xmp import packet, with_xmp
from ..images import data_name, read_record
from ..layout import RUN_FILE
from ..materials import materials
from ..methods import ADOPTED, GAN, RETRIEVAL, method_of
from . import croissant
from .card import GRID, Origin, card
from .images import SyntheticImages

_ROWS, _COLUMNS = 10, 8  # classes and images of each that the picture shows
_SIDE = 96  # px of an image in it, at least


def origin_of(run: Path, licence: str | None, source_ids: SourceIds) -> Origin:
    """What is said of the images of a run, under the licence that is asked for."""
    recorded, made_of = read_record(run), materials(run)
    without = "a GAN" if method_of(run).name == GAN else "images drawn from prompts"
    name = without if recorded is None else data_name(recorded["name"], recorded["source"]["data"])
    return Origin(name, made_of, licence or "", findings(made_of, licence), source_ids)


def describe(images: SyntheticImages, folder: Path, to: ImageFormat, origin: Origin, address: str = "") -> None:
    """Write README.md; samples.png, but not where each picture counts as an image; croissant.json where it can be.

    address: of the data set, where it has one.
    """
    with_grid = to != "imagefolder"
    if with_grid:
        (folder / GRID).write_bytes(grid(images))
    if to in ("parquet", "imagefolder"):
        text = croissant.croissant(images, folder, to, origin, address)
        (folder / croissant.FILE).write_text(text, encoding="utf-8")
    record = Ledger(images.run).read_json(RUN_FILE)
    text = card(images, record, origin, to, grid=with_grid)
    (folder / "README.md").write_text(text, encoding="utf-8")


def grid(images: SyntheticImages) -> bytes:
    """PNG with a row for each class, of which there are at most 10, and 8 of its images, evenly spaced by name."""
    from PIL import Image

    labels = images.table["label"].to_pylist()
    places: dict[int, tuple[int, int]] = {}  # row of the table => row and column of the picture
    for row, label in enumerate(sorted(set(labels))[:_ROWS]):
        own = [place for place, one in enumerate(labels) if one == label]
        shown = [own[len(own) * step // _COLUMNS] for step in range(_COLUMNS)] if len(own) > _COLUMNS else own
        places |= {place: (row, column) for column, place in enumerate(shown)}
    found = dict(images.some(places))
    opened = {place: Image.open(io.BytesIO(one.png)) for place, one in found.items()}
    side = max(_SIDE, *(image.width for image in opened.values()))
    picture = Image.new("RGB", (_COLUMNS * side, (1 + max(row for row, _ in places.values())) * side), "white")
    for place, image in opened.items():
        row, column = places[place]
        picture.paste(image.resize((side, side), Image.Resampling.NEAREST), (column * side, row * side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    said = packet(ADOPTED if images.adopted else RETRIEVAL)  # each with a licence of its own
    if images.drawn:
        about = next(iter(found.values())).provenance
        made = {name: about[name] for name in ("generator", "generator_hash")}
        said = packet(about["method"], **made, rights=images.rights)
    return with_xmp(buffer.getvalue(), said)
