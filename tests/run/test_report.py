"""The report says what run.json says, shows the images that it was given, and needs nothing but itself."""

from __future__ import annotations

import base64
import copy
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import UndefinedError
from PIL import Image
from report_pages import RUN, Page, page, words

from diffusion_inversion.run.report import ReportImages, render_report
from diffusion_inversion.run.report.figures import accuracy_bars, image_grid, loss_curve, png
from diffusion_inversion.run.report.html import MOST_PROBLEMS, accuracy, duration, points

EVIL = "<script>alert('1')</script>\"&amp;"


@pytest.fixture(scope="module")
def images() -> ReportImages:
    """Two sources of 4 px in flat colours that tell row and column: red = 50 * row, green = 20 * column, blue = 200."""
    columns = torch.zeros(2, 5, 3, 4, 4, dtype=torch.uint8)
    columns[:, :, 0] = (50 * torch.arange(2, dtype=torch.uint8))[:, None, None, None]
    columns[:, :, 1] = (20 * torch.arange(5, dtype=torch.uint8))[None, :, None, None]
    columns[:, :, 2] = 200
    return ReportImages(columns[:, 0], columns[:, 1], columns[:, 2:], torch.tensor([1, 0]))


@pytest.fixture(scope="module")
def clean(images: ReportImages, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of RUN as it is."""
    folder = tmp_path_factory.mktemp("report")
    shown = page(RUN, images, folder)
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return shown


# --- page -------------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_without_scripts_or_addresses(clean: Page) -> None:
    assert clean.tags[0] == "html" and "script" not in clean.tags and "link" not in clean.tags
    assert len(clean.addresses) == 3 and all(a.startswith("data:image/png;base64,") for a in clean.addresses)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r'"data:[^"]*"', "", clean.source))
    for address in clean.addresses:
        Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).load()


def test_the_numbers_are_the_runs(clean: Page) -> None:
    text = words(clean)
    for part in (
        "Not enough evidence Real and synthetic gave 35.3 %, real 33.1 ± 2.9 % (n=3).",
        "real 33.1 ± 2.9 % (n=3) 30.2, 33.1, 36.0 %",
        "real+synthetic 35.3 % (n=1) 35.3 %",
        "real+synthetic -2.2 points -8.5 points to +4.1 points (97.5 %)",
        "200 real training images, 1000 test images, 2 classes, 2000 synthetic images",
        "from 0.4450 to 0.3970; the empty prompt has 0.4820.",
        "steps 150 resolution null",
        "guidance_scales [2.0, 3.0]",
        "held out from the data, stratified by class. Classes: zero, one.",
        "zero/1.png cut short copy it again",
        "CC BY-NC-SA 4.0",
        "invert 3 min 07 s sample 42.0 s train and evaluate 2 h 05 min torch 2.9.0",
        "dinv run DATA",
        "0123abcd" * 8,
    ):
        assert part in text, part


def test_the_verdict_comes_first(clean: Page) -> None:
    text = words(clean)
    order = [
        "Not enough evidence",
        "Every seed",
        "Each row starts",
        "mean loss went",
        "Settings",
        "cut short",
        "CC BY",
        "torch",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_what_was_not_measured_says_so(images: ReportImages, tmp_path: Path) -> None:
    run: Any = copy.deepcopy(RUN)
    run["verdict"]["comparisons"][0] |= {"low": None, "high": None}
    del run["stages"]["invert"]["null_loss"]
    run["data"] |= {"licence": "", "problems": []}
    text = words(page(run, images, tmp_path))
    assert "real+synthetic -2.2 points not measured" in text
    assert "empty prompt" not in text
    assert "names none here" in text and "None found" in text


def test_replicates_are_shown_apart_from_their_seeds(images: ReportImages, tmp_path: Path) -> None:
    run: Any = copy.deepcopy(RUN)
    run["verdict"] |= {"outcome": "harms", "scope": "Over 2 replicates."}
    run["verdict"]["comparisons"][0]["outcome"] = "harms"
    run["replicates"] = [
        {
            "number": number, "folder": folder, "seeds": {}, "classifier_seeds": [0, 1], "n_train": 200 + number,
            "n_test": 1000, "arms": {"real": [0.3, 0.312], "real+synthetic": [0.4, 0.423]},
        }
        for number, folder in enumerate((".", "replicates/1"))
    ]  # fmt: skip
    run["components"] = {"real": {"between": 0.0213, "within": 0.011}, "a - real": {"between": None, "within": 0.0}}
    shown = page(run, images, tmp_path)
    text = words(shown)
    assert 'class="verdict no"' in shown.source and "Harms" in text
    for part in (
        "Over 2 replicates.",
        "mean ± std over replicates Every replicate",
        "-8.5 points to +4.1 points (97.5 %) harms",
        "0 30.0, 31.2 % 40.0, 42.3 % 200, 1000",
        "1 30.0, 31.2 % 40.0, 42.3 % 201, 1000",
        "real 2.1 points 1.1 points",
        "a - real not measured 0.0 points",
        "2000 synthetic images in replicate 0 of 2.",
    ):
        assert part in text, part


def test_every_string_is_text_never_markup(clean: Page, images: ReportImages, tmp_path: Path) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            keep = set(RUN) | set(RUN["data"]) | set(RUN["generator"]) | set(RUN["stages"]) | set(RUN["arms"]["real"])
            keep |= {"outcome", "sentence", "comparisons", "arm", "difference", "low", "high", "confidence", "steps"}
            keep |= {
                "seconds",
                "loss_initial",
                "loss_final",
                "null_loss",
                "images",
                "p10",
                "p90",
                *RUN["data"]["problems"][0],
            }
            return {(k if k in keep else k + EVIL): poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return value + EVIL if isinstance(value, str) else value

    shown = page(poison(RUN), images, tmp_path)
    assert "script" not in shown.tags and shown.tags == clean.tags
    assert shown.text.count(EVIL) >= 25
    for name in ("zero", "zero/1.png", "digits", "real+synthetic", "CC BY-NC-SA 4.0", "dinv run DATA", "torch", "mini"):
        assert name + EVIL in shown.text


def test_a_field_that_is_missing_is_an_error_that_names_it(images: ReportImages, tmp_path: Path) -> None:
    run: Any = copy.deepcopy(RUN)
    del run["data"]["licence"]
    with pytest.raises(UndefinedError, match="licence"):
        render_report(run, images)
    assert list(tmp_path.iterdir()) == []


def test_a_long_list_of_problems_is_cut_and_counted(images: ReportImages, tmp_path: Path) -> None:
    run: Any = copy.deepcopy(RUN)
    run["data"]["problems"] *= MOST_PROBLEMS + 7
    shown = page(run, images, tmp_path)
    assert shown.text.count("cut short") == MOST_PROBLEMS
    assert "7 more are in the run's data.json" in words(shown)


def test_formats() -> None:
    assert accuracy(0.331, 0.029, 3) == "33.1 ± 2.9 % (n=3)"
    assert accuracy(1.0, None, 1) == "100.0 % (n=1)"
    assert [points(0.0221), points(-0.0221), points(None)] == ["+2.2 points", "-2.2 points", "not measured"]
    assert [duration(s) for s in (0.04, 59.9, 187, 3599.6, 7500)] == [
        "0.0 s",
        "59.9 s",
        "3 min 07 s",
        "1 h 00 min",
        "2 h 05 min",
    ]


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_grid_shows_real_reconstruction_variants_from_left_to_right(images: ReportImages) -> None:
    drawn = Image.open(io.BytesIO(png(image_grid(images, ["a", "b"])))).convert("RGB")
    pixels = torch.from_numpy(np.array(drawn))
    boxes = {}
    for row in range(2):
        for column in range(5):
            where = (pixels == torch.tensor([50 * row, 20 * column, 200])).all(-1).nonzero()
            assert len(where) == 64 * 64  # enlarged from 4 px, nothing hidden
            boxes[row, column] = where[0].tolist()
    lefts, tops = [boxes[0, column][1] for column in range(5)], [boxes[row, 0][0] for row in range(2)]
    assert lefts == sorted(lefts) and tops == sorted(tops)


def test_the_grid_enlarges_pixels_without_mixing_them() -> None:
    checks = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    checks[0, 2] = 200
    checks[0, 0, 0, 1] = 90  # one pixel of another colour: top row, second column
    images = ReportImages(checks, checks, checks[:, None], torch.tensor([0]))
    drawn = Image.open(io.BytesIO(png(image_grid(images, ["a"])))).convert("RGB")
    counts = {colour: count for count, colour in drawn.getcolors(1 << 20) or [] if colour[2] == 200}
    assert counts == {(90, 0, 200): 3 * 16 * 16, (0, 0, 200): 3 * 15 * 16 * 16}
    pixels = drawn.load()
    assert pixels is not None
    left, top = next((x, y) for y in range(drawn.height) for x in range(drawn.width) if pixels[x, y] == (0, 0, 200))
    assert pixels[left + 16, top] == (90, 0, 200) and pixels[left, top + 16] == (0, 0, 200)


def test_the_grid_names_each_row_by_its_label(images: ReportImages) -> None:
    texts = [
        text.get_text() for text in image_grid(images, ["zero $x^", "a name of more than twenty characters"]).texts
    ]
    assert texts == [
        *["real", "reconstr.", "variant 1", "variant 2", "variant 3"],
        *["a name of more than…", "zero $x^"],
    ]


def test_a_name_that_the_font_lacks_or_with_a_dollar_is_drawn_without_a_warning(
    images: ReportImages, recwarn: pytest.WarningsRecorder
) -> None:
    png(image_grid(images, ["猫", "$\\frac{"]))
    assert [str(warning.message) for warning in recwarn] == []


def test_bars_are_means_lines_are_std_and_dots_are_seeds() -> None:
    axes = accuracy_bars(RUN["arms"]).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([33.1, 35.3])  # type: ignore[attr-defined]
    assert axes.get_ylim()[0] == 0
    assert [label.get_text() for label in axes.get_xticklabels()] == ["real", "real+synthetic"]
    (bars,) = [c for c in axes.containers if type(c).__name__ == "ErrorbarContainer"]  # one seed has no error bar
    (segment,) = bars.lines[2][0].get_segments()
    assert sorted(segment[:, 1]) == pytest.approx([33.1 - 2.9, 33.1 + 2.9])
    dots = [c.get_offsets()[:, 1].tolist() for c in axes.collections if type(c).__name__ == "PathCollection"]
    assert dots == [pytest.approx([30.2, 33.1, 36.0]), pytest.approx([35.3])]


def test_the_curve_has_the_mean_and_the_band() -> None:
    axes = loss_curve(RUN["inversion_curve"], 0.482).axes[0]
    mean, null = axes.lines
    assert list(mean.get_xdata()) == [0, 50, 150] and list(mean.get_ydata()) == [0.4, 0.35, 0.3]
    assert set(null.get_ydata()) == {0.482}
    band = {tuple(corner) for corner in axes.collections[0].get_paths()[0].vertices.tolist()}
    assert band == {(0, 0.3), (50, 0.2), (150, 0.1), (0, 0.6), (50, 0.5), (150, 0.45)}
    assert len(loss_curve(RUN["inversion_curve"]).axes[0].lines) == 1


def test_images_that_do_not_fit_together_are_refused(images: ReportImages) -> None:
    with pytest.raises(ValueError, match="not R images"):
        ReportImages(images.real, images.reconstruction[:1], images.variants, images.labels)
    with pytest.raises(ValueError, match="not R images"):
        ReportImages(images.real, images.reconstruction, images.variants[..., :2], images.labels)
    with pytest.raises(ValueError, match="uint8"):
        ReportImages(images.real.float(), images.reconstruction, images.variants, images.labels)
