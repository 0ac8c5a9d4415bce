"""What learners learn from: the features of labelled images, drawn in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...data.dealing import FREE, deal
from ...randomness import generator_for
from ..mixing import RowOrder


@dataclass(frozen=True, eq=False)
class Encoded:
    """The features of N images by a frozen encoder, not of length 1, and what the images show.

    made_from: by image, the content hashes of the real images that it is, or was made from; empty where not known.
    alike: by image, a number that images have in common which no fold may part; empty where each stands alone.
    """

    clean: Tensor  # (N, D) float32: of the images as they are
    views: Tensor  # (V, N, D) float32: of V augmented views of each; V is 0 where no learner needs them
    targets: Tensor  # (N, C) float32, rows sum to 1
    made_from: tuple[frozenset[str], ...]
    alike: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def labels(self) -> Tensor:
        """(N,) int64: the class that has most of each target."""
        return self.targets.argmax(1)

    def rows(self, rows: Sequence[int]) -> Encoded:
        """Those of some images, in this order."""
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.clean.device)
        return replace(
            self,
            clean=self.clean[index],
            views=self.views[:, index],
            targets=self.targets[index],
            made_from=tuple(self.made_from[row] for row in rows),
            alike=tuple(self.alike[row] for row in rows) if self.alike else (),
        )


class Batches:
    """Features and targets of one set of images for ever: shuffled epochs end to end, one random view of each."""

    def __init__(self, examples: Encoded, size: int, *identity: int | str) -> None:
        """size: images a batch, at most all of them. identity: what the order and the views depend on."""
        self.examples = examples
        self.size = min(size, len(examples))
        self._stream = generator_for("few-shot", *identity)
        self._order = RowOrder(len(examples), self._stream)

    def draw(self, *, augmented: bool = True) -> tuple[Tensor, Tensor]:
        """The next features (B, D) and targets (B, C); of the images as they are unless `augmented`."""
        rows = self._order.draw(self.size)
        where = self.examples.clean.device
        if not augmented:
            return self.examples.clean[rows.to(where)], self.examples.targets[rows.to(where)]
        view = torch.randint(len(self.examples.views), (self.size,), generator=self._stream)
        return self.examples.views[view.to(where), rows.to(where)], self.examples.targets[rows.to(where)]


def folds(labels: Tensor, most: int, alike: Sequence[int] = ()) -> list[list[int]]:
    """Rows of the images (N,) int64, parted so that every class is spread evenly: `most` parts, fewer where a class
    has fewer images, none where one has a single image.

    Images with one number in `alike` (N) are in one part, and count as one image. Those of a class that would be in one
    part as a whole are in none.
    """
    if len(set(alike)) < len(alike):
        return _whole_folds(labels, most, alike)
    members = [(labels == label).nonzero()[:, 0].tolist() for label in labels.unique().tolist()]
    count = min([most, *map(len, members)])
    if count < 2:
        return []
    return [sorted(row for rows in members for row in rows[part::count]) for part in range(count)]


def _whole_folds(labels: Tensor, most: int, alike: Sequence[int]) -> list[list[int]]:
    place = {one: number for number, (one, _) in enumerate(Counter(alike).most_common())}  # the largest first
    groups = torch.tensor([place[one] for one in alike])
    counts = torch.zeros(len(place), int(labels.max()) + 1, dtype=torch.int64)
    counts.index_put_((groups, labels.cpu()), torch.ones_like(groups), accumulate=True)
    count = min(most, int((counts > 0).sum(0)[labels.unique().cpu()].min()))
    if count < 2:
        return []
    part = torch.from_numpy(deal(counts.numpy(), [1 / count] * count))
    alone = [label for label in labels.unique().tolist() if len(part[counts[:, label] > 0].unique()) == 1]
    part[(counts[:, alone] > 0).any(1)] = FREE
    found = [(part[groups] == number).nonzero()[:, 0].tolist() for number in range(count)]
    return [rows for rows in found if rows]


def without(examples: Encoded, held_out: frozenset[str]) -> Encoded:
    """The images that neither are held out nor were made from one that is."""
    return examples.rows([row for row, made in enumerate(examples.made_from) if made.isdisjoint(held_out)])
