"""The store of stage 1: learned conditioning vectors in safetensors shards, listed by a manifest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .engine.store import Manifest, commit_bytes, commit_file
from .errors import DataError, UsageError

FOLDER, COMPLETE = "embeddings", "complete.json"
SCHEMA = 1


@dataclass(frozen=True)
class Embeddings:
    """Learned vectors of N images at S kept steps.

    ids (N); labels (N,) int64; class_names; steps (S, ascending); vectors (S, N, tokens, width) float32;
    curve_steps (P, ascending) and losses (P, N) float32: mean loss of each image on its fixed evaluation bank;
    null_losses (N,): the same with the empty prompt; generator_hash; resolution (side in px they were learned at);
    image_size (native side of the data set in px).
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

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, step: int | None = None) -> Float32[Tensor, "images tokens features"]:
        """Vectors (N, tokens, width) at a kept step, by default the last; DataError for a step that was not kept."""
        if step is None:
            return self.vectors[-1]
        if step not in self.steps:
            raise DataError(
                f"step {step}: its vectors were not kept (kept: {self.steps}). Invert with --keep-steps {step}."
            )
        return self.vectors[self.steps.index(step)]

    @cached_property
    def digest(self) -> str:
        """sha256 hex of ids, labels, class names and vectors: what stage 2 draws from."""
        digest = hashlib.sha256(json.dumps([self.ids, self.labels.tolist(), self.class_names, self.steps]).encode())
        digest.update(self.vectors.contiguous().numpy().data)
        return digest.hexdigest()

    @cached_property
    def class_rows(self) -> tuple[tuple[int, ...], ...]:
        """Rows of each class, by image id, so that they do not depend on the order of learning."""
        labels = self.labels.tolist()
        found: list[list[int]] = [[] for _ in self.class_names]
        for row in sorted(range(len(self)), key=lambda row: self.ids[row]):
            found[labels[row]].append(row)
        return tuple(tuple(rows) for rows in found)

    def mean(self, step: int | None = None) -> Float32[Tensor, "tokens features"]:
        """Mean over ALL images (tokens, width): the paper's unconditional vector (section 3.2)."""
        self.at(step)
        return self._means[-1 if step is None else self.steps.index(step)]

    @cached_property
    def _means(self) -> Float32[Tensor, "steps tokens features"]:
        return self.vectors.mean(dim=1)


@dataclass(frozen=True)
class Shard:
    """One committed unit of stage 1; see `Embeddings` for the shapes."""

    ids: tuple[str, ...]
    labels: Int64[Tensor, " images"]
    vectors: Float32[Tensor, "steps images tokens features"]
    losses: Float32[Tensor, "points images"]
    null_losses: Float32[Tensor, " images"]


class EmbeddingStore:
    """The shards below RUN/embeddings. `header` is what all shards share (class names, steps, generator, sizes)."""

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER
        self.manifest = Manifest(self.folder / "manifest.jsonl")

    def done(self) -> set[str]:
        """Ids of every committed image."""
        return {image_id for record in self.manifest.records() for image_id in record["ids"]}

    def finish(self, failed: list[str]) -> None:
        """Mark the stage as complete; `failed` are ids whose vectors are not finite, which are not tried again."""
        commit_bytes(
            self.folder / COMPLETE, (json.dumps({"count": len(self.done()), "failed": failed}) + "\n").encode()
        )

    def failed(self) -> list[str]:
        """Ids that gave no finite vectors; empty before the stage is complete."""
        path = self.folder / COMPLETE
        return list(json.loads(path.read_text())["failed"]) if path.is_file() else []

    def require_complete(self) -> None:
        """Raise UsageError unless stage 1 went through: means and partners need every vector."""
        path = self.folder / COMPLETE
        if not path.is_file() or json.loads(path.read_text())["count"] != len(self.done()):
            raise UsageError(f"{self.folder}: stage 1 is not finished. Run the same `dinv invert` command again first.")

    def commit(self, shard: Shard, header: dict[str, Any]) -> None:
        """Write a shard durably, then list it in the manifest."""
        name = f"shard-{len(self.manifest.records()):05d}.safetensors"
        tensors = {
            "labels": shard.labels,
            "vectors": shard.vectors.float().contiguous(),
            "losses": shard.losses.float().contiguous(),
            "null_losses": shard.null_losses.float().contiguous(),
        }
        metadata = {"ids": json.dumps(shard.ids), "header": json.dumps(header)}
        digest = commit_file(self.folder / name, lambda path: save_file(tensors, path, metadata=metadata))
        self.manifest.append(
            {"file": name, "ids": list(shard.ids), "count": len(shard.ids), "sha256": digest, **header}
        )

    def read(self) -> Embeddings:
        """All committed vectors, in the order they were learned. DataError where a shard is missing or damaged."""
        records = self.manifest.records()
        if not records:
            raise DataError(
                f"{self.folder}: no learned vectors. Run `dinv invert DATA --out {self.folder.parent}` first."
            )
        ids: list[str] = []
        parts: dict[str, list[Tensor]] = {"labels": [], "vectors": [], "losses": [], "null_losses": []}
        for record in records:
            path = self.folder / str(record["file"])
            try:
                with safe_open(path, "pt") as handle:
                    shard = {key: handle.get_tensor(key) for key in parts}
                    found = json.loads(handle.metadata()["ids"])
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                raise DataError(f"{path}: cannot be read ({error}). Delete {self.folder} and invert again.") from error
            if found != record["ids"] or not torch.isfinite(shard["vectors"]).all():
                raise DataError(f"{path}: not what the manifest lists. Delete {self.folder} and invert again.")
            ids += found
            for key, value in shard.items():
                parts[key].append(value)
        head = records[0]
        return Embeddings(
            ids=tuple(ids),
            labels=torch.cat(parts["labels"]),
            class_names=tuple(head["class_names"]),
            steps=tuple(head["steps"]),
            vectors=torch.cat(parts["vectors"], dim=1),
            curve_steps=tuple(head["curve_steps"]),
            losses=torch.cat(parts["losses"], dim=1),
            null_losses=torch.cat(parts["null_losses"]),
            generator_hash=head["generator_hash"],
            resolution=head["resolution"],
            image_size=head["image_size"],
        )


def read_embeddings(run: str | Path) -> Embeddings:
    """The learned vectors of a run folder.

    Raises DataError where there are none or a shard is damaged, UsageError where stage 1 was not finished.
    """
    store = EmbeddingStore(Path(run))
    found = store.read()
    store.require_complete()
    return found
