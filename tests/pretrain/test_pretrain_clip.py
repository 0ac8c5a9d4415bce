"""`mini-clip`: its loss, what WordNet adds, resumption to the same bits, and a folder that transformers reads."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_pretrain import Killed, killed_at, killed_at_step_3, write_corpus
from toy_clip import COLOURS, coloured
from typer.testing import CliRunner

from diffusion_inversion.cli import app
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.engine import faults
from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.generator.generator import tokenize
from diffusion_inversion.pretrain import clip, loop, recipe
from diffusion_inversion.pretrain.clip import Concepts, contrastive_loss
from diffusion_inversion.pretrain.corpus import Corpus
from diffusion_inversion.pretrain.log import read_log
from diffusion_inversion.pretrain.loop import Budget
from diffusion_inversion.pretrain.wordnet import hypernyms
from diffusion_inversion.train.few_shot.clip import Clip
from diffusion_inversion.train.few_shot.clip_files import words_of
from diffusion_inversion.train.few_shot.prompts import check_classes
from diffusion_inversion.train.few_shot.zero_shot import class_weights, zero_shot_logits

CPU = torch.device("cpu")
# word forms of a synset, and what it is a kind of; WordNet's own first senses, cut short
SYNSETS = (
    (("entity",), ()),
    (("animal", "fauna"), ("entity",)),
    (("fish",), ("animal",)),
    (("goldfish", "Carassius_auratus"), ("fish",)),
    (("cat", "true_cat"), ("animal",)),
    (("tabby", "tabby_cat"), ("cat",)),
    (("Whiskers",), ("tabby",)),
)


def write_wordnet(folder: Path) -> Path:
    """The synsets in the format of wndb(5WN): offsets are places in the file, counts of words are hexadecimal."""
    folder.mkdir(parents=True)
    header = "  1 a licence that is no entry\n"
    offsets, text = {}, header
    for words, above in SYNSETS:
        offsets[words[0]] = len(text)
        pointers = [("@i" if words == ("Whiskers",) else "@", offsets[one]) for one in above] + [("~", 99999999)]
        listed = " ".join(f"{word} 0" for word in words)
        pointed = " ".join(f"{symbol} {offset:08d} n 0000" for symbol, offset in pointers)
        text += f"{len(text):08d} 05 n {len(words):02x} {listed} {len(pointers):03d} {pointed} | a gloss | of it\n"
    (folder / "data.noun").write_text(text)
    lines = [header]
    for words, _ in SYNSETS:
        lines += [f"{word.lower()} n 2 2 @ ~ 2 1 {offsets[words[0]]:08d} {offsets['entity']:08d}  \n" for word in words]
    (folder / "index.noun").write_text("".join(sorted(lines)))
    return folder


def test_hypernyms_are_the_words_above_the_first_sense(tmp_path: Path) -> None:
    folder = write_wordnet(tmp_path / "wordnet")
    found = hypernyms(("goldfish", "Tabby cat, Whiskers", "zeppelin"), folder)
    assert found["goldfish"] == ("goldfish", "carassius auratus", "fish", "animal", "fauna", "entity")
    assert found["Tabby cat, Whiskers"][:3] == ("tabby", "tabby cat", "whiskers")
    assert set(found["Tabby cat, Whiskers"][3:]) == {"cat", "true cat", "animal", "fauna", "entity"}
    assert found["zeppelin"] == ()
    with pytest.raises(UsageError, match=r"no index\.noun"):
        hypernyms(("goldfish",), tmp_path)
    data = folder / "data.noun"
    data.write_text("x" + data.read_text())
    with pytest.raises(DataError, match="not WordNet's noun files"):
        hypernyms(("goldfish",), folder)


def test_concepts_are_true_of_their_classes_and_say_something() -> None:
    names = tuple("abcdefgh")
    found = Concepts.of(names, {"a": ("a", "low", "thing"), "b": ("low", "thing"), "c": ("thing",)})
    assert found.names == (*names, "low")  # "thing" is true of more than a quarter
    assert torch.equal(found.true[:, :8], torch.eye(8, dtype=torch.bool))
    assert found.true[:, 8].tolist() == [True, True] + [False] * 6
    assert Concepts.of(("a", "b"), {"b": ("a",)}).true.tolist() == [[True, False], [True, True]]


def test_with_one_positive_each_the_loss_is_clip_s_and_else_the_mean_over_positives() -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    alone = torch.eye(4, dtype=torch.bool)
    labels = torch.arange(4)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(contrastive_loss(logits, alone), expected)
    positives = alone.clone()
    positives[0, 1] = True  # the second text is true of the first image, the first not of the second
    rows, columns = -logits.log_softmax(1), -logits.log_softmax(0)
    of_images = ((rows[0, 0] + rows[0, 1]) / 2 + rows[1, 1] + rows[2, 2] + rows[3, 3]) / 4
    of_texts = (columns[0, 0] + (columns[0, 1] + columns[1, 1]) / 2 + columns[2, 2] + columns[3, 3]) / 4
    torch.testing.assert_close(contrastive_loss(logits, positives), (of_images + of_texts) / 2)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of thin layers and few patches, and a log of every step."""
    monkeypatch.setattr(clip, "WIDTH", 24)
    monkeypatch.setattr(clip, "PATCHES", 4)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)


def corpus_of(count: int, seed: int) -> Corpus:
    pixels, labels = coloured(count, seed)
    return Corpus(pixels.repeat_interleave(2, 2).repeat_interleave(2, 3), labels, COLOURS)


def setting(folder: Path) -> recipe.Setting:
    return recipe.Setting(size=32, folder=folder, device=CPU, batch_size=12, vae_batch_size=4)


ABOVE = {"red": ("warm",), "green": ("cold",), "blue": ("cold", "marine")}


@pytest.mark.usefixtures("small")
def test_killed_and_resumed_has_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, whole, cut = corpus_of(24, 0), tmp_path / "whole", tmp_path / "cut"
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    for folder in (whole, cut):
        folder.mkdir()
    recipe.run_clip(corpus, corpus, setting(whole), Budget(samples=48), ABOVE)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "trapezoid", killed_at_step_3)
        recipe.run_clip(corpus, corpus, setting(cut), Budget(samples=48), ABOVE)
    assert not (cut / "mini-clip").exists()
    torch.rand(7)  # whatever else draws in between
    recipe.run_clip(corpus, corpus, setting(cut), Budget(samples=48), ABOVE)
    names = {path.name for path in (whole / "mini-clip").iterdir()}
    assert {"model.safetensors", "config.json", "words.json", "preprocessor_config.json"} <= names
    for name in names - {"clip.log.tsv", "README.md"}:  # they have times in them
        assert (whole / "mini-clip" / name).read_bytes() == (cut / "mini-clip" / name).read_bytes(), name
    assert [int(record["step"]) for record in read_log(cut / "clip.log.tsv")] == [1, 2, 3, 4]
    shutil.rmtree(cut / "mini-clip")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(faults, "on_point", killed_at)
        recipe.run_clip(corpus, corpus, setting(cut), Budget(samples=48), ABOVE)
    assert not (cut / "mini-clip").exists(), "it was trained, and half a folder would pass for the model"


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_it_learns_what_it_is_told_and_says_what_it_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_inversion.pretrain.optim.WARMUP_STEPS", 10)
    write_corpus(tmp_path / "corpus.parquet", corpus_of(240, 0).images, corpus_of(240, 0).labels.tolist(), COLOURS)
    write_corpus(tmp_path / "held.parquet", corpus_of(60, 1).images, corpus_of(60, 1).labels.tolist(), COLOURS)
    call = [
        "pretrain", "--corpus", tmp_path / "corpus.parquet", "--validation", tmp_path / "held.parquet", "--size", 32,
        "--stage", "clip", "--clip-samples", 24 * 60, "--batch-size", 24, "--device", "cpu", "--out", tmp_path / "out",
    ]  # fmt: skip
    done = CliRunner().invoke(app, [str(one) for one in call])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "mini-clip")
    loaded = Clip.load(str(tmp_path / "out" / "mini-clip"), CPU)
    test = corpus_of(60, 2)
    templates = ("a photo of a {class}.",)
    features = loaded.image_features(to_model_range(test.images))
    ours = zero_shot_logits(features, class_weights(loaded, COLOURS, templates), loaded.scale)
    ids = loaded.tokenizer([f"a photo of a {name}." for name in COLOURS], padding=True, return_tensors="pt").input_ids
    theirs = loaded.model(input_ids=ids, pixel_values=to_model_range(test.images)).logits_per_image
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(clip.scaled_cosines(loaded.model, to_model_range(test.images), ids), ours)
    assert float((ours.argmax(1) == test.labels).float().mean()) > 0.8
    logged = float(read_log(tmp_path / "out" / "clip.log.tsv")[-1]["val_accuracy"])
    assert logged > 0.8
    assert loaded.mean == loaded.std == (0.5, 0.5, 0.5), "images in [-1, 1], as in training"
    card = (tmp_path / "out" / "mini-clip" / "README.md").read_text()
    error = math.sqrt(logged * (1 - logged) / 60)
    assert "Zero-shot accuracy over the 3 classes" in card and f"{logged:.3f} ± {error:.3f} of 60 images" in card
    assert f"sha256 of its files: `{loaded.hash}`" in card and "| 1,440 | " in card and "hypernyms" not in card
    check_classes(loaded, COLOURS, templates)
    with pytest.raises(UsageError, match=r"never taught the words zeppelin, dark_?, ") as caught:
        check_classes(loaded, ("red", "zeppelin", "dark_blue", "x3"), templates)
    assert "\n" not in str(caught.value)


def small_task(device: torch.device, batch_size: int = 12) -> clip.ClipTask:
    corpus, concepts = corpus_of(24, 0), Concepts.of(COLOURS, ABOVE)
    tokenizer = clip.new_tokenizer(concepts)
    model = clip.new_clip(32, tokenizer, 0)
    return clip.ClipTask(model, tokenizer, concepts, corpus, corpus, device, torch.float32, batch_size)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("capturing", [False, True])
def test_a_step_never_asks_the_device(monkeypatch: pytest.MonkeyPatch, capturing: bool) -> None:
    """No CUDA graph could hold that. On the device meta no value can be read, and none of the CPU is mixed in."""
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *_: capturing)  # as on a card that captures
    task = small_task(CPU)
    task.device = torch.device("meta")
    for name in ("images", "labels", "prompts", "true", "chance"):
        setattr(task, name, getattr(task, name).to("meta"))
    task.weights.network.to("meta")
    loss, figures = task.losses()
    loss.backward()
    assert loss.is_meta and figures.is_meta
    assert all(one.grad is not None and one.grad.is_meta for one in task.weights.network.parameters())


@pytest.mark.usefixtures("small")
def test_prompts_end_where_the_longest_does_which_changes_nothing() -> None:
    task = small_task(CPU)
    texts = Concepts.of(COLOURS, ABOVE).texts()
    tokenizer = clip.new_tokenizer(Concepts.of(COLOURS, ABOVE))
    whole = tokenize(tokenizer, texts)
    short = task.prompts.flatten(0, 1)
    assert short.shape[1] < whole.shape[1] == clip.MOST_TOKENS
    assert bool((short == tokenizer.eos_token_id).any(1).all()) and bool(
        (whole[:, short.shape[1] :] == short[0, -1]).all()
    )
    images = to_model_range(corpus_of(6, 1).images)
    model = task.weights.model["clip"]
    torch.testing.assert_close(clip.scaled_cosines(model, images, short), clip.scaled_cosines(model, images, whole))


class AsksTheDevice(clip.ClipTask):
    """A task that no graph can hold."""

    def losses(self) -> tuple[torch.Tensor, torch.Tensor]:
        loss, figures = super().losses()
        return loss * float(loss.detach() > -1), figures


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no card here")
@pytest.mark.usefixtures("small")
def test_on_a_card_steps_are_captured_or_run_one_by_one_and_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 5)
    monkeypatch.setattr(loop, "GRAPH_CHUNK", 5)
    found = []
    for kind in (clip.ClipTask, AsksTheDevice):
        task = small_task(torch.device("cuda"))
        task.__class__ = kind
        folder = tmp_path / kind.__name__
        folder.mkdir()
        loop.fit(task, folder, Budget(samples=12 * 20))
        assert ("without a CUDA graph" in capsys.readouterr().err) == (kind is AsksTheDevice)
        found.append(
            [
                (float(record["contrastive"]), float(record["val_accuracy"]))
                for record in read_log(folder / "clip.log.tsv")
            ]
        )
    for captured, alone in zip(*found, strict=True):
        assert captured == pytest.approx(alone, abs=0.05, nan_ok=True)


def test_words_are_parted_as_a_reader_would() -> None:
    assert words_of("Sea_Lake, 3rd-class") == ("sea", "lake", "3rd", "class")


@pytest.mark.usefixtures("small")
def test_wordnet_reaches_the_prompts_and_is_asked_for_first(tmp_path: Path) -> None:
    names = ("goldfish", "tabby cat", "zeppelin")
    images = corpus_of(36, 0)
    path = write_corpus(tmp_path / "corpus.parquet", images.images, images.labels.tolist(), names)
    budget = Budget(samples=12)
    with pytest.raises(UsageError, match=r"--wordnet .*: no index\.noun"):
        recipe.pretrain(
            path, path, tmp_path / "out", size=32, stages=("vae", "clip"), batch_size=12, device="cpu",
            wordnet=tmp_path, vae_budget=budget,
        )  # fmt: skip
    assert not (tmp_path / "out" / "vae.state.safetensors").exists()
    wordnet = write_wordnet(tmp_path / "wordnet")
    found = recipe.pretrain(
        path, path, tmp_path / "out", size=32, stages=("clip",), batch_size=12, device="cpu", wordnet=wordnet,
        clip_budget=budget,
    )  # fmt: skip
    words = json.loads((found / "words.json").read_text())
    assert {"fish", "cat", "carassius", "zeppelin"} <= set(words) and "entity" not in words
