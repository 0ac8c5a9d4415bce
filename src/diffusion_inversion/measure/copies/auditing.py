"""The audit: which generated images are nearer to a training image than images that copy nothing come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...data.images import LabelledImages
from ...data.near_duplicates import NearTo, near_pairs, thumbnail
from ...errors import DataError
from ...randomness import generator_for
from .conformal import threshold
from .found import ANY, CopyAudit, Recall, Seen, nearest_of
from .nearest import Known, Nearest
from .planted import LEVELS, plant
from .shares import share
from .views import View

FEWEST = 5  # training images, and images of the null
MOST_NULL = 1000  # of these: enough for a rate of 0.1 %
LEAST_UNIT = 1e-3


def audit_images(
    real: LabelledImages,
    generated: LabelledImages,
    test: LabelledImages | None,
    views: Sequence[View],
    *,
    false_positives: float,
    neighbours: int,
    planted: int,
    seed: int,
    sources: Sequence[str] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> CopyAudit:
    """Look for training images among generated ones.

    - `test`: images of the same kind that were never trained on. None: training images, each left out in turn.
    - `planted`: so many training images are copied on purpose at each level, to say how many would be found.
    - `sources`: of each generated image, by the ids of real images where these are among them.
    - `advance` hears how many images were searched for, in each view.

    Raises DataError where there are too few images to say anything.
    """
    if not len(generated):
        raise DataError(f"{generated.name}: no images to audit; give generated images")
    side, stream = min(real.size, generated.size), generator_for(seed, "audit")
    known, queries = real.resized(side).images, generated.resized(side).images
    same = doubles(real)
    within = some_of(real, same, stream)
    dropped = same if test is None else shown_in(test, real)
    apart = within if test is None else some_of(test, dropped, stream)
    rows = torch.randperm(len(real), generator=stream)[:planted].sort().values
    copies = {level: plant(level, known, rows, seed) for level in LEVELS} if planted else {}

    views_saw: dict[str, Seen] = {}
    returned: dict[str, dict[str, Nearest]] = {}
    for view in views:
        memory = Known(view, known, neighbours, within, advance)
        unit = max(float(memory.left_out.scores.quantile(false_positives)), LEAST_UNIT)
        null = memory.left_out if test is None else memory.search(test.resized(side).images[apart])
        again = {level: memory.search(one.images) for level, one in copies.items()}
        every = torch.cat([one.scores for one in again.values()]) if again else torch.empty(0)
        views_saw[view.name] = Seen(memory.search(queries), unit, null.scores, every)
        returned[view.name] = again
    limit = threshold(nearest_of({name: seen.null for name, seen in views_saw.items()}, views_saw), false_positives)
    hits = {
        name: {
            level: _hits(limit.flags(one.scores / views_saw[name].unit), one.rows, copies[level].rows)
            for level, one in levels.items()
        }
        for name, levels in returned.items()
    }
    if copies:
        hits[ANY] = {level: _any([hits[view.name][level] for view in views]) for level in copies}
    recall = {
        name: {level: Recall(share(flags), int(right.sum())) for level, (flags, right) in levels.items()}
        for name, levels in hits.items()
        if levels
    }
    return CopyAudit(
        real=real,
        generated=generated,
        neighbours=neighbours,
        null="left out" if test is None else "test",
        null_dropped=len(dropped),
        threshold=limit,
        views=views_saw,
        recall=recall,
        sources=None if sources is None else tuple(sources),
    )


def images_to_search(real: int, generated: int, test: int | None, planted: int) -> int:
    """How many images are searched for in a view: what `audit_images` tells `advance`, near-duplicates aside."""
    return real + generated + min(test or 0, MOST_NULL) + len(LEVELS) * min(planted, real)


def some_of(images: LabelledImages, but: set[int], stream: torch.Generator) -> Tensor:
    """At most MOST_NULL rows of images that copy nothing, at random, ascending."""
    rows = torch.tensor([row for row in range(len(images)) if row not in but], dtype=torch.int64)
    if len(rows) < FEWEST:
        raise DataError(
            f"{images.name}: {len(rows)} images that are no near-duplicates of training images, too few to tell a "
            f"copy; give at least {FEWEST}"
        )
    return rows[torch.randperm(len(rows), generator=stream)[:MOST_NULL].sort().values]


def doubles(images: LabelledImages) -> set[int]:
    """Rows of the images that show the same picture as another one."""
    times = Counter(images.hashes)
    near = {row for pair in near_pairs(_thumbnails(images)) for row in pair}
    return near | {row for row, content in enumerate(images.hashes) if times[content] > 1}


def shown_in(images: LabelledImages, others: LabelledImages) -> set[int]:
    """Rows of the images that show the same picture as one of the others."""
    contents = {*others.hashes}
    near = {row for _, row in NearTo(_thumbnails(others)).pairs(_thumbnails(images))}
    return near | {row for row, content in enumerate(images.hashes) if content in contents}


def _thumbnails(images: LabelledImages) -> Tensor:
    """(N, 3, 32, 32) uint8, by which near-duplicates are found."""
    return torch.cat([thumbnail(part) for part in images.images.split(256)])


def _hits(flags: Tensor, nearest: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    """Which copies (P,) are flagged, and of which that is for a picture they show: rows (P,) among rows (P, 2)."""
    return flags, flags & (nearest[:, None] == shown).any(1)


def _any(found: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    flags, right = (torch.stack(one).any(0) for one in zip(*found, strict=True))
    return flags, right
