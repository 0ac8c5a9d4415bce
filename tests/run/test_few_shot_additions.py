"""What `dinv few-shot` takes from folders whose images no vectors made: their classes, and none that test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from coloured_images import COLOURS, write_data, write_pool
from contents import rows_of
from image_files import save
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.data.datasets import load_splits
from diffusion_inversion.engine.frozen_settings import freeze_settings
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.errors import DataError
from diffusion_inversion.run.few_shot.additions import open_extra, refuse_test_images
from diffusion_inversion.sample.columns import EARLIER
from diffusion_inversion.sample.synthetic import SyntheticStore

SHARED = {
    "variant": 0, "interpolation": 0.0, "noise_strength": 0.0, "guidance_scale": 1.0, "inversion_step": 0,
    "scheduler": "ddim", "inference_steps": 1, "seed": 0, "generator": "toy", "generator_hash": "0" * 64,
    "source_version": "", "partner_version": "", "method": "prompts",
}  # fmt: skip


def test_retrieved_images_are_searched_for_test_images(tmp_path: Path) -> None:
    """The pool had none of the test images of its run; those of another DATA may be in it."""
    data, pool = write_data(tmp_path / "data"), write_pool(tmp_path / "pool")
    options = ["--pool", str(pool), "--k", "2", "--out", str(tmp_path / "out"), "--root", str(tmp_path / "root")]
    assert CliRunner().invoke(app, ["retrieve", str(data), *options]).exit_code == 0
    splits = load_splits(data)
    extra = open_extra(str(tmp_path / "out" / "k2"), splits.train.class_names, None)
    assert extra.made_from is not None and all(sources <= set(splits.train.hashes) for sources in extra.made_from)
    refuse_test_images(extra, splits.test, allow_near=False)
    with pytest.raises(DataError, match="holds 1 test image"):
        refuse_test_images(extra, extra.read().subset([0]), allow_near=False)


@pytest.mark.parametrize("flat", [False, True])
def test_a_retrieved_image_with_the_pixels_of_a_test_image_is_never_allowed(flat: bool, tmp_path: Path) -> None:
    """Its store has hashes of PNG files, DATA those of pixels of another size; flat images are never near ones."""
    data, pool = write_data(tmp_path / "data"), write_pool(tmp_path / "pool")
    if flat:
        shutil.rmtree(pool)
        for row, colour in enumerate(COLOURS.values()):
            save(pool / f"{row}.png", np.full((32, 32, 3), colour, np.uint8))
    options = ["--pool", str(pool), "--k", "1", "--out", str(tmp_path / "out"), "--root", str(tmp_path / "root")]
    done = CliRunner().invoke(app, ["retrieve", str(data), *options])
    assert done.exit_code == 0, done.output
    run = tmp_path / "out" / "k1"
    shutil.copy(pool / rows_of(run)[0]["pool_id"], data / "test" / "red" / "same.png")
    test = load_splits(data).test
    with pytest.raises(DataError, match=r"holds 1 test image.* is exactly test/red/same\.png; take them out\.$"):
        refuse_test_images(open_extra(str(run), test.class_names, None), test, allow_near=True)


def test_prompted_images_have_the_classes_of_their_own_order(tmp_path: Path) -> None:
    """A folder of prompts numbers its classes by the alphabet, the run whose images it adopted as DATA does."""
    names, own = ("dog", "cat"), ("cat", "dog")
    freeze_settings(tmp_path, "sample", {"kind": "prompts", "class_names": list(own)}, begun=False)
    part = {"ids": ["a", "b"], "hashes": ["0" * 64, "1" * 64]}
    Ledger(tmp_path).commit("data.json", json.dumps({"class_names": names, "train": part}).encode())
    store = SyntheticStore(tmp_path, own)
    rows = [
        {**EARLIER, **SHARED, "source_id": f"{n}: a", "partner_id": f"{n}: a", "label": i, "partner_label": i}
        for i, n in enumerate(own)
    ]
    colours = torch.tensor([10, 200], dtype=torch.uint8)  # of the cat, of the dog
    store.commit(colours[:, None, None, None].expand(2, 3, 8, 8).contiguous(), rows)
    store.finish(1)
    extra = open_extra(str(tmp_path), names, None)
    images = extra.read()
    assert extra.made_from == (frozenset(), frozenset())
    classes = extra.targets(images, 2).argmax(1).tolist()
    assert {names[label]: int(image.max()) for label, image in zip(classes, images.images, strict=True)} == {
        "cat": 10, "dog": 200,
    }  # fmt: skip


def test_images_of_lecf_know_the_real_image_they_began_at_and_answer_in_the_order_of_data(tmp_path: Path) -> None:
    names, own = ("dog", "cat"), ("cat", "dog")
    freeze_settings(tmp_path, "sample", {"kind": "lecf", "class_names": list(own)}, begun=False)
    part = {"ids": ["a", "b"], "hashes": ["0" * 64, "1" * 64]}
    Ledger(tmp_path).commit("data.json", json.dumps({"class_names": names, "train": part}).encode())
    store = SyntheticStore(tmp_path, own)
    common = {"label": 0, "partner_label": 0, "label_weight": 0.5, "answers": [0.75, 0.25], "method": "lecf"}
    rows = [
        {**EARLIER, **SHARED, **common, "source_id": "cat: a cat", "variant": variant, "partner_id": partner}
        for variant, partner in enumerate(("cat: a cat", "a", "b", "gone"))
    ]
    store.commit(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), rows)
    store.finish(4)
    extra = open_extra(str(tmp_path), names, None)
    of = dict(zip([r["partner_id"] for r in rows], extra.made_from or (), strict=True))
    assert of == {"cat: a cat": frozenset(), "a": {"0" * 64}, "b": {"1" * 64}, "gone": {"gone"}}
    assert extra.rows(["0" * 64]) == (0, 1), "no shot is what another image began at"
    targets = extra.targets(extra.read(), 2)
    torch.testing.assert_close(targets, torch.tensor([[0.125, 0.875]]).expand(4, -1))


@pytest.mark.parametrize("kind", ["gan", "gan-inversion", "adopted"])
def test_what_a_gan_learned_is_not_known_and_test_images_are_looked_for(kind: str, tmp_path: Path) -> None:
    """It saw all its training images, whichever latent or real image an image of it is named after.

    Of adopted ones nobody knows what made them.
    """
    extra = open_extra(str(_run(tmp_path, kind, [{"source_id": "a"}])), ("cat", "dog"), None)
    assert extra.made_from is None and extra.rows(()) == (0,)
    with pytest.raises(DataError, match="holds 1 test image"):
        refuse_test_images(extra, extra.read(), allow_near=False)


@pytest.mark.parametrize(
    ("how", "every"),
    [
        ({}, False),
        ({"guidance_scale": 1.0, "unconditional": "mean"}, False),
        ({"guidance_scale": 2.0, "unconditional": "empty"}, False),
        ({"guidance_scale": 2.0, "unconditional": "mean"}, True),
        ({"guidance_scale": 2.0, "unconditional": "class-mean"}, True),
        ({"guidance_scale": 2.0, "unconditional": "empty", "rival_weight": 0.5}, True),
        ({"interpolation_kind": "circle"}, True),
        ({"partner": "context"}, True),
    ],
)
def test_a_mean_of_vectors_is_of_every_image(how: dict[str, object], every: bool, tmp_path: Path) -> None:
    """As for `dinv forget`."""
    run = _run(tmp_path, "inversion", [{"source_id": "a", **how}, {"source_id": "b"}])
    extra = open_extra(str(run), ("cat", "dog"), None)
    of_a = {"0" * 64, "1" * 64} if every else {"0" * 64}
    assert extra.made_from == (of_a, {"1" * 64})
    assert extra.rows({"0" * 64}) == (() if every else (0,)) and extra.rows({"0" * 64, "1" * 64}) == (0, 1)


def test_vectors_that_began_at_means_of_their_class_are_of_every_image(tmp_path: Path) -> None:
    run = _run(tmp_path, "inversion", [{"source_id": "a"}])
    freeze_settings(run, "invert", {"settings": {"init": "class-mean"}}, begun=False)
    assert open_extra(str(run), ("cat", "dog"), None).made_from == ({"0" * 64, "1" * 64},)


def _run(run: Path, kind: str, rows: list[dict[str, object]]) -> Path:
    """A run of two training images, a and b, whose store has an image for each of these rows."""
    freeze_settings(run, "sample", {"kind": kind, "class_names": ["cat", "dog"]}, begun=False)
    part = {"ids": ["a", "b"], "hashes": ["0" * 64, "1" * 64]}
    Ledger(run).commit("data.json", json.dumps({"class_names": ("cat", "dog"), "train": part}).encode())
    store = SyntheticStore(run, ("cat", "dog"))
    common = {**EARLIER, **SHARED, "label": 0, "partner_label": 0, "method": kind}
    for row in rows:  # units of their own: what images of a unit have in common is kept once
        store.commit(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [{**common, "partner_id": row["source_id"], **row}])
    store.finish(1)
    return run
