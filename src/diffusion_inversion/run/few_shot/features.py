"""Features of images by CLIP, kept on disk: of the images as they are, and of augmented views of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...config.few_shot import FewShotSettings
from ...data.images import LabelledImages
from ...engine.progress import track
from ...measure.extractors.cache import cached_features
from ...measure.extractors.extractor import Extractor, Preprocessing
from ...randomness import generator_for
from ...train.few_shot.clip import Clip
from ...train.few_shot.examples import Encoded
from ...train.few_shot.views import random_view


def image_encoder(clip: Clip) -> Extractor:
    """CLIP's image side as an extractor; features are projected, not of length 1."""
    prepare = Preprocessing(clip.image_size, "bicubic", clip.mean, clip.std)

    def embed(images: Tensor) -> Tensor:
        return clip.image_features(prepare(images))

    return Extractor("clip", "_clip", clip.width, str(prepare), clip.hash, clip.device, embed)


def clean_features(images: LabelledImages, clip: Clip, cache: Path) -> Tensor:
    """Features (N, D) float32 of the images as they are, on CLIP's device."""
    with track(f"CLIP features of {images.name}", len(images)) as advance:
        return cached_features(image_encoder(clip), images.images, cache, advance=advance).to(clip.device)


def encode(
    images: LabelledImages,
    targets: Tensor,
    made_from: Sequence[frozenset[str]],
    clip: Clip,
    settings: FewShotSettings,
    cache: Path,
    *,
    views: bool,
) -> Encoded:
    """Features of images and, where learners need them, of `settings.views` views of each.

    A view depends on the image's content and its own number alone.
    """
    count = settings.views if views else 0
    if not len(images):  # zero-shot alone learns from none
        none = torch.empty(count, 0, clip.width, device=clip.device)
        return Encoded(none[0] if count else none.view(0, clip.width), none, targets.to(clip.device), ())
    found = torch.empty(count, len(images), clip.width)
    clean = clean_features(images, clip, cache)
    if count:
        encoder = image_encoder(clip)
        with track(f"CLIP features of views of {images.name}", count * len(images)) as advance:
            for view in range(count):
                pixels = torch.stack(
                    [
                        random_view(
                            image,
                            clip.image_size,
                            settings.smallest_crop,
                            generator_for("few-shot", "view", name, view),
                        )
                        for image, name in zip(images.images, images.hashes, strict=True)
                    ]
                )
                found[view] = cached_features(encoder, pixels, cache, advance=advance)
    return Encoded(clean, found.to(clip.device), targets.to(clip.device), tuple(made_from))
