"""LECF: which images are kept, what is trained on them, from the command to the arm; nothing is lost by a kill."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from command_line import dinv
from contents import content, rows_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toy import build_checkpoint
from toy_clip import COLOURS, build_clip, write_coloured

from diffusion_inversion.engine import faults
from diffusion_inversion.generator.device import resolve_device
from diffusion_inversion.run.lecf import stage
from diffusion_inversion.sample.synthetic import SyntheticStore
from diffusion_inversion.train.few_shot.clip import Clip
from diffusion_inversion.train.few_shot.clip_filter import kept


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1)
)
def test_the_filter_is_monotone_in_its_threshold(values: list[float], count: int, one: float, other: float) -> None:
    confidences, count = torch.tensor(values), min(count, len(values))
    low, high = sorted((one, other))
    loose, strict = (kept(confidences, threshold, count) for threshold in (low, high))
    for rows in (loose, strict):
        assert rows.tolist() == sorted(set(rows.tolist())) and len(rows) == count
    stays = {row for row in loose.tolist() if confidences[row] >= high}
    assert stays <= set(strict.tolist()), "who passes the higher threshold stays"
    assert confidences[strict].double().sum() >= confidences[loose].double().sum() - 1e-9
    if int((confidences >= high).sum()) < count:  # too few pass: the most confident
        wanted = sorted(values, key=lambda v: -v)[:count]
        assert sorted(confidences[strict].tolist()) == sorted(torch.tensor(wanted).tolist())
    else:
        assert bool((confidences[strict] >= high).all())


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lecf")
    return {
        "generator": build_checkpoint(folder / "generator"),
        "clip": build_clip(folder / "clip", steps=60),
        "data": write_coloured(folder / "data", 60, seed=0),
    }


def command(toys: dict[str, Path], out: Path, *more: object) -> list[object]:
    return [
        "lecf", toys["data"], "--clip", toys["clip"], "--out", out, "--generator", toys["generator"], "--device", "cpu",
        "--dtype", "float32", "--inference-steps", 2, "--sentences", 6, "--variants", 2, "--images-per-class", 5,
        "--root", out.parent / "root", *more,
    ]  # fmt: skip


def test_from_the_command_to_the_arms(toys: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = dinv(*command(toys, out, "--thresholds", "0,0.4,0.97", "--json"))
    assert done.exit_code == 0, done.output
    sets = json.loads(done.stdout)["sets"]
    drawn = {(row["source_id"], row["variant"]): row for row in rows_of(out / "drawn")}
    assert len(drawn) == 3 * 6 * 2 and {row["method"] for row in drawn.values()} == {"lecf"}
    clip = Clip.load(str(toys["clip"]), resolve_device("cpu"))
    expected = reference(clip, SyntheticStore(out / "drawn", ("blue", "green", "red")))
    names = sorted(COLOURS)
    before: dict[tuple[str, int], float] = {}
    for threshold in ("0", "0.4", "0.97"):
        run = out / f"t{threshold}"
        rows = rows_of(run)
        assert Counter(row["class_name"] for row in rows) == dict.fromkeys(COLOURS, 5)
        for row in rows:
            key = row["source_id"], row["variant"]
            own = expected[drawn[key]["file_name"]]
            label = names.index(row["class_name"])
            assert row["confidence"] == pytest.approx(float(own.softmax(0)[label]), abs=1e-5)
            torch.testing.assert_close(torch.tensor(row["answers"]), (own / 2).softmax(0), rtol=1e-4, atol=1e-5)
            assert sum(row["answers"]) == pytest.approx(1, abs=1e-5) and row["label_weight"] == 0.5
            assert (row["clip"], row["clip_hash"]) == ("clip", clip.hash)
            copied = (out / "drawn" / "synthetic" / drawn[key]["file_name"]).read_bytes()
            assert (run / "synthetic" / row["file_name"]).read_bytes() == copied
        now = {(row["source_id"], row["variant"]): row["confidence"] for row in rows}
        assert {key for key, value in before.items() if value >= float(threshold) + 1e-6} <= set(now)
        before = now
        assert sets[threshold]["passing"] == sum(
            float(expected[row["file_name"]].softmax(0)[names.index(row["class_name"])]) >= float(threshold)
            for row in drawn.values()
        )
    images = SyntheticStore(out / "t0.4", tuple(names)).read()
    assert images.soft is not None and images.soft.answers is not None
    targets = images.soft.targets(images.labels, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(15))
    hard = torch.nn.functional.one_hot(images.labels, 3)
    torch.testing.assert_close(targets, 0.5 * hard + 0.5 * images.soft.answers)

    trained = dinv("train", out / "t0.97", "--train-steps", 2, "--train-batch-size", 6, "--seeds", 0, "--json")
    assert trained.exit_code == 0, trained.output
    assert list(json.loads(trained.stdout)["arms"]) == ["real", "LECF", "real+LECF"]
    record = json.loads((out / "t0.97" / "run.json").read_text())
    assert record["settings"]["sample"]["clip"] == "clip"
    assert record["settings"]["sample"]["threshold"] == 0.97
    assert dinv("verify", out / "t0.97").exit_code == 0


def reference(clip: Clip, store: SyntheticStore) -> dict[str, Tensor]:
    """transformers' own `logits_per_image` of every drawn image, by file name."""
    images = store.read()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (clip.mean, clip.std))
    texts = [f"a photo of a {name}." for name in sorted(COLOURS)]
    tokens = clip.tokenizer(texts, padding=True, return_tensors="pt")
    found = clip.model(
        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask,
        pixel_values=(images.images.float() / 255 - mean) / std,
    )  # fmt: skip
    return dict(zip(images.ids, found.logits_per_image, strict=True))


@pytest.mark.parametrize("point", ["renamed", "recorded"])
def test_killed_and_resumed_equals_uninterrupted(
    toys: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(stage, "UNIT", 4)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert dinv(*command(toys, whole, "--thresholds", "0,0.97")).exit_code == 0
    passed, last = 0, 0

    def on_point(name: str) -> None:
        nonlocal passed
        passed += name == point
        if name == point and passed in stops:
            raise SystemExit(99)  # nothing below catches it

    stops: tuple[int, ...] = ()
    with monkeypatch.context() as patch:
        patch.setattr(faults, "on_point", on_point)
        assert dinv(*command(toys, tmp_path / "counted", "--thresholds", "0,0.97")).exit_code == 0
        last, passed = passed, 0
        stops = (last // 3, last // 3 + last // 2)
        codes = [dinv(*command(toys, killed, "--thresholds", "0,0.97")).exit_code for _ in range(3)]
    assert codes == [99, 99, 0]
    assert content(killed) == content(whole)
    assert all(dinv("verify", killed / name).exit_code == 0 for name in ("drawn", "t0", "t0.97"))
    # Damage is taken out by repair, and the same command copies it again.
    run = killed / "t0.97"
    picture = next((run / "synthetic").rglob("*.png"))
    picture.write_bytes(picture.read_bytes()[:-9])
    mended = dinv("repair", run)
    assert "The same `dinv lecf` command" in mended.output
    assert dinv("train", run, "--train-steps", 1).exit_code == 2
    assert dinv(*command(toys, killed, "--thresholds", "0,0.97")).exit_code == 0
    assert {path: value for path, value in content(killed).items() if path.endswith(".png")} == {
        path: value for path, value in content(whole).items() if path.endswith(".png")
    }


def test_images_that_began_at_a_forgotten_one_go_everywhere(toys: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = command(toys, out, "--thresholds", "0,0.9", "--real-guidance", 0.5)
    assert dinv(*call).exit_code == 0
    rows = rows_of(out / "t0.9")
    gone = rows[0]["partner_id"]
    train = json.loads((out / "t0.9" / "data.json").read_text())["train"]
    for row in rows:
        place = train["ids"].index(row["partner_id"])
        assert row["partner_version"] == train["hashes"][place][:16]
        assert sorted(COLOURS)[train["labels"][place]] == row["class_name"]
    forgotten = dinv("forget", out / "t0.9", "--source", gone)
    assert forgotten.exit_code == 0, forgotten.output
    left = SyntheticStore(out / "t0.9", tuple(sorted(COLOURS))).table("partner_id")["partner_id"].to_pylist()
    assert gone not in left and len(left) == sum(row["partner_id"] != gone for row in rows)
    assert dinv(*call).exit_code == 0
    for name in ("drawn", "t0", "t0.9"):
        assert gone not in {row["partner_id"] for row in rows_of(out / name)}
        assert gone not in json.loads((out / name / "data.json").read_text())["train"]["ids"]
    assert Counter(row["class_name"] for row in rows_of(out / "t0.9")) == dict.fromkeys(COLOURS, 5)


def test_bad_input_is_one_line_before_any_compute(toys: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "vectors" / "t0" / "embeddings").mkdir(parents=True)
    for options, message in (
        (("--clip", tmp_path / "none"), "no such folder, and not a hub id"),
        (("--clip", toys["generator"]), "not a CLIP, config.json is missing"),
        (("--language", tmp_path / "none"), "--language"),
        (("--thresholds", "0.5,0.1"), "numbers in 0..1 that ascend"),
        (("--thresholds", "0.5,1.5"), "numbers in 0..1 that ascend"),
        (
            ("--images-per-class", 13),
            "6 sentences x 2 variants are drawn, 13 images are to be kept. Give more --variants",
        ),
        (("--sentences", 61), "--sentences 61: there are 60 frames"),
        (("--template", "a photo"), "has no {class}"),
        (("--real-guidance", 1.5), "--real-guidance 1.5"),
        (("--sample-resolution", 15), "--sample-resolution 16"),
        (("--out", tmp_path / "vectors"), "a run of learned vectors"),
    ):
        done = dinv(*command(toys, tmp_path / "out", "--thresholds", "0,0.9", *options))
        assert done.exit_code == 2 and message in done.output, done.output
        assert not list(tmp_path.rglob("*.png")) and not (tmp_path / "root").exists()
    out = tmp_path / "out"
    assert dinv(*command(toys, out, "--thresholds", 0)).exit_code == 0
    for changed in (("--soft-temperature", 1), ("--images-per-class", 4)):
        refused = dinv(*command(toys, out, "--thresholds", 0, *changed))
        assert refused.exit_code == 5, refused.output
    assert dinv(*command(toys, out, "--thresholds", 0, "--soft-weight", 0, "--restart")).exit_code == 0
    assert {row["label_weight"] for row in rows_of(out / "t0")} == {1.0}
    assert SyntheticStore(out / "t0", tuple(sorted(COLOURS))).read().soft is None
