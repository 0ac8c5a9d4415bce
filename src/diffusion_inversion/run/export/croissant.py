"""croissant.json: an exported folder as MLCommons' Croissant 1.0 describes data sets, so that its loaders open it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ...data.licences import Material, read_licence
from ...data.naming import METADATA
from ...engine.text import visible
from .card import Origin
from .images import SyntheticImages
from .parquet import FOLDER

FILE = "croissant.json"
Layout = Literal["parquet", "imagefolder"]
_CR = "http://mlcommons.org/croissant/"
# The specification's context (docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html); as in mlcroissant's own
# files, equivalentProperty and samplingRate are there too.
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": _CR,
    "rai": f"{_CR}RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{
        name: f"cr:{name}"
        for name in (
            "citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet",
            "format", "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet",
            "references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField",
            "transform",
        )
    },
}  # fmt: skip
_TYPES = {"string": "sc:Text", "int64": "sc:Integer", "double": "sc:Float", "bool": "sc:Boolean"}  # of arrow


def croissant(images: SyntheticImages, folder: Path, layout: Layout, origin: Origin, address: str) -> str:
    """The JSON-LD of what was written into `folder`.

    Record set `images` has the image, its label and class, and the columns of its provenance that hold one value;
    record set `classes` names the labels. address: of the data set, "" where it has none.
    """
    about: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": f"{_CR}1.0",
        "name": visible(origin.name),
        "description": f"{len(images)} images for training classifiers, {images.how} with diffusion-inversion.",
        "version": "1.0.0",
        "license": _licence(origin),
        **({"url": address} if address else {}),
        "rai:dataCollection": "; ".join(map(_line, origin.made_of)),
        "distribution": _files(folder, layout),
        "recordSet": [_classes(images.class_names), _records(images, layout)],
    }
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def _licence(origin: Origin) -> str:
    name = read_licence(origin.licence).name
    if name and " " not in name and name != name.lower():  # one of SPDX's
        return f"https://spdx.org/licenses/{name}.html"
    return visible(name or origin.licence or origin.rights or "unknown")


def _line(one: Material) -> str:
    made = "Drawn from" if one.drawn_from else "Drawn by"
    return visible(f"{made} {one.what}, licence: {one.licence or 'not known'}")


def _files(folder: Path, layout: Layout) -> list[dict[str, Any]]:
    if layout == "parquet":
        return [_file_set(f"{FOLDER}/*.parquet", "application/x-parquet")]
    digest = hashlib.sha256((folder / METADATA).read_bytes()).hexdigest()
    table = {
        "@type": "cr:FileObject",
        "@id": METADATA,
        "name": METADATA,
        "contentUrl": METADATA,
        "encodingFormat": "application/x-parquet",
        "sha256": digest,
    }
    return [_file_set("*/*.png", "image/png"), table]


def _file_set(includes: str, kind: str) -> dict[str, Any]:
    return {"@type": "cr:FileSet", "@id": "files", "name": "files", "encodingFormat": kind, "includes": includes}


def _classes(class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "dataType": "sc:Enumeration",
        "key": {"@id": "classes/label"},
        "field": [_field("classes/label", "sc:Integer"), _field("classes/name", "sc:Text")],
        "data": [{"classes/label": label, "classes/name": name} for label, name in enumerate(class_names)],
    }


def _records(images: SyntheticImages, layout: Layout) -> dict[str, Any]:
    rows = {"fileSet": {"@id": "files"}} if layout == "parquet" else {"fileObject": {"@id": METADATA}}
    pixels: dict[str, Any] = {"fileSet": {"@id": "files"}, "extract": {"fileProperty": "content"}}
    if layout == "parquet":
        pixels = {**rows, "extract": {"column": "image"}, "transform": {"jsonPath": "bytes"}}
    fields = [_field("images/image", "sc:ImageObject", source=pixels)]
    for column in images.metadata.schema:
        kind = _TYPES.get(str(column.type))
        if kind is None or (column.name == "file_name" and layout == "parquet"):
            continue
        found: dict[str, Any] = {"source": {**rows, "extract": {"column": column.name}}}
        if column.name == "file_name":
            # mlcroissant has paths here, and compares them with text once a regular expression has made text of them.
            joined = {**pixels, "extract": {"fileProperty": "fullpath"}, "transform": {"regex": "(.*)"}}
            found = {"source": joined, "references": found["source"]}
        if column.name == "label" and layout == "parquet":  # mlcroissant joins a record set with one other at most
            found["references"] = {"field": {"@id": "classes/label"}}
        fields.append(_field(f"images/{column.name}", kind, **found))
    return {"@type": "cr:RecordSet", "@id": "images", "name": "images", "field": fields}


def _field(name: str, kind: str, **others: Any) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": name, "name": name.partition("/")[2], "dataType": kind, **others}
