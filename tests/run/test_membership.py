"""`dinv membership`: what knows its images by heart is told, what does not is not; kept, shown, forgotten, repaired."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import dinv
from harness import SAMPLE, Bench, write_images
from planted_copies import plant_copies
from smooth_pictures import pictures
from torch import Tensor
from toy import toy_images

from diffusion_inversion.cli.membership import table
from diffusion_inversion.config.commands import AuditSettings, MembershipSettings
from diffusion_inversion.config.settings import DataSettings, InvertSettings
from diffusion_inversion.config.training import TrainSettings
from diffusion_inversion.data.datasets import Splits
from diffusion_inversion.data.images import LabelledImages
from diffusion_inversion.engine.ledger import Ledger
from diffusion_inversion.engine.lock import run_lock
from diffusion_inversion.errors import DataError
from diffusion_inversion.generator.generator import Generator
from diffusion_inversion.invert.inversion import invert
from diffusion_inversion.measure.copies.views import part_view, pixel_view
from diffusion_inversion.measure.membership import told
from diffusion_inversion.run import membership
from diffusion_inversion.run import stages as pipeline
from diffusion_inversion.run.images import open_splits
from diffusion_inversion.run.membership import membership_again, membership_run, read_membership, tried_images
from diffusion_inversion.run.verify import verify

ASKED = MembershipSettings(draws=1, device="cpu")
MEMBERS, OTHERS = 24, 48  # half of the others calibrate
TRAIN = TrainSettings(architecture="resnet20", steps=40, batch_size=12, seeds=(0,), arms=("real",))


def figures(record: dict[str, Any]) -> dict[str, Any]:
    return {f"{one['of']}: {one['by']}": one for one in record["figures"]}


def drawn(count: int, side: int = 16) -> LabelledImages:
    """Smooth pictures; of the first 32 the second class is bright, of the others the first."""
    images = torch.nn.functional.interpolate(pictures(count, 5), size=(side, side), mode="bicubic", antialias=True)
    toys = toy_images(count, side)
    bright = (toys.labels == 1) ^ (torch.arange(count) >= 32)
    images = images // 2 + 120 * bright[:, None, None, None].byte()
    return LabelledImages(**{**vars(toys), "images": images})


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 of 32 training images, whose classifier had time to learn what is true of them alone."""
    folder = tmp_path_factory.mktemp("membership")
    images = drawn(32 + OTHERS)
    write_images(folder / "data" / "train", images, range(32))
    write_images(folder / "data" / "test", images, range(32, 32 + OTHERS))
    run = folder / "run"
    with run_lock(run):
        pipeline.run_all(
            run, DataSettings(data=str(folder / "data"), limit=MEMBERS), bench.generator(),
            invert=InvertSettings(steps=1, init="random", eval_draws=1), sample=SAMPLE, train=TRAIN,
            command="dinv run data",
        )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def once(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it that was measured; not to be changed."""
    run = Path(shutil.copytree(whole, tmp_path_factory.mktemp("once") / "run"))
    with run_lock(run):
        membership_run(run, ASKED)
    return run


@pytest.fixture
def measured(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once, tmp_path / "run"))


def test_what_knows_its_images_is_told_and_what_does_not_is_not(once: Path) -> None:
    record = json.loads((once / "membership.json").read_text())
    assert (record["members"], record["held_out"], record["references"]) == (24, 24, 24)
    found = figures(record)
    assert list(found) == [
        "vectors: denoising loss with the nearest vectors", "vectors: distance to what they draw",
        "synthetic images: distance to the nearest", "classifier real: loss",
    ]  # fmt: skip
    assert found["classifier real: loss"]["auc_low"] > 0.7
    assert found["classifier real: loss"]["calibrated_by"] == "nothing"
    # What an untrained generator draws has nothing to do with its sources.
    independent = (found["synthetic images: distance to the nearest"], record["control"])
    assert all(one["auc_low"] < 0.5 < one["auc_high"] for one in independent)
    assert all(one["false_positives"] == 1 / 25 and one["members"] == 24 for one in found.values())
    assert "cannot hold a rate of 1 %, but one of 4 %" in " ".join(record["notes"])
    assert "no statement of differential privacy" in record["notes"][0]


def test_held_out_images_may_be_called_as_training_images_are(whole: Path) -> None:
    """Of `--test FOLDER`; the run does not know them for their names."""
    splits = open_splits(whole)
    named = replace(splits.test, ids=splits.train.ids + splits.test.ids[MEMBERS:])
    tried = tried_images(whole, Splits(splits.train, named, "given"), None, 16, ASKED)
    assert torch.equal(membership._known(whole, tried.images.ids), tried.members)


def edited(images: Tensor) -> Tensor:
    """The same pictures, uint8, with other pixels."""
    noise = 2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (0.97 * images + 3 + noise).round().clamp(0, 255).to(torch.uint8)


def held_out(images: Tensor, groups: tuple[str, ...] = ()) -> Splits:
    """Training images, and others."""
    ids, hashes = ([f"{kind}{place}" for place in range(len(images))] for kind in ("test", "hash"))
    test = replace(toy_images(len(images), images.shape[-1]), ids=tuple(ids), hashes=tuple(hashes), images=images)
    return Splits(drawn(24, 32), replace(test, groups=groups), "given")


def places(found: Tensor, images: Tensor) -> list[int]:
    """The row of each of the found images."""
    return [next(row for row, image in enumerate(images) if torch.equal(image, one)) for one in found]


def test_others_are_not_known_by_images_that_look_like_them() -> None:
    """Two of each picture: where one is a reference, the other would look as if the run did not know it."""
    pictures_of = drawn(120, 32).images[40:]
    images = torch.cat([pictures_of, edited(pictures_of)])
    tried = tried_images(Path(), held_out(images), None, 32, ASKED)
    references = {row % 80 for row in places(tried.references, images)}
    others = {row % 80 for row in places(tried.images.images[~tried.members], images)}
    assert not references & others and len(tried.references) == 80
    assert len(others) + tried.near_duplicates >= 60 and tried.near_duplicates > 20


def test_no_group_is_parted_between_references_and_others() -> None:
    images = drawn(140, 32).images[40:]
    groups = tuple(f"patient {row // 10}" for row in range(100))
    tried = tried_images(Path(), held_out(images, groups), None, 32, ASKED)
    references, others = places(tried.references, images), places(tried.images.images[~tried.members], images)
    assert len(references) == len(others) == 50
    assert not {groups[row] for row in references} & {groups[row] for row in others}
    with pytest.raises(DataError, match=r"15 held-out images to calibrate by, and 85 others .* at least 20 of either"):
        large = ("a",) * 85 + ("b",) * 15
        tried_images(Path(), held_out(images, large), None, 32, ASKED)


def test_copies_give_their_sources_away(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    with run_lock(run):
        plant_copies(run)
        (one,) = membership_run(run, ASKED.model_copy(update={"held": ("synthetic",)}))["figures"]
    assert (one["auc"], one["true_positives"]) == (1.0, 1.0) and one["calibrated_by"] == "held-out images"


def test_copies_that_were_drawn_again_give_nothing_away(bench: Bench, whole: Path, tmp_path: Path) -> None:
    """The adversary has what the run trains on and exports: what stands in the place of copies, not the copies."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    asked = ASKED.model_copy(update={"held": ("synthetic",)})
    with run_lock(run):
        plant_copies(run)
        assert membership_run(run, asked)["figures"][0]["auc"] == 1.0
        pipeline.restart(run, "train")
        copies = AuditSettings(planted=0, device="cpu")
        pipeline.train_stage(run, open_splits(run), TRAIN, "cpu", copies=copies, generator=bench.generator())
        (one,) = membership_run(run, asked)["figures"]
    assert one["auc"] < 0.8 and one["auc_low"] < 0.5


def test_what_was_measured_is_kept_and_not_measured_again(measured: Path, tmp_path: Path) -> None:
    before = (measured / "membership.json").stat().st_mtime_ns
    said = dinv("membership", measured, "--draws", 1, "--device", "cpu", "--out", tmp_path / "out")
    assert said.exit_code == 0, said.output
    assert "24 training images against 24 held-out ones" in said.stdout and "classifier real: loss" in said.stdout
    assert (measured / "membership.json").stat().st_mtime_ns == before
    kept = (measured / "membership.json").read_bytes()
    assert (tmp_path / "out" / "membership.json").read_bytes() == kept
    assert verify(measured).findings == () and verify(measured).foreign == ()
    (measured / "membership.json").write_text("{}")
    assert dinv("repair", measured).exit_code == 0
    assert (measured / "membership.json").read_bytes() == kept


def test_each_row_of_the_table_has_the_rate_that_it_holds(once: Path) -> None:
    record = json.loads((once / "membership.json").read_text())
    record["figures"][1]["false_positives"] = 0.021
    rates = [line.rpartition("] at ")[2] for line in table(record).splitlines() if "] at " in line]
    assert rates == ["4 %", "4 %", "2.1 %", "4 %", "4 %"]


def test_the_report_has_a_section_of_it(measured: Path) -> None:
    splits = open_splits(measured)
    with run_lock(measured):
        results = pipeline.train_stage(measured, splits, TRAIN, "cpu")
        record = pipeline.report_stage(measured, splits, results, TRAIN, "dinv run data")
    page = (measured / "report.html").read_text()
    assert "<h2>Which images it was made from</h2>" in page and "no statement of differential privacy" in page
    assert f"{record['membership']['figures'][3]['auc']:.2f} (" in page and "&lt;" not in page
    with run_lock(measured):  # what is drawn or trained anew is not called measured
        pipeline.restart(measured, "train")
    assert not (measured / "membership.json").exists()


def test_what_is_forgotten_leaves_no_figure(measured: Path) -> None:
    victim = open_splits(measured).train.ids[0]
    assert dinv("forget", measured, "--source", victim).exit_code == 0
    assert not (measured / "membership.json").exists()
    membership_again(measured, open_splits(measured))  # nobody asks for it any more
    assert not (measured / "membership.json").exists()


def test_replicates_that_do_not_know_an_image_calibrate_it(whole: Path, tmp_path: Path) -> None:
    """Another run on other images is a reference for both; where it knows every image, it is none."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    replicate = Path(shutil.copytree(whole, run / "replicates" / "1"))
    asked = ASKED.model_copy(update={"held": ("synthetic", "classifier")})
    splits = open_splits(run)
    known = {one["calibrated_by"] for one in figures(membership._measured(run, asked, splits)).values()}
    assert known == {"nothing", "held-out images"}
    record = json.loads((replicate / "data.json").read_text())
    record["train"]["ids"] = [f"other/{name}" for name in record["train"]["ids"]]
    Ledger(replicate).commit("data.json", json.dumps(record).encode(), note={"source": record["source"]})
    other = figures(membership._measured(run, asked, splits))
    # The reference is the run itself: nothing is left of what it knows.
    assert {one["calibrated_by"] for one in other.values()} == {"1 other replicates"}
    assert {one["auc"] for one in other.values()} == {0.5}


def test_vectors_of_images_are_told_by_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter's own guesses as vectors: of other images they denoise worse than the guess of the image itself."""
    monkeypatch.setattr(membership, "_AT_ONCE", 16)  # a constant: 40 images in several parts
    images = drawn(40, 64)
    generator = Generator.load("mini", device="cpu")
    none = InvertSettings(steps=0, eval_draws=1)
    vectors = invert(images.subset(range(20)), generator, tmp_path, none)
    tried = membership.Tried(images, torch.arange(40) < 20, images.images[:1], 0)
    cpu = torch.device("cpu")
    search = membership._Search([pixel_view(cpu), part_view(cpu)], images.images)
    adapter, seen = generator.adapter, list[int]()
    assert adapter is not None
    adapter.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    loss, distance = membership._of_vectors(vectors, generator, tried, search, 64, ASKED)
    assert seen == [16, 16, 8]  # of many images not all at once
    assert loss[:20].tolist() == pytest.approx([0] * 20, abs=1e-3)
    assert told(loss[:20], loss[20:], 0.01).auc > 0.9 and told(distance[:20], distance[20:], 0.01).auc > 0.9


def test_bad_input_is_one_line(whole: Path, finished: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> tuple[int, str]:
        found = dinv("membership", *arguments)
        assert len([line for line in found.output.splitlines() if line.startswith("error:")]) == 1, found.output
        return found.exit_code, found.output

    code, said = refused(finished)
    assert code == 4 and "12 training images; at least 20 are needed" in said
    assert refused(tmp_path)[0] == 2
    for out in (whole, finished):
        code, said = refused(whole, "--out", out)
        assert code == 2 and f"--out {out}: a run folder" in said
    (tmp_path / "membership.json").write_text("of the club")
    code, said = refused(whole, "--out", tmp_path)
    assert code == 2 and "its membership.json is no such record" in said
    assert refused(whole, "--limit", 5)[0] == refused(whole, "--of", "weights")[0] == 2
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(run / "classifiers")
    code, said = refused(run)
    assert code == 2 and "no classifiers, or not all of them. Run `dinv train" in said
    assert dinv("membership", run, "--of", "synthetic", "--device", "cpu").exit_code == 0
    run = Path(shutil.copytree(whole, tmp_path / "damaged"))
    next((run / "classifiers").glob("*.safetensors")).write_bytes(b"not what it was")
    code, said = refused(run)
    assert code == 4 and ".safetensors" in said and "compare" not in said  # before anything else is done
    splits = open_splits(whole)
    few = Splits(splits.train, splits.test.subset(range(39)), splits.how)
    with pytest.raises(DataError, match=r"39 held-out images .* at least 40 are needed") as caught:
        tried_images(whole, few, None, 16, ASKED)
    assert caught.value.exit_code == 4
    assert read_membership(whole, splits) is None
    doubled = Splits(splits.test, splits.test, splits.how)
    with pytest.raises(DataError, match=r"0 held-out images that show no training image"):
        tried_images(whole, doubled, None, 16, ASKED)


def test_the_nearest_is_found_in_whatever_parts_the_known_come(monkeypatch: pytest.MonkeyPatch) -> None:
    images = drawn(40, 32).images
    search = membership._Search([pixel_view(torch.device("cpu"))], torch.cat([images[25:28], images[3:4].flip(-1)]))
    ((rows, near),) = search.nearest(images)
    assert rows.tolist() == [25, 26, 27, 3] and bool((near > 5).all())
    monkeypatch.setattr(membership, "_KNOWN", 7)
    ((rows, parted),) = search.nearest(images)
    assert rows.tolist() == [25, 26, 27, 3] and torch.equal(parted, near)
