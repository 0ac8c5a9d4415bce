"""Near-duplicates: the same picture encoded, scaled, brightened or cropped anew, told from pictures of alike objects.

A perceptual hash (8 x 8 low DCT coefficients, as pHash takes, but kept as numbers instead of signs) finds candidates;
two tests on distances and one on pixels keep those that stand out. How close alike objects come differs by a factor
of 30 between data sets (solar cells, photographs), so a pair counts only if it is much closer than each of the two is
to its 1 % nearest images. `experiments/near_duplicates.py` measures false alarms and recall.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIDE = 32  # px of the thumbnails
_LOW, _FINE = 8, 16  # DCT coefficients a side: of the hash, and of the test for copies
_RATIO = 0.25  # a near-duplicate is at most this far, relative to the 1 % nearest images of either
_COPY = 0.9993  # cosine of the fine coefficients above which neighbours do not matter: two encodings of one picture
_NEAREST, _SHARE, _SAMPLE = 10, 0.01, 1024  # neighbours: the 10th or 1 %, among a sample of this many images
_FEW, _FEW_DISTANCE = 4, 0.6  # below so many images nothing is known about neighbours
_SAME_PIXELS = 0.8  # correlation of the thumbnails in colour
_FLAT = 2.0  # levels: standard deviation below which a picture shows nothing to compare
_BLOCK, _WIDTH = 512, 1 << 16  # rows and columns of the distance matrix at a time: 512 x 65,536 x 4 bytes = 134 MB


def thumbnail(image: Tensor) -> Tensor:
    """(3, S, S) or (B, 3, S, S) uint8 of any S => (..., 3, 32, 32) uint8, antialiased."""
    batch = image if image.ndim == 4 else image[None]
    if batch.shape[-1] != SIDE:
        size = (SIDE, SIDE)
        batch = torch.nn.functional.interpolate(batch, size=size, mode="bicubic", antialias=True)
    return batch if image.ndim == 4 else batch[0]


def near_pairs(thumbnails: Tensor) -> list[tuple[int, int]]:
    """Near-duplicates among (N, 3, 32, 32) uint8 thumbnails of pictures with different pixels, in row order.

    A pair is the rows of two images that show the same picture, the lower one first.
    Takes 10 to 30 s for 60,000 images on 2 cores and 0.3 GB beside the thumbnails. Blank pictures are never pairs.
    Not found: crops of more than about 2 %, mirrored or turned copies, and groups of more than 1 % of the images (at
    least 10) unless their members differ by encoding alone: those look like a class of alike objects.
    """
    rows, pictures = _showing(thumbnails)
    if len(rows) < 2:
        return []
    codes = torch.from_numpy(_codes(pictures, _LOW))
    coded = _Coded(pictures, codes, _RATIO * _neighbourhood(codes, codes))
    found = [pair for block in _candidates(codes, coded.reach) for pair in _verified(coded, coded, block)]
    return [(int(rows[first]), int(rows[second])) for first, second in found]


class NearTo:
    """Near-duplicates of known pictures among others, of which any number may come, block by block.

    How close alike objects come is measured among the known pictures, so what is found of a picture does not depend on
    the block that it came in.
    """

    def __init__(self, known: Tensor) -> None:
        """`known` are the thumbnails (N, 3, 32, 32) uint8."""
        self._rows, pictures = _showing(known)
        codes = torch.from_numpy(_codes(pictures, _LOW))
        self._known = _Coded(pictures, codes, _RATIO * _neighbourhood(codes, codes))

    def pairs(self, others: Tensor) -> list[tuple[int, int]]:
        """(row among the known, row among `others`) of every pair, for thumbnails (M, 3, 32, 32) uint8."""
        rows, pictures = _showing(others)
        if not len(rows) or not len(self._rows):
            return []
        codes = torch.from_numpy(_codes(pictures, _LOW))
        coded = _Coded(pictures, codes, _RATIO * _neighbourhood(codes, self._known.codes))
        lowest = _lowest(self._known.reach)
        found: list[tuple[int, int]] = []
        for start in range(0, len(self._rows), _BLOCK):
            block = self._known.codes[start : start + _BLOCK] @ codes.T
            near = (block >= lowest[start : start + _BLOCK, None]).nonzero() + torch.tensor([start, 0])
            found += _verified(self._known, coded, near)
        return [(int(self._rows[first]), int(rows[second])) for first, second in found]


@dataclass(frozen=True)
class _Coded:
    """Pictures (N, 3, 32, 32) uint8 that show something, their codes (N, 64) and how near a near-duplicate is (N,)."""

    pictures: Tensor
    codes: Tensor
    reach: Tensor


def _showing(thumbnails: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M,) of the pictures that are not blank, and these pictures."""
    if not len(thumbnails):
        return torch.empty(0, dtype=torch.int64), thumbnails
    shows = torch.cat([part.float().std(dim=(1, 2, 3)) >= _FLAT for part in thumbnails.split(4096)])
    rows = shows.nonzero()[:, 0]
    return rows, thumbnails if len(rows) == len(thumbnails) else thumbnails[rows]


def _codes(thumbnails: Tensor, side: int) -> NDArray[np.float32]:
    """DCT coefficients (N, side * side) of unit length: grey, without the mean, weighted by frequency.

    The spectrum of photographs falls as 1 / frequency; the weight gives all scales the same say.
    """
    from scipy.fft import dctn

    steps = np.arange(side)
    weights = np.hypot(steps[:, None], steps[None]).astype(np.float32)
    codes = np.empty((len(thumbnails), side * side), np.float32)
    for start in range(0, len(thumbnails), 4096):
        grey = thumbnails[start : start + 4096].float().mean(1).numpy()
        low = dctn(grey, axes=(1, 2), norm="ortho")[:, :side, :side] * weights
        codes[start : start + len(grey)] = low.reshape(len(grey), -1)
    codes /= np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-6)
    return codes


def _distance(cosine: Tensor) -> Tensor:
    distance: Tensor = (1 - cosine).clamp_min(0).sqrt()
    return distance


def _neighbourhood(codes: Tensor, among: Tensor) -> Tensor:
    """Distance (N,) from each image to its 10th or 1 % nearest, whichever is more, in an even sample of `among`."""
    count = len(among)
    if count < _FEW:
        return torch.full((len(codes),), _FEW_DISTANCE)
    sample = among[torch.linspace(0, count - 1, min(count, _SAMPLE)).round().long()]
    nearest = min(max(_NEAREST, int(_SHARE * len(sample))), (count - 1) // 2)
    parts = [_distance(part @ sample.T).kthvalue(nearest + 1, dim=1).values for part in codes.split(_BLOCK)]
    return torch.cat(parts)


def _candidates(codes: Tensor, reach: Tensor) -> Iterator[Tensor]:
    """Pairs (M, 2) with first < second that are within reach of the first, or nearly equal; block by block."""
    lowest = _lowest(reach)
    for start in range(0, len(codes), _BLOCK):
        found = []
        for side in range(start, len(codes), _WIDTH):
            block = codes[start : start + _BLOCK] @ codes[side : side + _WIDTH].T
            if side == start:  # the only part that holds pairs with second <= first
                corner = block[:, : len(block)]
                corner.masked_fill_(torch.ones_like(corner, dtype=torch.bool).tril_(), -1)
            found.append((block >= lowest[start : start + _BLOCK, None]).nonzero() + torch.tensor([start, side]))
        pairs = torch.cat(found)
        yield pairs[pairs[:, 0].argsort(stable=True)] if len(found) > 1 else pairs


def _lowest(reach: Tensor) -> Tensor:
    """The cosine (N,) from which on another picture is a candidate."""
    return torch.minimum(1 - reach**2, torch.tensor(_COPY))


def _verified(one: _Coded, other: _Coded, pairs: Tensor) -> Iterator[tuple[int, int]]:
    """The pairs (M, 2) of a row of `one` and a row of `other` that stand the tests."""
    for part in pairs.split(4096):
        first, second = part.unbind(1)
        cosine = (one.codes[first] * other.codes[second]).sum(1)
        near = _distance(cosine) <= torch.minimum(one.reach[first], other.reach[second])
        pictures = one.pictures[first], other.pictures[second]
        fine = [torch.from_numpy(_codes(pixels, _FINE)) for pixels in pictures]
        copy = (fine[0] * fine[1]).sum(1) >= _COPY
        same = _correlation(*pictures) >= _SAME_PIXELS
        for row in ((near | copy) & same).nonzero()[:, 0].tolist():
            yield int(first[row]), int(second[row])


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Correlation (M,) of pixels (M, 3, 32, 32): blind to brightness and contrast, not to colour."""
    a, b = (x.float().flatten(1) - x.float().flatten(1).mean(1, keepdim=True) for x in (one, other))
    correlation: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-6)
    return correlation
