"""Few-shot learners against restatements of their formulas, and on colours whose names say nothing."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from toy_clip import COLOURS, SHIFTED, SIDE, build_clip, coloured, coloured_images

from diffusion_inversion.config.few_shot import METHODS, FewShotSettings
from diffusion_inversion.randomness import generator_for
from diffusion_inversion.run.few_shot.features import clean_features, encode
from diffusion_inversion.train.few_shot.clip import Clip
from diffusion_inversion.train.few_shot.coop import coop_logits, coop_weights, epochs_of, learn_context, rate_at
from diffusion_inversion.train.few_shot.examples import Batches, Encoded, folds, without
from diffusion_inversion.train.few_shot.learners import learn
from diffusion_inversion.train.few_shot.prompts import padded, prompts_with_context, token_ids
from diffusion_inversion.train.few_shot.tip_adapter import Cache, build_cache, choose, fine_tune, tip_logits
from diffusion_inversion.train.few_shot.tuning import soft_loss, steps_of, tune
from diffusion_inversion.train.few_shot.views import crop_box, random_view
from diffusion_inversion.train.few_shot.zero_shot import class_weights, zero_shot_logits
from diffusion_inversion.train.folds import alike

CPU = torch.device("cpu")
WORDS = ("dog", "owl", "cat")  # no caption had them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip"), steps=100)


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return Clip.load(str(folder), CPU)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def examples(count: int, seed: int, made_from: str = "image") -> Encoded:
    """Random features with three classes in turn; image k is, or was made from, `made_from k`."""
    sources = tuple(frozenset({f"{made_from} {k}"}) for k in range(count))
    targets = F.one_hot(torch.arange(count) % 3, 3).float()
    return Encoded(normal(count, 8, seed=seed), normal(4, count, 8, seed=seed + 1), targets, sources)


def test_zero_shot_is_what_clip_itself_says(folder: Path, clip: Clip) -> None:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    pixels, labels = coloured(30, seed=3)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    inputs = CLIPImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")
    texts = tokenizer([f"a photo of a {name}." for name in COLOURS], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(input_ids=texts.input_ids, **inputs).logits_per_image
    features = clean_features(coloured_images(30, seed=3), clip, folder / "cache")
    weights = class_weights(clip, COLOURS, FewShotSettings().templates)
    ours = zero_shot_logits(features, weights, clip.scale)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    assert bool((ours.argmax(1) == labels).float().mean() > 0.9)  # colours were learned


def test_of_several_templates_the_mean_of_unit_embeddings_counts(clip: Clip) -> None:
    both = ("a photo of a {class}.", "{class}")
    parts = [clip.text_features(padded(clip, [token_ids(clip, t.replace("{class}", "blue"))])) for t in both]
    mean = sum(part[0] / part[0].norm() for part in parts) / 2
    weights = class_weights(clip, COLOURS, both)
    torch.testing.assert_close(weights[2], mean / mean.norm(), rtol=1e-5, atol=1e-6)


def encoded_by_hand(model: Any, embedded: Tensor, end: Tensor) -> Tensor:
    """The text encoder of CLIP (arXiv 2103.00020, section 2.4) in plain torch: embeddings (B, L, W) => (B, D)."""
    text, length = model.text_model, embedded.shape[1]
    x = embedded + text.embeddings.position_embedding.weight[:length]
    causal = torch.full((length, length), -math.inf, dtype=x.dtype).triu(1)
    for layer in text.encoder.layers:
        attention, h = layer.self_attn, layer.layer_norm1(x)
        q, k, v = (
            project(h).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        shares = (q @ k.mT / math.sqrt(q.shape[-1]) + causal).softmax(-1)
        x = x + attention.out_proj((shares @ v).transpose(1, 2).flatten(2))
        h = layer.mlp.fc1(layer.layer_norm2(x))
        x = x + layer.mlp.fc2(h * torch.sigmoid(1.702 * h))
    return model.text_projection(text.final_layer_norm(x)[torch.arange(len(x)), end])


def test_coop_is_its_formula(clip: Clip) -> None:
    """[start] v_1 ... v_M [class] . [end]; softmax over classes of scale cos(f, g(prompt))."""
    exact = replace(clip, model=copy.deepcopy(clip.model).double())
    context, features = normal(5, exact.text_width, seed=1).double(), normal(7, exact.width, seed=2).double()
    names = ("red", "dark_blue thing")  # of different lengths
    ids = prompts_with_context(exact, names, 5)
    embed = exact.model.text_model.embeddings.token_embedding
    for row, name in enumerate(names):
        tail = torch.tensor([*token_ids(exact, name.replace("_", " ") + "."), exact.end_token])
        prompt = torch.cat([embed(torch.tensor([exact.start_token])), context, embed(tail)])
        g = encoded_by_hand(exact.model, prompt[None], torch.tensor([len(prompt) - 1]))[0]
        expected = [exact.scale * float(f @ g / f.norm() / g.norm()) for f in features]
        ours = coop_logits(exact, features, ids, context)[:, row]
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)


def test_gradients_of_coop_reach_the_context_alone(clip: Clip) -> None:
    context = normal(3, clip.text_width).requires_grad_()
    coop_weights(clip, prompts_with_context(clip, COLOURS, 3), context)[0, 0].backward()
    assert context.grad is not None and float(context.grad.abs().amax(1).min()) > 0
    assert all(parameter.grad is None for parameter in clip.model.parameters())
    assert not clip.model.text_model.embeddings.token_embedding._forward_hooks  # nothing is left behind


def test_rates_of_coop_are_a_warm_up_and_a_cosine() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.002)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    rates = [1e-5]
    for _ in range(49):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [rate_at(epoch, 50, 0.002) for epoch in range(50)] == pytest.approx(rates, rel=1e-9)
    assert [epochs_of(shots, FewShotSettings()) for shots in (1, 2, 4, 8, 16)] == [50, 100, 100, 200, 200]


def test_tip_adapter_is_its_formula() -> None:
    features, weights = normal(5, 8).double(), F.normalize(normal(3, 8, seed=1).double(), dim=1)
    cache = Cache(F.normalize(normal(6, 8, seed=2).double(), dim=1), normal(6, 3, seed=3).double().softmax(1))
    ours = tip_logits(features, weights, cache, alpha=1.7, beta=2.5, scale=100.0)
    for b, c in itertools.product(range(5), range(3)):
        f = features[b] / features[b].norm()
        cached = sum(
            math.exp(-2.5 * (1 - float(f @ key))) * float(value[c])
            for key, value in zip(cache.keys, cache.values, strict=True)
        )
        assert float(ours[b, c]) == pytest.approx(100 * float(f @ weights[c]) + 1.7 * cached, abs=1e-5)


def test_keys_are_the_mean_of_the_views_then_of_length_one() -> None:
    some, others = examples(3, 0), examples(2, 5)
    cache = build_cache([some, others])
    mean = some.views[:, 1].mean(0)
    torch.testing.assert_close(cache.keys[1], mean / mean.norm())
    assert cache.keys.shape == (5, 8) and torch.equal(cache.values, torch.cat([some.targets, others.targets]))


def test_alpha_and_beta_are_the_best_on_folds_of_the_shots() -> None:
    real, weights = examples(12, 0), F.normalize(normal(3, 8, seed=9), dim=1)
    synthetic = examples(12, 3)  # image k was made from shot k
    settings = FewShotSettings(alphas=4, betas=3, folds=2)
    seen = []

    def make(some: Encoded, others: Encoded | None) -> Cache:
        assert others is not None
        seen.append((frozenset().union(*some.made_from), frozenset().union(*others.made_from)))
        return build_cache([some, others])

    found = choose(real, synthetic, weights, 10.0, settings, make)
    parts = folds(real.labels, 2)
    assert sorted(row for part in parts for row in part) == list(range(12))
    for part, (shots, sources) in zip(parts, seen, strict=True):
        held = {f"image {row}" for row in part}
        assert shots.isdisjoint(held) and sources.isdisjoint(held) and len(shots) == 6
    scores = {}
    for i, j in itertools.product(range(3), range(4)):
        beta, alpha = 0.1 + i * 6.9 / 3, 0.1 + j * 2.9 / 4
        right = loss = 0.0
        for part in parts:
            left = real.rows([row for row in range(12) if row not in part])
            kept = without(synthetic, frozenset(f"image {row}" for row in part))
            logits = tip_logits(
                real.clean[part], weights, build_cache([left, kept]), alpha=alpha, beta=beta, scale=10.0
            )
            right += float((logits.argmax(1) == real.labels[part]).sum())
            loss += float(F.cross_entropy(logits, real.labels[part], reduction="sum"))
        scores[alpha, beta] = (right, -loss)
    alpha, beta = max(scores, key=lambda key: scores[key])
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=1e-6)
    assert found.accuracy == pytest.approx(scores[alpha, beta][0] / 12)


def test_folds_of_the_shots_part_neither_equal_images_nor_groups() -> None:
    labels = torch.arange(24) % 3
    plain = folds(labels, 4)
    assert folds(labels, 4, range(24)) == plain, "where each stands alone nothing changes"
    pairs = [row % 3 + row // 6 * 3 for row in range(24)]  # row 0 is row 3 again, and so on: 4 images of each class
    found = folds(labels, 4, pairs)
    assert sorted(row for part in found for row in part) == list(range(24))
    assert all(len({pairs[row] for row in part}) == 3 for part in found) and len(found) == 4
    assert all(labels[part].bincount().tolist() == [2, 2, 2] for part in found)
    assert all(len({pairs[row] for row in part}) == 6 for part in plain), "without it both are apart"
    # Two images of class 0, one of them ten times: two parts. All of class 0 in one group: none.
    assert len(folds(labels, 4, [0 if label == 0 else row for row, label in enumerate(labels.tolist())])) == 0
    one = [0 if label == 0 and row else row + 1 for row, label in enumerate(labels.tolist())]
    assert len(folds(labels, 4, one)) == 2


def test_shots_that_are_alike_are_equal_or_of_one_group() -> None:
    images = coloured_images(6, seed=3)
    hashes = (*images.hashes[:5], images.hashes[0])
    assert alike(replace(images, hashes=hashes), near=False) == [0, 1, 2, 3, 4, 0]
    grouped = replace(images, hashes=hashes, groups=("a", "b", "c", "b", "e", "f"))
    assert alike(grouped, near=False) == [0, 1, 2, 1, 4, 0]


def test_who_watches_keys_being_trained_sees_every_step_and_changes_nothing() -> None:
    real, weights = examples(12, 0), F.normalize(normal(3, 8, seed=9), dim=1)
    settings, seen = FewShotSettings(tip_epochs=3, tip_batch_size=8), list[Cache]()
    cache = build_cache([real])
    last = fine_tune(cache, real, None, weights, 10.0, settings, 0, seen.append)
    assert len(seen) == 3 * 2 and torch.equal(seen[-1].keys, last.keys)
    assert not torch.equal(seen[0].keys, seen[1].keys) and not torch.equal(seen[0].keys, cache.keys)
    assert torch.equal(fine_tune(cache, real, None, weights, 10.0, settings, 0).keys, last.keys)


def test_with_one_shot_of_a_class_nothing_is_chosen() -> None:
    one = examples(4, 0)  # two of the first class, one of the others
    found = choose(one, None, normal(3, 8), 1.0, FewShotSettings(), lambda *_: pytest.fail("no fold can be made"))
    assert (found.alpha, found.beta, found.accuracy) == (1.17, 1.0, None)


def test_tuning_begins_as_zero_shot_classification(clip: Clip) -> None:
    real, weights = examples(6, 0), F.normalize(normal(3, 8, seed=1), dim=1)
    head = tune(real, None, weights, 20.0, FewShotSettings(tuning_steps=1, tuning_learning_rate=1e-12), 0)
    torch.testing.assert_close(head.weight, 20 * weights)
    assert not head.bias.abs().max() > 1e-9
    assert steps_of(10, FewShotSettings()) == 30 * 16  # 30 epochs of 8,000 images in batches of 512
    assert steps_of(10, FewShotSettings(tuning_steps=7)) == 7


def test_the_loss_of_synthetic_images_mixes_labels_with_softened_answers() -> None:
    settings = FewShotSettings(soft_weight=0.25, soft_temperature=2.0)
    logits, targets, teacher = normal(4, 3), F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float(), normal(4, 3, seed=1)
    answers = (teacher / 2).exp() / (teacher / 2).exp().sum(1, keepdim=True)
    per_image = -(0.75 * targets + 0.25 * answers) * logits.log_softmax(1)
    torch.testing.assert_close(soft_loss(logits, targets, teacher, settings), per_image.sum(1).mean())


def test_real_batches_are_the_same_with_and_without_synthetic_images(clip: Clip) -> None:
    real = examples(10, 0)
    drawn = [Batches(real, 4, "coop", "real", 0) for _ in range(2)]
    other = Batches(real, 4, "coop", "real", 1)
    for _ in range(5):
        (one, goal), (two, same) = (batches.draw() for batches in drawn)
        assert torch.equal(one, two) and torch.equal(goal, same)
    assert not torch.equal(other.draw()[0], drawn[0].draw()[0])
    everything = torch.cat([Batches(real, 99, "x").draw(augmented=False)[0]])
    assert torch.equal(everything.sort(0).values, real.clean.sort(0).values)


def test_views_are_crops_of_the_stated_area_and_depend_on_their_stream_alone() -> None:
    stream = generator_for("test")
    boxes = [crop_box(64, 0.5, stream) for _ in range(300)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 64 - height and 0 <= left <= 64 - width
        assert 0.48 <= height * width / 64**2 <= 1.0 and 0.7 <= width / height <= 1.4
    assert len({box[0] for box in boxes}) > 10 and len({box[1] for box in boxes}) > 10
    assert crop_box(64, 1.0, stream)[2:] == (64, 64)
    image = coloured(1, seed=0)[0][0]
    views = [random_view(image, SIDE, 1.0, generator_for("view", k)) for k in range(40)]
    mirrored = [torch.equal(view, image.flip(-1)) for view in views]
    assert all(torch.equal(v, image) or m for v, m in zip(views, mirrored, strict=True)) and 8 < sum(mirrored) < 32
    assert torch.equal(*(random_view(image, 24, 0.5, generator_for("view", 1)) for _ in range(2)))


@pytest.fixture(scope="module")
def hard(clip: Clip, folder: Path) -> dict[str, Any]:
    """8 shots of colours whose names are words in that order in which zero-shot is worst: at most chance."""
    templates = FewShotSettings().templates
    test = clean_features(coloured_images(300, 6), clip, folder / "cache")
    labels = coloured(300, 6)[1]

    def right(names: tuple[str, ...]) -> float:
        logits = zero_shot_logits(test, class_weights(clip, names, templates), clip.scale)
        return float((logits.argmax(1) == labels).float().mean())

    names = min(itertools.permutations(WORDS), key=right)
    settings = FewShotSettings(
        views=2, coop_tokens=4, coop_learning_rate=0.05, tuning_steps=300, tuning_learning_rate=0.02,
        largest_alpha=30.0,
    )  # fmt: skip

    def encoded(count: int, seed: int) -> Encoded:
        images = coloured_images(count, seed)
        targets = F.one_hot(images.labels, 3).float()
        return encode(
            images, targets, [frozenset({h}) for h in images.hashes], clip, settings, folder / "cache", views=True
        )

    return {"names": names, "zero-shot": right(names), "settings": settings, "test": test, "labels": labels,
            "real": encoded(24, 5), "synthetic": encoded(60, 8)}  # fmt: skip


def accuracy(method: Any, clip: Clip, names: tuple[str, ...], hard: dict[str, Any], synthetic: Encoded | None) -> float:
    weights = class_weights(clip, names, hard["settings"].templates)
    found = learn(method, clip, names, weights, hard["real"], synthetic, shots=8, settings=hard["settings"], seed=0)
    with torch.no_grad():
        return float((found.logits(hard["test"]).argmax(1) == hard["labels"]).float().mean())


@pytest.mark.parametrize("method", METHODS[2:])
@pytest.mark.parametrize("added", [False, True])
def test_learners_beat_chance_and_zero_shot(method: Any, added: bool, clip: Clip, hard: dict[str, Any]) -> None:
    found = accuracy(method, clip, hard["names"], hard, hard["synthetic"] if added else None)
    assert hard["zero-shot"] <= 1 / 3 < 0.6 < found


@pytest.mark.parametrize("added", [False, True])
def test_coop_finds_the_words_under_which_the_names_are_right(added: bool, clip: Clip, hard: dict[str, Any]) -> None:
    """After "a photo of a" every name means another colour than it has here."""
    assert accuracy("zero-shot", clip, SHIFTED, hard, None) < 0.1
    assert accuracy("coop", clip, SHIFTED, hard, hard["synthetic"] if added else None) > 0.6


def test_the_seed_decides_and_synthetic_images_make_a_difference(clip: Clip, hard: dict[str, Any]) -> None:
    settings = FewShotSettings(views=2, coop_tokens=2, coop_epochs=2)

    def context(synthetic: Encoded | None, seed: int) -> Tensor:
        return learn_context(
            clip, hard["names"], hard["real"], synthetic, shots=8, settings=settings, seed=seed
        )[1]  # fmt: skip

    assert torch.equal(context(None, 0), context(None, 0))
    assert not torch.equal(context(None, 0), context(None, 1))
    assert not torch.equal(context(None, 0), context(hard["synthetic"], 0))
