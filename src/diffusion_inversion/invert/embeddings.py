"""The store of stage 1: learned conditioning vectors in safetensors shards, listed by a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float32, Int64
from safetensors.torch import save
from torch import Tensor

from ..data.images import LabelledImages
from ..engine.frozen_settings import settings_file
from ..engine.ledger import Ledger
from ..engine.manifest import NAME as MANIFEST
from ..engine.manifest import Manifest, Record
from ..engine.store import commit_bytes
from ..engine.units import unit_name
from ..engine.untrusted import TensorSpec, check_record, inside, parse_json, read_tensors
from ..errors import DataError, UsageError
from ..randomness import shuffled
from .packing import VectorDtype, pack, specs, unpack
from .peers import Peers, nearest_classes, nearest_rows, peers_in_groups, peers_of
from .records import Config, Header, LearnedUnit, header_without

FOLDER, CONFIG_FILE = "embeddings", settings_file("invert")
SCHEMA = 2
LARGEST_SHARD = 8 << 30  # bytes: 100 images of 77 x 1,024 tokens at 200 kept steps take 6.3 GB
_UNHELD = "its vector is not finite as it is stored; --vector-dtype float32 or int8 holds numbers beyond 65,504"
NOT_FINITE = -1.0  # in the place of a loss under the empty prompt, where files hold finite numbers alone
SPECS = {  # of all but the vectors, see packing.py
    "labels": TensorSpec(torch.int64, ("images",)),
    "losses": TensorSpec(torch.float32, ("points", "images")),
    "null_losses": TensorSpec(torch.float32, ("images",)),
}


@dataclass(frozen=True)
class Embeddings:
    """Learned vectors of N images at S kept steps.

    `ids` (N); `labels` (N,) int64; `class_names`; `steps` (S, ascending); `vectors` (S, N, tokens, width) float32;
    `curve_steps` (P, ascending) and `losses` (P, N) float32: mean loss of each image on its fixed evaluation bank;
    `null_losses` (N,): the same with the empty prompt, or NOT_FINITE; `generator_hash`; `resolution`: side in px
    learned at; `image_size`: native side of the data set; `groups` (N): the unit of each, where stage 1 was joint.
    """

    ids: tuple[str, ...]
    labels: Int64[Tensor, " images"]
    class_names: tuple[str, ...]
    steps: tuple[int, ...]
    vectors: Float32[Tensor, "steps images tokens features"]
    curve_steps: tuple[int, ...]
    losses: Float32[Tensor, "points images"]
    null_losses: Float32[Tensor, " images"]
    generator_hash: str
    resolution: int
    image_size: int
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, step: int | None = None) -> Float32[Tensor, "images tokens features"]:
        """Vectors (N, tokens, width) at a kept step, by default the last; DataError for a step that was not kept."""
        return self.vectors[self._place(step)]

    @property
    def null_loss(self) -> float | None:
        """Mean of the finite losses with the empty prompt; None where there is none."""
        finite = self.null_losses[self.null_losses != NOT_FINITE]
        return float(finite.mean()) if len(finite) else None

    def _place(self, step: int | None) -> int:
        if step not in (None, *self.steps):
            raise DataError(f"step {step}: not kept (kept: {self.steps}). Invert with --keep-steps {step}.")
        return -1 if step is None else self.steps.index(step)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of every image, by id."""
        return {image_id: row for row, image_id in enumerate(self.ids)}

    @cached_property
    def digest(self) -> str:
        """sha256 hex of ids, labels, class names and vectors: what stage 2 draws from."""
        digest = hashlib.sha256(json.dumps([self.ids, self.labels.tolist(), self.class_names, self.steps]).encode())
        digest.update(self.vectors.contiguous().numpy().data)
        return digest.hexdigest()

    @cached_property
    def versions(self) -> tuple[str, ...]:
        """16 hex digits for each image that change with its vectors or its label: images record what they came from."""
        rows = self.vectors.transpose(0, 1).contiguous()
        labels = self.labels.tolist()
        return tuple(
            hashlib.sha256(f"{label} ".encode() + row.numpy().tobytes()).hexdigest()[:16]
            for label, row in zip(labels, rows, strict=True)
        )

    @cached_property
    def class_rows(self) -> tuple[tuple[int, ...], ...]:
        """Rows of each class, by image id, so that they do not depend on the order of learning."""
        labels = self.labels.tolist()
        found: list[list[int]] = [[] for _ in self.class_names]
        for row in sorted(range(len(self)), key=lambda row: self.ids[row]):
            found[labels[row]].append(row)
        return tuple(tuple(rows) for rows in found)

    @cached_property
    def peers(self) -> dict[int, Peers]:
        """All rows, by class and in it by image id, as each row sees them."""
        return peers_of([row for rows in self.class_rows for row in rows], self.labels.tolist())

    def class_mean(self, label: int, step: int | None = None) -> Float32[Tensor, "tokens features"]:
        """Mean over the images of one class (tokens, width); NaN where it has none."""
        return self._class_means[self._place(step), label]

    def group(self, row: int, size: int, seed: int) -> tuple[int, ...]:
        """Rows of the group of a row, in an order shuffled by seed and id.

        Where stage 1 was joint: the images that it learned together and still has, whatever the size. Elsewhere all
        rows are cut into groups of `size` in that order, so an image that goes or comes changes the groups after it.
        """
        return self._grouped(size, seed)[row][0]

    def group_peers(self, row: int, size: int, seed: int) -> Peers:
        """The rows of the `group` of a row, by class and in it by image id."""
        return self._grouped(size, seed)[row][1]

    def _grouped(self, size: int, seed: int) -> dict[int, tuple[tuple[int, ...], Peers]]:
        if (size, seed) not in self._groups:
            order = [self.row_of[image_id] for image_id in shuffled(self.ids, seed)]
            names = [place // size if self.groups is None else self.groups[row] for place, row in enumerate(order)]
            places = {row: near.place for row, near in self.peers.items()}
            self._groups[size, seed] = peers_in_groups(order, names, places, self.labels.tolist())
        return self._groups[size, seed]

    @cached_property
    def _groups(self) -> dict[tuple[int, int], dict[int, tuple[tuple[int, ...], Peers]]]:
        return {}

    def nearest(self, row: int, step: int | None = None, *, farthest: bool = False) -> int:
        """The row of the same class whose vector is nearest (L2) at a step, or farthest; the row itself if alone."""
        label, place = int(self.labels[row]), self._place(step)
        own, key = self.class_rows[label], (label, place, farthest)
        if len(own) == 1:
            return row
        if key not in self._nearest:
            places = nearest_rows(self.vectors[place][list(own)].flatten(1), farthest=farthest).tolist()
            self._nearest[key] = {mine: own[other] for mine, other in zip(own, places, strict=True)}
        return self._nearest[key][row]

    @cached_property
    def _nearest(self) -> dict[tuple[int, int, bool], dict[int, int]]:
        return {}

    @cached_property
    def rivals(self) -> dict[int, dict[int, int]]:
        """Kept step => class => the other class whose mean is nearest there (L2); of classes that have images."""
        return dict(zip(self.steps, map(nearest_classes, self._class_means.flatten(2)), strict=True))

    @cached_property
    def _class_means(self) -> Float32[Tensor, "steps classes tokens features"]:
        return torch.stack([self.vectors[:, list(rows)].mean(dim=1) for rows in self.class_rows], dim=1)

    def mean(self, step: int | None = None) -> Float32[Tensor, "tokens features"]:
        """Mean over ALL images (tokens, width): the paper's unconditional vector (section 3.2)."""
        return self._means[self._place(step)]

    @cached_property
    def _means(self) -> Float32[Tensor, "steps tokens features"]:
        return self.vectors.mean(dim=1)


@dataclass(frozen=True)
class Shard:
    """What one unit of stage 1 learned; see `Embeddings` for the shapes. `failed` gave vectors that are not finite."""

    ids: tuple[str, ...]
    labels: Int64[Tensor, " images"]
    vectors: Float32[Tensor, "steps images tokens features"]
    losses: Float32[Tensor, "points images"]
    null_losses: Float32[Tensor, " images"]

    def rows(self, keep: Bool[Tensor, " images"]) -> Shard:
        """The images where `keep` is true."""
        ids = tuple(image_id for image_id, kept in zip(self.ids, keep.tolist(), strict=True) if kept)
        return Shard(ids, self.labels[keep], self.vectors[:, keep], self.losses[:, keep], self.null_losses[keep])


class EmbeddingStore:
    """The shards below RUN/embeddings, one for each committed unit, listed by their manifest.

    A commit record also holds the content hash of every image ("hashes") and the ids without finite vectors
    ("failed"), so that changed data is seen without decoding the shards.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER
        self.manifest = Manifest(self.folder / MANIFEST, {"commit": LearnedUnit, "header": Header})

    @property
    def vector_dtype(self) -> VectorDtype:
        """How the vectors lie in the shards, as `begin` was told."""
        header = self.manifest.last("header")
        dtype: VectorDtype = header.get("vector_dtype", "float32") if header is not None else "float32"
        return dtype

    def images(self) -> dict[str, tuple[str, int]]:
        """Content hash and label of every image that was tried, by id."""
        return {
            image_id: (content, label)
            for record in self.manifest.units().values()
            for image_id, content, label in zip(record["ids"], record["hashes"], record["labels"], strict=True)
        }

    def begun(self) -> bool:
        """Whether anything was ever committed here, dropped since or not."""
        return self.manifest.last("commit") is not None

    def failed(self) -> dict[str, str]:
        """Ids that gave no finite vectors, in their order, and why; they are not tried again."""
        return dict(
            sorted(
                (image_id, record.get("reasons", {}).get(image_id, "reason not recorded"))
                for record in self.manifest.units().values()
                for image_id in record["failed"]
            )
        )

    def ended(self) -> dict[str, int]:
        """The step at which each image ended that ended early, by id."""
        return {
            image_id: step
            for record in self.manifest.units().values()
            for image_id, step in record.get("ended", {}).items()
        }

    def begin(self, header: dict[str, Any]) -> None:
        """Record what all shards share: class_names, steps, curve_steps, generator_hash, resolution, image_size;
        vector_dtype where it is not float32; means_of where vectors start at class means.
        """
        record = {"event": "header", "schema": SCHEMA, **header}
        if self.manifest.last("header") != record:
            self.manifest.append(record)

    def commit(self, shard: Shard, images: LabelledImages, notes: Mapping[str, Any] | None = None) -> None:
        """Write what was learned of a unit, the rows of `images`, durably; then list it in the manifest.

        Images that the shard does not hold, or not with finite vectors, are listed as failed. `notes` are the keys of
        LearnedUnit that need not be there.
        """
        vectors = shard.vectors.half() if self.vector_dtype == "float16" else shard.vectors
        finite = vectors.isfinite().all(dim=-1).all(dim=-1).all(dim=0)
        kept = shard.rows(finite)
        said = dict(notes or {})
        if unheld := {image_id: _UNHELD for image_id in shard.rows(~finite).ids}:
            said["reasons"] = {**said.get("reasons", {}), **unheld}
        name = f"shard-{unit_name(images.ids)}.safetensors"
        self.manifest.append(
            {
                "event": "commit",
                "unit": unit_name(images.ids),
                "count": len(images),
                "ids": list(images.ids),
                "failed": [image_id for image_id in images.ids if image_id not in kept.ids],
                "labels": images.labels.tolist(),
                "hashes": list(images.hashes),
                "files": {name: self._write(name, kept)} if kept.ids else {},
                **said,
            }
        )

    def _write(self, name: str, shard: Shard) -> str:
        tensors = {
            "labels": shard.labels,
            **pack(shard.vectors.float(), self.vector_dtype),
            "losses": shard.losses.float().contiguous(),
            "null_losses": shard.null_losses.float().contiguous(),
        }
        # One metadata key: safetensors writes several in no fixed order.
        return commit_bytes(self.folder / name, save(tensors, metadata={"ids": json.dumps(shard.ids)}))

    def finish(self) -> None:
        """Mark the stage as complete with the images it holds now."""
        record = {"event": "complete", "count": len(self.images())}
        if self.manifest.last("complete") != record:
            self.manifest.append(record)

    def is_complete(self) -> bool:
        """Whether stage 1 went through, for all images it holds."""
        complete = self.manifest.last("complete")
        return complete is not None and bool(complete["count"] == len(self.images()))

    def remove(self, ids: set[str]) -> None:
        """Delete these images' vectors and every trace of them in the manifest; the others stay as they are."""
        records: list[Record] = []
        replaced: list[str] = []
        complete = self.is_complete()
        for record in self.manifest.units().values():
            if not ids & set(record["ids"]):
                records.append(record)
                continue
            keep = [image_id not in ids for image_id in record["ids"]]
            left = [image_id for image_id in record["ids"] if image_id not in ids]
            lists = {key: [v for v, ok in zip(record[key], keep, strict=True) if ok] for key in ("labels", "hashes")}
            failed = [image_id for image_id in record["failed"] if image_id not in ids]
            files: dict[str, str] = {}
            for name, digest in record["files"].items():
                replaced.append(name)
                try:
                    shard = self._read_shard(name, digest)
                except DataError:  # damaged: its other images are learned again
                    left, complete = [], False
                    break
                rest = shard.rows(torch.tensor([image_id not in ids for image_id in shard.ids], dtype=torch.bool))
                if rest.ids:
                    new_name = f"shard-{unit_name(left)}.safetensors"
                    files[new_name] = self._write(new_name, rest)
            if left:
                changed = {"unit": unit_name(left), "count": len(left), "ids": left, "failed": failed, "files": files}
                notes: dict[str, Any] = {
                    key: {image_id: note for image_id, note in record[key].items() if image_id in left}
                    for key in ("reasons", "rates", "ended")
                    if key in record
                }
                records.append({**record, **changed, **lists, **notes})
        if header := self.manifest.last("header"):
            records.insert(0, header_without(header, ids))
        if complete:
            count = sum(record["count"] for record in records if record["event"] == "commit")
            records.append({"event": "complete", "count": count})
        self.manifest.rewrite([*records, *(r for r in self.manifest.records() if r["event"] == "time")])
        for name in replaced:
            (self.folder / name).unlink(missing_ok=True)

    def read(self) -> Embeddings:
        """All committed vectors, sorted by image id. DataError where a shard is missing or not what was written."""
        units = self.manifest.units().values()
        header = self.manifest.last("header")
        files = [(unit["unit"], *file) for unit in units for file in unit["files"].items()]
        shards = [self._read_shard(name, digest) for _, name, digest in files]
        if not shards or header is None:
            raise DataError(
                f"{self.folder}: no learned vectors. Run `dinv invert DATA --out {self.folder.parent}` first."
            )
        ids = [image_id for shard in shards for image_id in shard.ids]
        learned_in = [unit for (unit, *_), shard in zip(files, shards, strict=True) for _ in shard.ids]
        order = sorted(range(len(ids)), key=ids.__getitem__)
        return Embeddings(
            ids=tuple(ids[row] for row in order),
            labels=torch.cat([shard.labels for shard in shards])[order],
            class_names=tuple(header["class_names"]),
            steps=tuple(header["steps"]),
            vectors=torch.cat([shard.vectors for shard in shards], dim=1)[:, order],
            curve_steps=tuple(header["curve_steps"]),
            losses=torch.cat([shard.losses for shard in shards], dim=1)[:, order],
            null_losses=torch.cat([shard.null_losses for shard in shards])[order],
            generator_hash=header["generator_hash"],
            resolution=header["resolution"],
            image_size=header["image_size"],
            groups=tuple(learned_in[row] for row in order) if self._joint() else None,
        )

    def _joint(self) -> bool:
        """Whether stage 1 learned its units as groups, by the settings that it recorded."""
        path = self.folder.parent / CONFIG_FILE
        found = Ledger(self.folder.parent).read_json(CONFIG_FILE)
        return found is not None and check_record(found, Config, path)["settings"].get("grouping") == "joint"

    def _read_shard(self, name: str, digest: str) -> Shard:
        path = inside(self.folder, name)
        try:
            wanted = SPECS | specs(self.vector_dtype)
            tensors, metadata = read_tensors(path, wanted, max_bytes=LARGEST_SHARD, sha256=digest)
            ids = tuple(check_record(parse_json(metadata.get("ids", "null").encode(), path), list[str], path))
            if len(ids) != len(tensors["labels"]):
                raise DataError(f"{path}: {len(ids)} ids for {len(tensors['labels'])} vectors")
        except DataError as error:
            raise DataError(f"{error} `dinv repair {self.folder.parent}` learns its vectors again.") from error
        return Shard(ids, tensors["labels"], unpack(tensors), tensors["losses"], tensors["null_losses"])


def read_embeddings(run: str | Path) -> Embeddings:
    """The learned vectors of a run folder.

    Raises DataError where there are none or a shard is damaged, UsageError where stage 1 was not finished.
    """
    store = EmbeddingStore(Path(run))
    found = store.read()
    if not store.is_complete():  # means and partners need every vector
        raise UsageError(f"{store.folder}: stage 1 is not finished. Run the same `dinv invert` command again first.")
    return found
