"""The same picture in another form is found; other pictures of the same kind are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import Pixels, save
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from diffusion_inversion.data.datasets import load_images, load_splits
from diffusion_inversion.data.images import square
from diffusion_inversion.data.near_duplicates import NearTo, near_pairs, thumbnail
from diffusion_inversion.errors import DataError

SIDE = 48


def photographs(count: int, seed: int = 0, common: float = 0.0) -> list[Pixels]:
    """Random scenes with a spectrum like that of photographs; `common` is the share of a scene that all have."""
    rng = np.random.default_rng(seed)

    def scene() -> np.ndarray:
        layers = [gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (s, s, 0)) * s * s for s in (8, 4, 2, 1)]
        return sum(layers, np.zeros((SIDE, SIDE, 3)))

    shared = scene()
    scenes = [common * shared + (1 - common) * scene() for _ in range(count)]
    return [np.clip(128 + 40 * s / s.std(), 0, 255).astype(np.uint8) for s in scenes]


def as_jpeg(pixels: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def as_jpeg_file(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "JPEG", quality=95)


def scaled(pixels: Pixels, factor: float) -> Pixels:
    side = round(factor * SIDE)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def cropped(pixels: Pixels, share: float) -> Pixels:
    box = (0, 0, (1 - share) * SIDE, (1 - share) * SIDE)
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def brighter(pixels: Pixels, factor: float) -> Pixels:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(pixels)).enhance(factor))


FORMS: dict[str, Callable[[Pixels], Pixels]] = {
    "jpeg 90": lambda p: as_jpeg(p, 90),
    "jpeg 50": lambda p: as_jpeg(p, 50),
    "half size": lambda p: scaled(p, 0.5),
    "double size": lambda p: scaled(p, 2),
    "brighter": lambda p: brighter(p, 1.1),
    "darker": lambda p: brighter(p, 0.9),
    "cropped": lambda p: cropped(p, 0.02),
}


def thumbnails(pictures: list[Pixels]) -> torch.Tensor:
    return torch.stack([thumbnail(square(np.array(p), p.shape[0])) for p in pictures])


def pairs(pictures: list[Pixels]) -> list[tuple[int, int]]:
    return near_pairs(thumbnails(pictures))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_picture_is_found(form: str) -> None:
    pictures = photographs(20)
    assert pairs([*pictures, *[FORMS[form](p) for p in pictures[:5]]]) == [(row, 20 + row) for row in range(5)]


@pytest.mark.parametrize("common", [0.0, 0.5, 0.8])
def test_alike_pictures_are_not_pairs(common: float) -> None:
    """Up to 4/5 of the contrast may be the same in all, as with the frame of a solar cell."""
    assert pairs(photographs(150, common=common)) == []


def test_a_copy_is_found_among_alike_pictures() -> None:
    pictures = photographs(60, common=0.6)
    assert pairs([*pictures, as_jpeg(pictures[7], 75)]) == [(7, 60)]


def test_two_pictures_are_enough() -> None:
    one, other = photographs(2)
    assert pairs([one, as_jpeg(one, 60)]) == [(0, 1)]
    assert pairs([one, other]) == []
    assert pairs([one]) == [] and near_pairs(torch.empty(0, 3, 32, 32, dtype=torch.uint8)) == []


def test_colour_and_direction_tell_pictures_apart() -> None:
    pictures = photographs(20)
    negative, mirrored = 255 - pictures[0], np.ascontiguousarray(pictures[0][:, ::-1])
    assert pairs([*pictures, negative, mirrored]) == []
    red = np.zeros_like(pictures[0])
    red[..., 0] = pictures[0].mean(-1)
    blue = np.ascontiguousarray(red[..., ::-1])
    assert pairs([*pictures[1:], red, blue]) == []  # the same in grey


def test_blank_pictures_are_never_pairs() -> None:
    blank = [np.full((SIDE, SIDE, 3), level, np.uint8) for level in (0, 100, 101, 255)]
    assert pairs([*blank, *photographs(3)]) == []


def test_pairs_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = photographs(40)
    pictures += [as_jpeg(p, 70) for p in pictures[::3]]
    whole = pairs(pictures)
    assert len(whole) == 14
    monkeypatch.setattr("diffusion_inversion.data.near_duplicates._BLOCK", 7)
    assert pairs(pictures) == whole


# In data sets


def data_set(folder: Path, pictures: list[Pixels], classes: str = "ab") -> Path:
    for row, pixels in enumerate(pictures):
        save(folder / classes[row % len(classes)] / f"{row:03d}.png", pixels)
    return folder


def test_within_a_part_pairs_are_named_with_conflicting_labels(tmp_path: Path) -> None:
    pictures = photographs(12)
    data_set(tmp_path, pictures)
    save(tmp_path / "a/copy.png", as_jpeg(pictures[0], 80))
    save(tmp_path / "b/copy.png", as_jpeg(pictures[2], 80))
    problems = {problem.file: problem for problem in load_images(tmp_path).problems}
    assert problems["a/copy.png"].cause == "near-duplicate of a/000.png"
    cause = "conflicting labels: near-duplicate of a/002.png, labelled a, this is labelled b"
    assert problems["b/copy.png"].cause == cause
    assert len(problems) == 2 and not any(problem.fatal for problem in problems.values())


def test_across_train_and_test_pairs_are_refused_unless_allowed(tmp_path: Path) -> None:
    pictures = photographs(24)
    train, test = data_set(tmp_path / "one", pictures[:12]), data_set(tmp_path / "two", pictures[12:])
    for row in range(7):
        save(test / "ab"[row % 2] / f"copy{row}.png", as_jpeg(pictures[row], 80))
    save(test / "a/same.png", pictures[8])
    with pytest.raises(DataError) as caught:
        load_splits(train, test=test)
    text = str(caught.value)
    assert "1 test image(s) have exactly the pixels" in text and "7 test image(s) are near-duplicates" in text
    assert "two: a/copy0.png  ~  one: a/000.png" in text and "... and 2 more" in text
    assert "--allow-near-duplicates" in text and "--drop-test-duplicates" in text

    with pytest.raises(DataError, match="exactly the pixels") as caught:
        load_splits(train, test=test, allow_near_duplicates=True)
    assert "near-duplicates" not in str(caught.value)
    (test / "a/same.png").unlink()
    kept = load_splits(train, test=test, allow_near_duplicates=True)
    assert len(kept.test) == 19
    said = {problem.file: problem.cause for problem in kept.test.problems}
    assert said["a/copy0.png"] == "near-duplicate of training image a/000.png" and len(said) == 7

    dropped = load_splits(train, test=test, drop_duplicates=True)
    assert len(dropped.test) == 12 and not any("copy" in id_ for id_ in dropped.test.ids)
    assert all("left out of test" in problem.cause for problem in dropped.test.problems)


def test_a_published_split_is_reported_not_refused(tmp_path: Path) -> None:
    """imagenette's own split, on tiny files: figures of others hold its near-duplicates too."""
    pictures = photographs(16)
    for split, rows in (("train", range(8)), ("val", range(8, 16))):
        for row in rows:
            wnid = ("n01440764", "n03888257")[row % 2]
            path = tmp_path / "imagenette2-320" / split / wnid / f"{row}.JPEG"
            as_jpeg_file(path, pictures[row])
    as_jpeg_file(tmp_path / "imagenette2-320/val/n01440764/copy.JPEG", as_jpeg(pictures[0], 80))
    splits = load_splits("imagenette", root=tmp_path)
    (problem,) = splits.test.problems
    assert "near-duplicate of training image train/n01440764/0.JPEG" in problem.cause and not problem.fatal
    assert len(splits.test) == 9
    assert len(load_splits("imagenette", root=tmp_path, drop_duplicates=True).test) == 8
    with pytest.raises(DataError, match="near-duplicates"):  # the same files as a folder of one's own
        load_splits(tmp_path / "imagenette2-320")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [1, 9, 40])
def test_near_to_known_pictures_block_by_block(form: str, block: int) -> None:
    """Forms of known pictures are found among others, each whatever block it comes in; nothing else is."""
    known, strangers = photographs(20), photographs(35, seed=1)
    others = thumbnails([*strangers[:30], *[FORMS[form](p) for p in known[:5]], *strangers[30:]])
    near_to = NearTo(thumbnails(known))
    found = [
        (first, start + second)
        for start in range(0, 40, block)
        for first, second in near_to.pairs(others[start:][:block])
    ]
    assert sorted(found) == [(row, 30 + row) for row in range(5)]


def test_near_to_nothing_and_among_alike_pictures() -> None:
    alike = thumbnails(photographs(150, common=0.8))
    assert NearTo(alike[:75]).pairs(alike[75:]) == []
    blank = torch.full((2, 3, 32, 32), 7, dtype=torch.uint8)
    assert (
        NearTo(alike).pairs(blank) == [] and NearTo(blank).pairs(alike) == [] and NearTo(blank[:0]).pairs(alike) == []
    )
    assert NearTo(alike[:75]).pairs(alike[70:80]) == [(row, row - 70) for row in range(70, 75)]
