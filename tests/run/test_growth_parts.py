"""`dinv grow --balance`: images go to subgroups by their own error, by an attribute that the run reports on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import dinv
from harness import GROW, Bench, content

from diffusion_inversion.config.growing import GrowSettings
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import ConfigMismatchError, DataError, UsageError
from diffusion_inversion.run.attributes import Attributes, keep_attributes
from diffusion_inversion.run.grow import grow
from diffusion_inversion.run.growth_parts import parts_by
from diffusion_inversion.run.growth_record import as_tensor, growth_record
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.sample.synthetic import parse_job
from diffusion_inversion.train.choosing import Folds
from diffusion_inversion.train.growing import errors_of, shares


def told(run: Path, **of_train: str) -> dict[str, str]:
    """Put an attribute `site` on record, a or b in turn within each class but as `of_train` has it; return it."""
    splits = open_splits(run)
    values: dict[str, str] = {}
    for place, image_id in enumerate(sorted(splits.train.ids)):
        values[image_id] = of_train.get("all") or "ab"[place % 2]
    of_test = {image_id: "ab"[place % 2] for place, image_id in enumerate(splits.test.ids)}
    keep_attributes(run, Attributes("site", of_test, values), splits.test.ids, splits.train.ids)
    return values


def test_subgroups_get_images_by_their_own_error(bench: Bench, run: Path) -> None:
    values, splits = told(run), open_splits(run)
    with run_lock(run):
        asked = GrowSettings(images=9, round_images=6, balance="site")
        grow(run, splits, asked, GROW, bench.generator(), "cpu")
    found = json.loads((run / "growth.json").read_text())["rounds"]
    train, names = splits.train, splits.train.class_names
    part_of = {one: (names[label], values[one]) for one, label in zip(train.ids, train.labels.tolist(), strict=True)}
    parts = sorted({*part_of.values()}, key=lambda part: (names.index(part[0]), part[1]))
    folds = Folds(run, train, "cpu")
    held = torch.tensor(
        [parts.index(part_of[one]) for one, fold in zip(train.ids, folds.folds, strict=True) if fold >= 0]
    )
    for one in found:
        assert [(part["class_name"], part["value"]) for part in one["subgroups"]] == parts and one[
            "attribute"
        ] == "site"
        errors = errors_of(as_tensor(one["correct"]), held, len(parts))
        added = [part["added"] for part in one["subgroups"]]
        assert [part["error"] for part in one["subgroups"]] == pytest.approx(errors, abs=1e-6)
        assert added == shares(errors, sum(added)) and len({*errors}) > 1
        chosen = [part_of[parse_job(job)[0]] for job in one["chosen"]]
        assert [chosen.count(part) for part in parts] == added, "drawn around sources of the subgroup"
        assert one["wanted"] == [sum(m for m, part in zip(added, parts, strict=True) if part[0] == n) for n in names]
    record = growth_record(run)
    assert record is not None and sum(part["added"] for part in record["subgroups"]) == 9 and len(found) == 2
    # The choice is one of the settings of the rounds.
    assert json.loads((run / "grow.config.json").read_text())["balance"] == "site"
    with run_lock(run), pytest.raises(ConfigMismatchError, match=r'balance: was "site", now absent'):
        grow(run, splits, GrowSettings(images=12), GROW, bench.generator(), "cpu")


def test_classes_are_the_parts_of_earlier_versions(run: Path) -> None:
    splits = open_splits(run)
    parts = parts_by(run, splits, "class")
    assert parts.described == {} and parts.classes == list(range(len(splits.train.class_names)))
    assert [parts.of[one] for one in splits.train.ids] == splits.train.labels.tolist()


def test_an_attribute_that_the_run_does_not_report_on_is_refused(run: Path) -> None:
    before = content(run)
    found = dinv("grow", run, "--images", 3, "--balance", "site")
    assert (
        found.exit_code == 2
        and f"{run} was given no --attributes; `dinv train {run} --attributes site`" in found.stderr
    )
    assert {name for name in content(run)} == {*before} and not (run / "growth.json").exists()
    told(run)
    with pytest.raises(UsageError, match=r"has --attributes site; .* or give --balance class"):
        parts_by(run, open_splits(run), "sex")
    told(run, all="a")
    with pytest.raises(DataError, match="all 12 training images have one value, a; use class"):
        parts_by(run, open_splits(run), "site")
    splits = open_splits(run)
    keep_attributes(run, Attributes("site", dict.fromkeys(splits.test.ids, "a"), {}), splits.test.ids, splits.train.ids)
    with pytest.raises(DataError, match="12 of 12 images have no value"):
        parts_by(run, splits, "site")
