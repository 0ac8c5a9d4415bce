"""What two images are compared by: pixels after alignment, parts as Lite0 sees them, features of any extractor.

A view sees an image twice: as a known one, which may have been copied, and as a query, which may be the copy. What a
copy may have gone through (mirrored, shifted, enlarged) is tried, and the smallest distance counts. Distances are those
between vectors of length 1: sqrt(2 - 2 cosine).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...generator.features import INPUT_SIZE, load_lite0, stage_maps
from ..extractors.extractor import Extractor, Preprocessing, extract

SIDE = 16  # px of the thumbnails that pixels are compared at: fine detail is what a generator changes first
MARGIN = 2  # px of them by which a copy may be shifted, either way
ZOOMS = (1.0, 0.875, 0.75)  # share of the side of a known image that a copy may show
PARTS_STAGE = 3  # of Lite0: stride 16, so 8 x 8 places of an image at 128 px
KEPT_PARTS = 0.5  # share of a query's parts that count, those that are found best: half an image can be copied
_AT_ONCE = 8  # images in the network, and known ones beside all queries: what a core's cache holds
_FLAT = 0.5  # levels: standard deviation below which pixels show nothing


@dataclass(frozen=True)
class View:
    """A way to compare. Descriptions are float32, one row an image, on the device that compares them.

    known: uint8 (N, 3, S, S) => (N, ...), of images that may have been copied.
    query: uint8 (Q, 3, S, S) => (Q, ...), of images that may be copies.
    distances: descriptions of Q queries and N known images => (Q, N) in [0, 2], on the CPU.
    """

    name: str
    known: Callable[[Tensor], Tensor]
    query: Callable[[Tensor], Tensor]
    distances: Callable[[Tensor, Tensor], Tensor]


def pixel_view(device: torch.device) -> View:
    """Pixels of 16 px thumbnails in colour, blind to brightness, contrast and tint; mirrored, shifted, enlarged."""
    inner = SIDE - 2 * MARGIN

    def known(images: Tensor) -> Tensor:
        """(N, 6, 432): 12 x 12 px in the middle of the image, of its middle enlarged twice, and of each mirrored."""
        size, middles = images.shape[-1], []
        for zoom in ZOOMS:
            side = max(round(zoom * size), 1)
            first = (size - side) // 2
            small = _thumbnails(images[..., first : first + side, first : first + side].to(device))
            middle = small[..., MARGIN : MARGIN + inner, MARGIN : MARGIN + inner]
            middles += [_unit_pixels(middle), _unit_pixels(middle.flip(-1))]
        return torch.stack(middles, dim=1)

    def query(images: Tensor) -> Tensor:
        """(Q, 25, 432): 12 x 12 px at every place."""
        windows = _thumbnails(images.to(device)).unfold(2, inner, 1).unfold(3, inner, 1)  # (Q, 3, 5, 5, 12, 12)
        places = windows.shape[2] * windows.shape[3]
        each = windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return _unit_pixels(each).reshape(len(images), places, -1)

    def distances(queries: Tensor, known: Tensor) -> Tensor:
        best = torch.full((len(queries), len(known)), -1.0, device=device)
        for window in queries.unbind(1):
            for middle in known.unbind(1):
                torch.maximum(best, window @ middle.T, out=best)
        return _chord(best)

    return View("pixels", known, query, distances)


def part_view(device: torch.device) -> View:
    """Lite0's features of 4 x 4 parts of an image, each beside that of 7 x 7 overlapping parts that is most like it.

    The distance is of the better half of the parts, wherever they are found: so of what is shifted, cut out, mirrored,
    or joined from two images.
    """
    lite0 = load_lite0().to(device).to(memory_format=torch.channels_last)
    prepare = Preprocessing(INPUT_SIZE, "bilinear", (0.5,) * 3, (0.5,) * 3)
    images_at_once, known_at_once = (_AT_ONCE, _AT_ONCE) if device.type == "cpu" else (64, 256)

    def parts(images: Tensor) -> Tensor:
        """(N, 7, 7, 112): unit vectors of windows of 2 x 2 places, by row and column."""
        return torch.cat([some_parts(few) for few in images.split(images_at_once)])

    def some_parts(images: Tensor) -> Tensor:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            prepared = prepare(images.to(device)).contiguous(memory_format=torch.channels_last)
            (grid,) = stage_maps(lite0, prepared, (PARTS_STAGE,))
            return F.normalize(F.avg_pool2d(grid, 2, stride=1), dim=1).permute(0, 2, 3, 1)

    def known(images: Tensor) -> Tensor:
        """(N, 2, 49, 112): of the image and of its mirror image."""
        return torch.stack([parts(images).flatten(1, 2), parts(images.flip(-1)).flatten(1, 2)], dim=1)

    def query(images: Tensor) -> Tensor:
        """(Q, 16, 112): the parts that do not overlap."""
        return parts(images)[:, ::2, ::2].flatten(1, 2)

    def distances(queries: Tensor, known: Tensor) -> Tensor:
        kept, each = round(KEPT_PARTS * queries.shape[1]), queries.flatten(0, 1).T.contiguous()

        def nearest(some: Tensor) -> Tensor:  # (n, 2, 49, 112) => (n, Q)
            best = torch.full((len(some), len(queries)), -1.0, device=device)
            for side in some.unbind(1):
                found = (side.flatten(0, 1) @ each).unflatten(0, side.shape[:2]).amax(1)  # (n, Q 16)
                found = found.unflatten(1, queries.shape[:2])
                torch.maximum(best, found.topk(kept, dim=2).values.mean(2), out=best)
            return best

        return _chord(torch.cat([nearest(some) for some in known.split(known_at_once)]).T)

    return View("parts", known, query, distances)


def feature_view(extractor: Extractor) -> View:
    """Features of an extractor, of a known image and of its mirror image; named after the extractor."""

    def query(images: Tensor) -> Tensor:
        return F.normalize(extract(extractor, images), dim=1).to(extractor.device)

    def known(images: Tensor) -> Tensor:
        return torch.stack([query(images), query(images.flip(-1))], dim=1)

    def distances(queries: Tensor, known: Tensor) -> Tensor:
        return _chord((known @ queries.T).amax(1).T)

    return View(extractor.name, known, query, distances)


def _thumbnails(images: Tensor) -> Tensor:
    """uint8 (N, 3, S, S) => float32 (N, 3, 16, 16), antialiased."""
    return F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)


def _unit_pixels(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) => (N, 3 H W) of length 1 without the mean of each colour; what is flat becomes zero."""
    rows = (pixels - pixels.mean((2, 3), keepdim=True)).flatten(1)
    lengths = rows.norm(dim=1, keepdim=True)
    flat = lengths < _FLAT * rows.shape[1] ** 0.5
    return torch.where(flat, 0.0, rows / lengths.clamp_min(_FLAT))


def _chord(cosines: Tensor) -> Tensor:
    """Distance between vectors of length 1 by their cosine."""
    return (2 - 2 * cosines).clamp_min(0).sqrt().cpu()
