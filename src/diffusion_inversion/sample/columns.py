"""What is known of a synthetic image: its columns, and the records of stage 2 that hold them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import NotRequired, TypedDict

from ..engine.manifest import Record, Unit
from ..errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (
    "file_name", "class_name", "label", "source_id", "partner_id", "variant", "interpolation", "noise_strength",
    "guidance_scale", "inversion_step", "scheduler", "inference_steps", "seed", "generator", "generator_hash",
    "source_version", "partner_version", "partner_label", "label_weight", "interpolation_kind", "partner",
    "unconditional", "group_size", "guidance_interval", "eta", "resolution", "method", "pool_id", "licence",
    "clip", "clip_hash", "confidence", "answers", "further_ids", "further_versions", "mixture_weights",
    "shared_noise", "rival_weight", "rival_label", "generator_licence", "timesteps",
)  # fmt: skip
# The real images that one was made from, and the versions of their vectors; what `parents` takes.
PARENTS = ("source_id", "partner_id", "further_ids")
PARENT_VERSIONS = ("source_version", "partner_version", "further_versions")
# Columns that differ between the images of a unit; the others are stored once for the unit.
VARYING = (
    "source_id", "partner_id", "variant", "label", "guidance_scale", "inversion_step", "source_version",
    "partner_version", "partner_label", "label_weight", "pool_id", "licence", "confidence", "answers", "further_ids",
    "further_versions", "mixture_weights", "rival_label", "attempt", "failed", "copied", "noise_strength",
)  # fmt: skip
# What images have in the columns that records of earlier versions lack; their partner is of their own class.
EARLIER: dict[str, Any] = {
    "label_weight": 1.0, "interpolation_kind": "lerp", "partner": "same-class", "unconditional": "mean",
    "group_size": None, "guidance_interval": [0.0, 1.0], "eta": 0.0, "resolution": None,
    "method": "inversion", "pool_id": "", "licence": "", "clip": "", "clip_hash": "",
    "confidence": None, "answers": None, "further_ids": None, "further_versions": None, "mixture_weights": None,
    "shared_noise": 0.0, "rival_weight": 0.0, "rival_label": None, "copied": False, "audit": "",
    "generator_licence": "", "timesteps": None,
}  # fmt: skip
# What images have in them that were taken as they are: nothing here drew them.
TAKEN = EARLIER | {
    "variant": 0, "interpolation": 0.0, "noise_strength": 0.0, "guidance_scale": 1.0, "inversion_step": 0,
    "scheduler": "none", "inference_steps": 0, "seed": 0, "generator_hash": "",
}  # fmt: skip


def parents(
    sources: Sequence[str], partners: Sequence[str], further: Sequence[Sequence[str] | None]
) -> Iterator[tuple[str, ...]]:
    """For each image all that it was made from, the source first: ids of columns `PARENTS`, or their versions."""
    for source, partner, others in zip(sources, partners, further, strict=True):
        yield (source, partner, *(others or ()))


class Columns(TypedDict):
    """One value for each image of a unit; see `VARYING`."""

    source_id: list[str]
    partner_id: list[str]
    variant: list[int]
    label: list[int]
    guidance_scale: list[float]
    inversion_step: list[int]
    source_version: list[str]
    partner_version: list[str]
    partner_label: NotRequired[list[int]]  # not in the records of earlier versions
    label_weight: NotRequired[list[float]]  # of `label` in the target; partner_label has the rest
    pool_id: NotRequired[list[str]]  # of what was retrieved or adopted: which image of the pool, or of IMAGES, it is
    licence: NotRequired[list[str]]
    confidence: NotRequired[list[float | None]]  # CLIP's, in the label
    answers: NotRequired[list[list[float] | None]]  # CLIP's, over all classes: what has the rest of label_weight
    further_ids: NotRequired[list[list[str] | None]]  # partners beside partner_id, of a mixture of several vectors
    further_versions: NotRequired[list[list[str] | None]]
    mixture_weights: NotRequired[list[list[float] | None]]  # in a mixture, of source, partner and the further ones
    rival_label: NotRequired[list[int | None]]  # the class that rival_weight is of
    attempt: NotRequired[list[int]]  # of what was drawn again: see `variants.plan_variant`
    noise_strength: NotRequired[list[float]]  # earlier versions had it in `shared`
    failed: NotRequired[list[bool]]  # of that: whether it still shows another class than its label
    copied: NotRequired[list[bool]]  # of that: whether it still copies a training image
    interpolation: NotRequired[list[float]]  # where it differs between images: of what was drawn again


class DrawnUnit(Unit):
    """A commit record of stage 2; without columns where a Parquet file has them (packed.py)."""

    columns: NotRequired[Columns]
    blanked: NotRequired[int]  # drawings that a safety checker refused, of which none is here
    shared: NotRequired[dict[str, Any]]  # what all images of the unit have in common, by column
    at_once: NotRequired[int | list[int]]  # images computed at a time where memory was short, of each drawing in turn


class Complete(TypedDict):
    """The record of a call that went through."""

    variants: int
    count: int
    balance: NotRequired[str]  # of which stage 2 took the counts
    counts: NotRequired[dict[str, int]]  # of each source that has any, where they have not all `variants`


def in_record(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the record of a unit of PNG files says of its images."""
    own = [key for key in VARYING if any(row.get(key) is not None for row in rows)]
    if any(row.get("interpolation") != rows[0].get("interpolation") for row in rows):  # drawn again, some farther
        own.append("interpolation")
    return {
        "columns": {key: [row[key] for row in rows] for key in own},
        "shared": {key: value for key, value in rows[0].items() if key not in (*VARYING, *own)},
    }


def check_unit(record: Record, class_names: tuple[str, ...], path: Path) -> None:
    """Raise DataError for the record of a unit of PNG files that cannot be; `path` is of its manifest."""
    if "columns" not in record or "shared" not in record:
        raise DataError(f"{path}: unit {record['unit']}: says nothing of its images. Restore the file from a copy.")
    lengths = {len(record["files"]), len(record["ids"]), *map(len, record["columns"].values())}
    answers = [len(one) for one in record["columns"].get("answers", ()) if one is not None]
    labels = {*record["columns"]["label"], *record["columns"].get("partner_label", ())}
    labels |= {*record["columns"].get("rival_label", ())} - {None}
    weighed = all(0 <= weight <= 1 for weight in record["columns"].get("label_weight", ()))
    answered = set(answers) <= {len(class_names)}
    further = [record["columns"].get(name, ()) for name in ("further_ids", "further_versions")]
    ids, versions = ([len(one or ()) for one in column] for column in further)
    uneven, known = len(lengths) > 1 or ids != versions, labels <= set(range(len(class_names)))
    if uneven or not known or not weighed or not answered:
        raise DataError(
            f"{path}: unit {record['unit']}: lists of different lengths, an unknown label, a weight "
            "of a label outside 0..1, or answers over other classes"
        )


def check_labels(table: pa.Table, class_names: tuple[str, ...], where: str) -> None:
    """As `check_unit`, of the columns of a unit that are read from a Parquet file."""
    for name in {"label", "partner_label", "rival_label", "label_weight"} & {*table.column_names}:
        values = table[name].drop_null().to_numpy()
        most = 1 if name == "label_weight" else len(class_names) - 1
        lacking = len(values) < len(table) and name != "rival_label"
        if lacking or (len(values) and not (values.min() >= 0 and values.max() <= most)):
            raise DataError(f"{where}: {name} outside 0..{most}. Restore the file from a copy.")


def table_of(records: Sequence[Record], columns: Sequence[str], class_names: tuple[str, ...], path: Path) -> pa.Table:
    """Columns of the images of units of PNG files, `COLUMNS` and the files' sha256 by default; as `check_unit`."""
    import pyarrow as pa

    for record in records:
        check_unit(record, class_names, path)
    found = {}
    for name in columns or (*COLUMNS, "sha256"):
        try:
            found[name] = pa.array([value for record in records for value in _values(record, name, class_names)])
        except (pa.ArrowException, OverflowError, KeyError) as error:
            cause = f"{path}: {name} of the units: {error!r}"
            raise DataError(f"{cause}. Restore the file from a copy, or draw the images again.") from error
    return pa.table(found)


def _values(record: Record, name: str, class_names: tuple[str, ...]) -> Collection[Any]:
    """A column of the images of a unit: where they have one value in common, that one so many times."""
    own, shared = record["columns"], EARLIER | record["shared"]
    match name:
        case "file_name":
            found = record["files"].keys()
        case "sha256":
            found = record["files"].values()
        case "class_name":
            found = [class_names[label] for label in own["label"]]
        case "partner_label":
            found = own.get(name, own["label"])
        case "method" if name not in record["shared"]:  # earlier versions did not say so of images from prompts
            named = zip(own["source_id"], own["label"], strict=True)
            from_prompt = [source.startswith(f"{class_names[label]}: ") for source, label in named]
            found = ["prompts" if one else shared[name] for one in from_prompt]
        case _:
            found = [shared[name]] * len(record["ids"]) if name not in own else own[name]
    return cast(Collection[Any], found)
