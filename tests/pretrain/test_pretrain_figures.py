"""The stage `figures`: each measure against what it must be, pieces that are kept, and the whole on toy generators."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import MINI_SCHEDULER, build_checkpoint, toy_images
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.cli.command import labelled
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.measure.extractors.extractor import Extractor
from diffusion_inversion.measure.metrics.frechet import fid
from diffusion_inversion.pretrain import quality
from diffusion_inversion.pretrain.corpus import Corpus
from diffusion_inversion.pretrain.domains import drawn_at, learned, picture_of
from diffusion_inversion.pretrain.figures import Amounts, balanced, measure
from diffusion_inversion.pretrain.figures_text import figures_markdown, table
from diffusion_inversion.pretrain.judge import accuracy_lost, recognised, share, trained
from diffusion_inversion.pretrain.likeness import FeatureDistance, autoencoder_figures, psnr, sharpness, sharpness_ratio
from diffusion_inversion.pretrain.pieces import Pieces, found_in
from diffusion_inversion.sample.png import encode_png
from diffusion_inversion.train.classifiers import Classifier

SETTINGS = TrainSettings(architecture="resnet20", recipe="fast", steps=40, batch_size=16)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = build_checkpoint(tmp_path_factory.mktemp("figures") / "toy", MINI_SCHEDULER)
    return Generator.load(folder, device="cpu", dtype="float32")


def coloured(count: int, size: int = 16, seed: int = 0) -> LabelledImages:
    """Noise over red (class 0) and green (class 1) in turn; ids do not sort as the rows do."""
    stream = torch.Generator().manual_seed(seed)
    images = torch.randint(60, (count, 3, size, size), generator=stream, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    images[torch.arange(count), labels] += 150
    return LabelledImages(
        name="coloured",
        ids=tuple(f"{seed}/{(7 * row) % count:03d}.png" for row in range(count)),
        hashes=tuple(f"{seed:032x}{row:032x}" for row in range(count)),
        labels=labels,
        class_names=("red", "green"),
        images=images,
        native_size=size,
    )


def swapped(images: Tensor) -> Tensor:
    """Red for green."""
    return images[:, [1, 0, 2]]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("judge"), "judge", coloured(64), SETTINGS)


def test_psnr_of_a_constant_error_has_a_closed_form() -> None:
    images = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    off = images.clone()
    off[0] += 10
    off[1] -= 5
    expected = [20 * math.log10(255 / 10), 20 * math.log10(255 / 5)]
    assert psnr(off, images) == pytest.approx(sum(expected) / 2)
    assert psnr(off.repeat(90, 1, 1, 1), images.repeat(90, 1, 1, 1)) == pytest.approx(sum(expected) / 2)  # in parts
    assert psnr(images, images) == 100


def test_sharpness_is_a_gradient_over_a_spread_and_falls_with_blur() -> None:
    stripes = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    stripes[..., ::2] = 200  # neighbours differ by 200, every pixel is 100 from the mean
    spread = 100 * math.sqrt(3 * 256 / (3 * 256 - 1))
    assert float(sharpness(stripes)) == pytest.approx(200 / spread)
    assert float(sharpness(stripes // 2 + 20)) == pytest.approx(200 / spread)  # contrast and brightness aside
    assert float(sharpness(stripes.transpose(2, 3))) == 0  # horizontal neighbours alone

    smooth = toy_images(4, size=32).images
    planted = smooth.clone()
    planted[..., 1::2] = planted[..., 1::2] // 2
    flat = torch.full_like(smooth[:1], 9)
    assert (sharpness_ratio(planted, smooth) or 0) > 2 > 0.5 > (sharpness_ratio(smooth, planted) or 1)
    assert sharpness_ratio(smooth, smooth) == pytest.approx(1)
    torch.testing.assert_close(sharpness(smooth.repeat(40, 1, 1, 1)), sharpness(smooth).repeat(40))
    with_flat = sharpness_ratio(torch.cat([planted, flat]), torch.cat([smooth, flat]))
    assert with_flat == pytest.approx(sharpness_ratio(planted, smooth))
    assert sharpness_ratio(flat, flat) is None


def test_the_autoencoder_is_seen_at_its_own_and_at_common_sizes() -> None:
    originals = toy_images(4, size=32).images
    half = torch.nn.functional.interpolate(originals, size=(16, 16), mode="bicubic", antialias=True)
    found = autoencoder_figures(half, originals, (32,))
    assert found["psnr"]["own"] == 100 and found["sharpness"]["own"] == pytest.approx(1)
    assert found["psnr"]["32"] < 100  # what the smaller side lost
    noisy = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    lost = autoencoder_figures(torch.nn.functional.interpolate(noisy, size=(16, 16)), noisy, (32,))
    assert lost["sharpness"]["32"] < 0.9


def test_distance_is_nought_to_oneself_and_one_to_others_on_average() -> None:
    distance, images = FeatureDistance(), toy_images(6, size=32).images
    profiles = distance.profiles(images)
    assert distance(profiles, profiles) == 0
    to_others = [distance(profiles.roll(k, 0), profiles) for k in range(1, 6)]
    assert sum(to_others) / 5 == pytest.approx(1)
    slightly = distance.profiles((images.int() + 3).clamp(max=255).to(torch.uint8))
    assert distance(slightly, profiles) < 0.5


def test_a_judge_that_knows_the_answer_agrees_with_it_and_not_with_its_opposite(judge: Path) -> None:
    classifier, sources = Classifier.load(judge), coloured(20, seed=1)
    assert recognised(classifier, sources, sources.images).all()
    assert not recognised(classifier, sources, swapped(sources.images)).any()
    larger = torch.nn.functional.interpolate(sources.images, scale_factor=2)
    assert recognised(classifier, sources, larger).all()  # resized for it
    half = torch.cat([sources.images[:5], swapped(sources.images[5:])])
    assert recognised(classifier, sources, half).tolist() == [True] * 5 + [False] * 15
    with pytest.raises(DataError, match="the judge's are"):
        recognised(classifier, replace(sources, class_names=("a", "b")), sources.images)


def test_a_share_has_wilsons_interval() -> None:
    z2 = 1.959964**2
    whole = share(torch.ones(100, dtype=torch.bool))
    assert whole["n"] == 100 and whole["share"] == 1
    assert whole["interval"] == pytest.approx([100 / (100 + z2), 1], abs=1e-6)
    some = share(torch.arange(400) < 240)
    centre = (240 + z2 / 2) / (400 + z2)
    assert some["share"] == 0.6 and sum(some["interval"]) / 2 == pytest.approx(centre, abs=1e-6)


def test_accuracy_lost_is_positive_where_accuracy_falls(judge: Path) -> None:
    classifier, test = Classifier.load(judge), coloured(40, seed=1)
    decoded = torch.cat([test.images[:30], swapped(test.images[30:])])
    found = accuracy_lost([classifier, classifier], test, decoded)
    assert found["accuracy"] == [1, 1] and found["accuracy_autoencoded"] == [0.75, 0.75]
    assert found["lost"] == 0.25
    # No spread over seeds; over images that of 10 ones among 40.
    assert found["standard_error"] == pytest.approx(math.sqrt(0.25 * 0.75 / 39))


def test_a_classifier_is_trained_once_for_its_data_settings_and_seed(judge: Path) -> None:
    before = judge.stat().st_mtime_ns
    assert trained(judge.parent, "judge", coloured(64), SETTINGS) == judge and judge.stat().st_mtime_ns == before
    shorter = SETTINGS.model_copy(update={"steps": 1})
    others = {
        trained(judge.parent, "judge", coloured(64), shorter),
        trained(judge.parent, "judge", coloured(64), shorter, seed=1),
        trained(judge.parent, "judge", coloured(62), shorter),
    }
    assert len(others) == 3 and judge not in others
    assert not list(judge.parent.glob("state-*"))


def test_a_piece_is_kept_for_the_same_inputs(tmp_path: Path) -> None:
    path, counted = tmp_path / "figures.json", []

    def compute() -> dict[str, object]:
        counted.append(1)
        return {"value": len(counted)}

    first = Pieces(path, {"domains": []})
    assert first.keep("a", {"of": (1, 2)}, compute) == {"value": 1}
    again = Pieces(path, {"domains": ["x"]})  # another call, as after a kill
    assert again.keep("a", {"of": [1, 2]}, compute) == {"value": 1} and len(counted) == 1
    assert again.keep("b", {"of": [1, 2]}, compute) == {"value": 2}
    assert again.keep("a", {"of": [1, 3]}, compute) == {"value": 3}  # other inputs
    assert again.keep("a", {"of": [1, 3]}, compute, files=[tmp_path / "gone.png"]) == {"value": 4}
    content = json.loads(path.read_text())
    assert content["domains"] == ["x"] and set(content["pieces"]) == {"a", "b"}
    assert found_in(content, "b") == {"value": 2} and found_in(content, "c") is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        again.keep("nan", {}, lambda: {"value": math.nan})
    path.write_text(json.dumps({"made_from": {}, "summary": {}}))  # of an earlier version
    assert Pieces(path, {}).keep("a", {}, compute) == {"value": 5}


def test_sources_are_an_equal_share_a_class_chosen_by_id() -> None:
    images = coloured(30)
    some, more = balanced(images, 8), balanced(images, 14)
    assert some.labels.bincount().tolist() == [4, 4] and more.labels.bincount().tolist() == [7, 7]
    assert set(some.ids) < set(more.ids) < set(images.ids)
    turned = images.subset(list(reversed(range(30))))
    assert set(balanced(turned, 8).ids) == set(some.ids)
    assert balanced(images, 99).ids == images.ids


def test_sources_stand_in_the_order_of_their_vectors(toy: Generator, tmp_path: Path) -> None:
    """Else a drawing is compared with another image: ids here do not sort as rows do."""
    images = coloured(8)
    embeddings, sources = learned(toy, images, (1, 2), tmp_path)
    assert embeddings.steps == (0, 1, 2)
    assert sources.ids == embeddings.ids != images.ids
    assert torch.equal(sources.labels, embeddings.labels)
    assert torch.equal(sources.images[0], images.images[images.ids.index(embeddings.ids[0])])
    guess = toy.text_tokens(["red", "green"])[embeddings.labels, :5]
    torch.testing.assert_close(embeddings.at(0), guess)  # without an adapter, of the class name
    assert drawn_at(embeddings, toy, 0, 1.5).shape == (8, 3, 16, 16)


def test_a_picture_has_the_sources_above_their_views() -> None:
    sources = coloured(4)
    grid = picture_of(sources, [swapped(sources.images)], resolution=16)
    times, cell = 8, 17  # enlarged to 128 px; a cell is 16 px and its border
    assert grid.shape == (3, times * (2 * cell + 1), times * (4 * cell + 1))
    small = grid[:, ::times, ::times]
    rows = sources.labels.argsort(stable=True).tolist()
    for column, row in enumerate(rows):
        left = 1 + column * cell
        assert torch.equal(small[:, 1:17, left : left + 16], sources.images[row])
        assert torch.equal(small[:, 18:34, left : left + 16], swapped(sources.images)[row])


def test_fid_is_that_of_the_package_and_kid_sees_no_difference_where_there_is_none() -> None:
    stream = torch.Generator().manual_seed(0)
    real, same, other = (torch.randn(n, 8, generator=stream) for n in (300, 200, 200))
    state = torch.get_rng_state()
    near, far = quality.distances(real, same), quality.distances(real, other + 1)
    assert torch.equal(torch.get_rng_state(), state)
    for found, features in ((near, same), (far, other + 1)):
        assert found["fid_lite0"] == pytest.approx(fid(real, features), rel=1e-3, abs=1e-3)
        assert found["fid_error"] > 0 and found["kid_subsets"] == [100, 200]
    assert far["fid_lite0"] == pytest.approx(8, rel=0.15)  # |mean difference|^2
    assert abs(near["kid_lite0"]) < 0.05 < far["kid_lite0"]


def test_samples_go_on_block_by_block(toy: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "BLOCK", 2)
    pixels = Extractor(
        "pixels", "", 3, "none", "0", torch.device("cpu"), lambda images: images.float().mean(dim=(2, 3))
    )
    heldout = coloured(8).images

    def run(samples: int) -> tuple[dict[str, Tensor], list[Path]]:
        found = quality._sample_features(toy, ["cat", "dog", "owl"], samples, (8, 16), tmp_path, pixels)
        return {str(size): features for size, features in found.items()}, sorted(tmp_path.rglob("*.safetensors"))

    first, files = run(4)
    assert [file.name for file in files] == ["000000-000002.safetensors", "000002-000004.safetensors"]
    written = [file.stat().st_mtime_ns for file in files]
    files[1].write_bytes(files[1].read_bytes()[:-1])
    more, _ = run(6)
    assert files[0].stat().st_mtime_ns == written[0] and files[1].stat().st_mtime_ns != written[1]
    for size, features in first.items():
        assert features.shape == (4, 3) and features.std(0).min() > 0
        torch.testing.assert_close(more[size][:4], features)
    figures = quality.quality_figures(toy, heldout, ["cat", "dog", "owl"], 6, (8, 16), tmp_path, pixels)
    assert figures["n"] == 6 and figures["n_real"] == 8 and set(figures["sizes"]) == {"8", "16"}


def write_folder(folder: Path, images: LabelledImages) -> Path:
    for image, label, name in zip(images.images, images.labels.tolist(), images.ids, strict=True):
        path = folder / images.class_names[label] / name.replace("/", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))
    return folder


def test_everything_is_measured_once_for_every_generator(toy: Generator, judge: Path, tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", coloured(12))
    test = write_folder(tmp_path / "test", coloured(10, seed=1))
    # Classes sort by name in a folder: the judge must know them in that order.
    known = replace(coloured(64), class_names=("green", "red"), labels=1 - coloured(64).labels)
    amounts = Amounts(
        sources=4, images=4, samples=6, autoencoded=5, steps=(1, 2), guidance_scales=(1.0, 2.0), seeds=(0, 1),
        classifier=SETTINGS.model_copy(update={"steps": 2}),
    )  # fmt: skip
    heldout = Corpus(coloured(8, size=32).images, torch.arange(8) % 2, ("red", "green"))
    judge = trained(judge.parent, "judge", known, SETTINGS)
    given = {"judge": judge, "domains": {"colours": train}, "tests": {"colours": test}, "amounts": amounts}
    out = tmp_path / "out"
    content = measure(out, heldout, train, test, generators={"toy": toy}, **given)  # type: ignore[arg-type]
    key = toy.hash[:12]
    found = {name: piece["found"] for name, piece in content["pieces"].items()}
    assert found["judge"]["share"] == found["agreement/sources"]["share"] == 1
    for view in ("autoencoded", "0/1", "0/2", "1/1", "1/2", "2/1", "2/2"):
        assert found[f"agreement/{key}/{view}"]["n"] == 4
    domain = found[f"domain/colours/{key}"]
    assert domain["ratio"]["2"] == pytest.approx(domain["losses"]["2"] / domain["null_loss"])
    assert set(domain["views"]) == {"autoencoded", "0", "1", "2"}
    assert set(domain["views"]["0"]["psnr"]) == {"own", "32", "64"}
    assert found["autoencoder/target/" + key]["classifiers"] == 1
    assert found["autoencoder/colours/" + key]["classifiers"] == 2
    assert found["autoencoder/held-out corpus/" + key]["n"] == 5
    assert set(found[f"quality/{key}"]["sizes"]) == {"32"}  # the corpus has no more
    assert sorted(path.name for path in (out / "figures").iterdir()) == [f"colours-{key}.png"]

    # The same call computes nothing; one with another generator computes that one's pieces alone.
    before, second = (out / "figures.json").read_bytes(), tmp_path / "second"
    measure(out, heldout, train, test, generators={"toy": toy}, **given)  # type: ignore[arg-type]
    assert (out / "figures.json").read_bytes() == before
    other = Generator.load(build_checkpoint(second, MINI_SCHEDULER, 0.5), device="cpu", dtype="float32")
    both = {"toy": toy, "other": other}
    content = measure(out, None, generators=both, domains=given["domains"], amounts=amounts)  # type: ignore[arg-type]
    new = set(content["pieces"]) - set(found)
    assert new == {f"domain/colours/{other.hash[:12]}"}
    text = (out / "figures.md").read_text()
    assert f"| colours | toy | 4 | {domain['null_loss']:.3f} |" in text and "| colours | other | 4 |" in text
    assert "FID of 8 real and 6 generated images in 1,280 dimensions is mostly bias" in text
    assert "Label agreement" in text and "not measured" in text  # the judge has not seen the other


def test_parts_that_lack_another_are_refused(tmp_path: Path, toy: Generator) -> None:
    given = {"generators": {"toy": toy}}
    with pytest.raises(UsageError, match="give both"):
        measure(tmp_path, None, "digits", **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing to judge"):
        measure(tmp_path, judge=tmp_path / "judge.safetensors", **given)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="test images of steel: no such domain"):
        measure(tmp_path, tests={"steel": "digits"}, **given)  # type: ignore[arg-type]


def test_tables_say_what_was_found_and_what_was_not() -> None:
    assert table(["a", "b"], [["x|y", "line\nbreak"]]) == "| a | b |\n| --- | --- |\n| x\\|y | line break |\n"
    generators = [
        {"label": label, "hash": letter * 64, "resolution": 32, "vae_factor": 4, "latent_channels": 8,
         "unet_parameters": 6_600_000, "dtype": "float32", "prediction_type": "v_prediction", "adapter": True}
        for label, letter in (("old", "a"), ("new", "b"))
    ]  # fmt: skip
    pieces = {
        "judge": {"n": 10_000, "share": 0.793, "interval": [0.785, 0.801], "architecture": "resnet20", "size": 32},
        "agreement/sources": {"n": 1000, "share": 0.876, "interval": [0.854, 0.895]},
        f"agreement/{'a' * 12}/50/1.5": {"n": 1000, "share": 0.588, "interval": [0.557, 0.618]},
        f"autoencoder/target/{'b' * 12}": {
            "n": 10_000, "psnr": {"own": 32.66, "32": 32.66, "64": 30.1}, "sharpness": {"own": 0.9, "32": 0.9},
            "classifiers": 1, "accuracy": [0.793], "accuracy_autoencoded": [0.770], "lost": 0.023,
            "standard_error": 0.003,
        },
    }  # fmt: skip
    content = {
        "generators": generators, "domains": [], "tests": [], "steps": [0, 50], "guidance_scales": [1.5],
        "sizes": [32, 64], "sampler": {"guidance_scale": 2.0, "inference_steps": 16},
        "pieces": {key: {"made_from": {}, "seconds": 1, "found": value} for key, value in pieces.items()},
    }  # fmt: skip
    text = figures_markdown(content)
    assert "| 50 steps, guidance 1.5 | 58.8 [55.7, 61.8] | not measured |" in text
    assert "79.3 [78.5, 80.1] % right on 10,000 test images, below the 90 % of a judge" in text
    assert (
        "| target | new | 10,000 | 32.66 | 32.66 | 30.10 | 0.900 | 0.900 | - | 79.3 | 77.0 | +2.3 ± 0.3 (n=1) |" in text
    )
    assert "Quality" not in text and "mostly bias" not in text and "Domains" not in text


def test_generators_compare_from_the_command_line(toy: Generator, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "train", coloured(8))
    call = ["generators", "compare", f"toy={toy.source}", "--data", f"colours={data}", "--images", "4", "--steps", "1",
            "--dtype", "float32", "--device", "cpu", "--out", str(tmp_path / "out")]  # fmt: skip
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert "| colours | toy | 4 |" in done.stdout and (tmp_path / "out" / "figures.md").read_text() in done.stdout
    as_json = json.loads(CliRunner().invoke(app, [*call, "--json"]).stdout)
    assert as_json["ok"] and as_json["generators"][0]["label"] == "toy"
    for wrong in (["--data", "colours"], [f"toy={toy.source}"], ["--steps", "0"], ["--images", "1"]):
        assert CliRunner().invoke(app, [*call, *wrong]).exit_code == 2


def test_names_of_generators_can_be_labels(tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()
    assert labelled(["mini", "new=hf/id", str(folder)]) == {"mini": "mini", "new": "hf/id", "a=b": str(folder)}
    with pytest.raises(UsageError, match="LABEL=NAME"):
        labelled(["mini", "mini=other"])
