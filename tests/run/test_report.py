"""The report says what run.json says, shows the images that it was given, and needs nothing but itself."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import UndefinedError
from PIL import Image
from report_pages import RUN, Page, copies, page, subgroups, words

import diffusion_inversion.run.report
from diffusion_inversion.config.settings import InvertSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.run.report import ReportImages, render_report
from diffusion_inversion.run.report.cards import cards
from diffusion_inversion.run.report.changed_settings import changed
from diffusion_inversion.run.report.copies import copies_section
from diffusion_inversion.run.report.formats import accuracy, duration, points
from diffusion_inversion.run.report.pictures import LARGEST_PNG, Nearest, picture_uri
from diffusion_inversion.run.report.problem_groups import MOST_PROBLEMS, grouped
from diffusion_inversion.train.recipes import resolved

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


def test_the_page_is_one_file_with_one_script_and_no_addresses(clean: Page) -> None:
    assert clean.tags[0] == "html" and clean.tags.count("script") == 1 and "link" not in clean.tags
    assert len(clean.addresses) == 2 * 5 and all(a.startswith("data:image/png;base64,") for a in clean.addresses)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r'"data:[^"]*"', "", clean.source))
    for address in clean.addresses:
        Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).load()


def test_the_numbers_are_the_runs(clean: Page) -> None:
    text = words(clean)
    for part in (
        "Not enough evidence Real and synthetic gave 35.3 %, real 33.1 ± 2.9 % (n=3).",
        "real 33.1 ± 2.9 % (n=3) 30.2, 33.1, 36.0 %",
        "real+synthetic 35.3 % (n=1) 35.3 %",
        "real+synthetic -2.2 points -8.5 to +4.1 points (97.5 %)",
        "real+synthetic -2.2 (-8.5 to +4.1)",
        "200 real training images, 1000 test images, 2 classes, 2000 synthetic images",
        "from 0.4450 to 0.3970; the empty prompt has 0.4820.",
        "steps 150 resolution null",
        "guidance_scales [2.0, 3.0]",
        "held out from the data, stratified by class.",
        "Classes: zero, one.",
        "zero/1.png cut short copy it again",
        "CC BY-NC-SA 4.0",
        "invert 3 min 07 s sample 42.0 s train and evaluate 2 h 05 min report 2025-01-02T03:04:05+00:00 torch 2.9.0",
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
        "dinv run DATA",
        "Settings that differ",
        "torch",
        "cut short",
        "CC BY",
        "mean loss went",
        "Glossary",
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
        "-8.5 to +4.1 points (97.5 %) harms",
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
            keep |= {
                "outcome",
                "sentence",
                "comparisons",
                "arm",
                "difference",
                "low",
                "high",
                "confidence",
                "steps",
                "guidance_scales",
            }
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
    assert shown.tags.count("script") == 1 and shown.tags == clean.tags
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
    assert shown.text.count("cut short") == MOST_PROBLEMS + 1  # once for the group
    assert f"{MOST_PROBLEMS + 7} images: cut short" in words(shown)
    assert "7 more are in the run's data.json" in words(shown)


def test_problems_of_one_cause_are_one_group_the_largest_first() -> None:
    causes = [
        "8000 x 20 px: its central square keeps 0.25 % of it", "near-duplicate of train/b", "near-duplicate of train/a",
        "near-duplicate of training image c", "cut short", "near-duplicate of train/x",
        "conflicting labels: same pixels as a.png, labelled cat, this is labelled dog",
    ]  # fmt: skip
    found = grouped([{"file": str(k), "cause": cause, "remedy": "", "fatal": False} for k, cause in enumerate(causes)])
    assert [(cause, [row["file"] for row in rows]) for cause, rows in found] == [
        ("near-duplicate of another image", ["1", "2", "5"]),
        (causes[0], ["0"]),
        (causes[3], ["3"]),
        ("cut short", ["4"]),
        (causes[6], ["6"]),
    ]
    (alike,) = grouped([{"cause": f"{n} MB: above the limit"} for n in ("700", "801.5")])
    assert alike[0] == "… MB: above the limit" and len(alike[1]) == 2


def test_settings_that_differ_from_the_defaults_come_apart() -> None:
    plain = TrainSettings()
    trained = resolved(plain).model_dump(mode="json")
    untouched = {"invert": InvertSettings().model_dump(mode="json"), "train": trained}
    assert changed(untouched) == {}
    fast = resolved(TrainSettings(recipe="fast", seeds=(0,))).model_dump(mode="json")
    assert changed({"invert": {**untouched["invert"], "steps": 7}, "train": fast, "other": {"steps": 1}}) == {
        "invert": {"steps": (7, InvertSettings().steps)},
        "train": {"recipe": ("fast", plain.recipe), "seeds": ([0], list(plain.seeds))},
    }, "the numbers that a recipe stands for are no changes of their own"


def test_headings_are_in_order_and_what_is_read_aloud_is_there(
    clean: Page, images: ReportImages, tmp_path: Path
) -> None:
    more: Any = {**RUN, "subgroups": subgroups(), "copies": copies(3)}
    for shown in (clean, page(more, images, tmp_path)):
        levels = [int(tag[1]) for tag in shown.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        for tag, needed in (("img", "alt="), ("th", "scope="), ('svg class="chart"', "aria-label=")):
            found = re.findall(f"<{tag}[ >][^>]*", shown.source)
            assert found and all(needed in one for one in found), tag
        assert not re.search(r'alt=""', shown.source)
        rows = [row for row in re.findall("<tr>(.*?)</tr>", shown.source, re.DOTALL) if "<td" in row]
        assert rows and all('<th scope="row"' in row for row in rows)


def test_a_subgroup_is_named_once_for_all_its_arms(images: ReportImages, tmp_path: Path) -> None:
    shown = page({**RUN, "subgroups": subgroups()}, images, tmp_path)
    assert re.findall(r'<th scope="row" rowspan="3">([^<]*)</th>\s*<td rowspan="3">(\d)', shown.source) == [
        ("f", "5"),
        ("m, the worst", "5"),
    ]


def test_of_a_long_table_of_copies_the_classes_that_lost_images_are_seen() -> None:
    section = copies_section({"copies": copies(30)}, b"png")
    tables = dict(re.findall("<details><summary>([^<]*)</summary>(.*?)</details>", section, re.DOTALL))
    first, more = {}, {}
    for title, table in tables.items():
        first[title] = re.findall('<th scope="row">([^<]*)', table)
        more[title] = re.findall(r"(\d+) more are in the run's <code>run.json", table)
    assert first["Drawn again, by class"][:2] == ["class 29", "class 00"]
    assert {title: len(names) for title, names in first.items() if more[title]} == {
        "Drawn again, by class": 20, "By source: those with most": 20, "By class": 20
    }  # fmt: skip
    assert [*more["Drawn again, by class"], *more["By source: those with most"], *more["By class"]] == ["10", "1", "10"]
    assert "more are" not in copies_section({"copies": copies(3) | {"by_source": None}}, None)


def test_the_policy_lets_the_page_s_own_script_run_and_no_other(clean: Page) -> None:
    (policy,) = re.findall(r"script-src '(sha256-[^']*)'", clean.source)
    (code,) = re.findall(r"<script>(.*?)</script>", clean.source, re.DOTALL)
    assert policy == f"sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}"


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


# --- images -----------------------------------------------------------------------------------------------------------


def colours(uri: str) -> list[tuple[int, ...]]:
    """The colours of a picture in a page."""
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as picture:
        return [colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []]


def test_a_card_shows_its_source_its_reconstruction_and_its_variants(images: ReportImages) -> None:
    first, second = cards(images, ["a", "b"])
    assert (first.class_name, second.class_name, first.label) == ("b", "a", 1)
    for row, card in enumerate((first, second)):
        assert card.reconstruction is not None and card.photograph is None and card.closest is None
        shown = [card.real, card.reconstruction, *card.variants]
        assert [colours(picture.uri) for picture in shown] == [[(50 * row, 20 * column, 200)] for column in range(5)]
        assert [picture.caption for picture in card.variants] == ["variant 1", "variant 2", "variant 3"]


def test_a_card_has_the_real_image_nearest_to_each_variant(images: ReportImages, tmp_path: Path) -> None:
    found = tuple(
        Nearest(images.real[[row, 1 - row, row]], (f"n{row}", "x<b>", "y"), (0.7, 0.25 + row, 0.9)) for row in range(2)
    )
    large = torch.full((2, 3, 9, 9), 77, dtype=torch.uint8)
    full = replace(images, nearest=found, ids=("s/<i>0", "s/1"), photographs=large, distances=(0.4, 0.3))
    first, second = cards(full, ["a", "b"])
    assert (first.closest, second.closest) == (0.25, 0.7)
    assert first.variants[1].nearest is not None and colours(first.variants[1].nearest.uri) == [(50, 0, 200)]
    assert first.photograph is not None and colours(first.photograph.uri) == [(77, 77, 77)]
    shown = page(RUN, full, tmp_path)
    assert "b" not in shown.tags and "i" not in shown.tags
    assert re.findall(r'data-row="(\d)" data-class="(\d)" data-like="([\d.]+)" data-near="([\d.]+)"', shown.source) == [
        ("0", "1", "0.400", "0.250"),
        ("1", "0", "0.300", "0.700"),
    ]
    text = words(shown)
    for part in ("before it was shrunk, 9 px", "distance 0.40", "nearest real image, distance 0.25 x<b>", "s/<i>0"):
        assert part in text, part


def test_small_images_keep_every_pixel_and_large_ones_are_jpegs() -> None:
    noise = torch.randint(0, 256, (3, LARGEST_PNG, LARGEST_PNG), dtype=torch.uint8)
    kept = Image.open(io.BytesIO(base64.b64decode(picture_uri(noise).split(",")[1])))
    assert kept.format == "PNG" and torch.equal(torch.from_numpy(np.array(kept)), noise.permute(1, 2, 0))
    assert picture_uri(torch.zeros(3, LARGEST_PNG + 1, LARGEST_PNG + 1, dtype=torch.uint8)).startswith(
        "data:image/jpeg;"
    )


def test_images_that_do_not_fit_together_are_refused(images: ReportImages) -> None:
    assert images.reconstruction is not None
    near = Nearest(images.real[:1], ("a",), (0.1,))  # of one variant, where there are three
    for wrong in (
        {"reconstruction": images.reconstruction[:1]},
        {"variants": [one[..., :2] for one in images.variants]},
        {"ids": ("a",)},
        {"nearest": (near, near)},
        {"photographs": images.real[:1]},
        {"distances": (0.7,)},
    ):
        with pytest.raises(ValueError, match="not R images"):
            replace(images, **wrong)
    with pytest.raises(ValueError, match="uint8"):
        replace(images, real=images.real.float())


def test_what_scrolls_is_reached_by_keyboard_and_has_a_name() -> None:
    """As axe-core asks, which no test runs (benchmarks/report_screens.py does)."""
    folder = Path(diffusion_inversion.run.report.__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in (*folder.rglob("*.html"), *folder.rglob("*.py")))
    found = re.findall(r'class="scroll"(.{0,70})', text)
    assert len(found) > 10
    assert [one for one in found if not re.match(r' tabindex="0" role="region" aria-label="\S', one)] == []
