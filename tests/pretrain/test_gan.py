"""The GAN's parts against closed forms: augmentation, losses, spectral norm, averages; killed training goes on."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy import toy_images

from diffusion_inversion.config.commands import GanSettings
from diffusion_inversion.data.images import to_model_range
from diffusion_inversion.engine import signals
from diffusion_inversion.errors import ConfigMismatchError, DataError, UsageError
from diffusion_inversion.pretrain.gan import training
from diffusion_inversion.pretrain.gan.diffaugment import Draws, augment, color, cutout, draw, translation
from diffusion_inversion.pretrain.gan.networks import SIDES, GanGenerator, ProjectionDiscriminator
from diffusion_inversion.pretrain.gan.training import (
    COLUMNS,
    Players,
    discriminator_hinge,
    generator_hinge,
    train_gan,
)
from diffusion_inversion.pretrain.gan.weights import WEIGHTS, load_gan
from diffusion_inversion.pretrain.log import read_log
from diffusion_inversion.randomness import generator_for

CPU = torch.device("cpu")
SETTINGS = GanSettings(steps=4, width=2, latent_dim=4, batch_size=4, discriminator_steps=2)
ALL = SETTINGS.augmentations


def stream(name: str = "test") -> torch.Generator:
    return generator_for(name)


def test_colours_are_those_of_the_formula() -> None:
    images, draws = 2 * torch.rand(5, 3, 8, 8, generator=stream()) - 1, draw(5, 8, stream("draws"))
    for row, image in enumerate(images):
        expected = image + float(draws.brightness[row]) - 0.5
        grey = (expected[0] + expected[1] + expected[2]) / 3
        expected = 2 * float(draws.saturation[row]) * (expected - grey) + grey
        mean = expected.sum() / (3 * 8 * 8)
        expected = (float(draws.contrast[row]) + 0.5) * (expected - mean) + mean
        torch.testing.assert_close(color(images, draws)[row], expected)


def test_translation_moves_down_and_to_the_right_and_fills_with_0() -> None:
    images, draws = torch.rand(200, 3, 16, 16, generator=stream()) + 1, draw(200, 16, stream("draws"))
    assert {*draws.shift.flatten().tolist()} == {-2, -1, 0, 1, 2}  # an eighth of the side, both ways
    expected = torch.zeros_like(images)
    for row, (down, right) in enumerate(draws.shift.tolist()):
        for y in range(16):
            for x in range(16):
                if 0 <= y - down < 16 and 0 <= x - right < 16:
                    expected[row, :, y, x] = images[row, :, y - down, x - right]
    assert torch.equal(translation(images, draws), expected)


def test_cutout_takes_a_square_of_half_the_side() -> None:
    images, draws = torch.ones(300, 3, 16, 16), draw(300, 16, stream("draws"))
    assert {*draws.hole.flatten().tolist()} == set(range(17))  # a centre may lie on either edge
    found = cutout(images, draws)
    for row, (y, x) in enumerate(draws.hole.tolist()):
        expected = torch.ones(3, 16, 16)
        expected[:, max(y - 4, 0) : max(y + 4, 0), max(x - 4, 0) : max(x + 4, 0)] = 0
        assert torch.equal(found[row], expected)


def test_a_seed_does_the_same_to_real_and_generated_images() -> None:
    """The whole is affine in each image, by the draws alone: what it does to a sum it does to the parts."""
    real, generated = (2 * torch.rand(6, 3, 16, 16, generator=stream(name)) - 1 for name in ("real", "generated"))
    draws, again = draw(6, 16, stream("draws")), draw(6, 16, stream("draws"))
    for name in Draws.__dataclass_fields__:
        assert torch.equal(getattr(draws, name), getattr(again, name))
    between = augment((real + generated) / 2, draws, ALL)
    torch.testing.assert_close(between, (augment(real, draws, ALL) + augment(generated, again, ALL)) / 2)
    assert torch.equal(augment(real, draws, ()), real)


def test_gradients_pass_through_the_augmentation() -> None:
    images = torch.rand(2, 3, 8, 8, generator=stream(), dtype=torch.float64, requires_grad=True)
    draws = draw(2, 8, stream("draws"))
    for policy in ALL:
        assert torch.autograd.gradcheck(lambda x, p=policy: augment(x, draws, (p,)), images)  # type: ignore[misc]
    shown = augment(images, draws, ("translation", "cutout"))
    (gradient,) = torch.autograd.grad(shown.sum(), images)
    assert gradient.sum() == (shown != 0).sum() > 0  # 1 for each pixel that is still seen


def test_hinge_losses_are_those_of_the_formula() -> None:
    real, generated = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.5])
    assert float(discriminator_hinge(real, generated)) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1.5) / 2)
    assert float(generator_hinge(generated)) == pytest.approx(1.25)


@pytest.mark.parametrize("size", SIDES)
def test_networks_have_the_sides_and_classes_that_they_are_asked_for(size: int) -> None:
    generator, judge = GanGenerator(3, size, 2, 5), ProjectionDiscriminator(3, size, 2)
    latents, labels = torch.randn(4, 5, generator=stream()), torch.tensor([0, 1, 2, 0])
    images = generator(latents, labels)
    assert images.shape == (4, 3, size, size) and bool((images.abs() < 1).all())
    assert judge(images, labels).shape == (4,)
    with torch.no_grad():  # an image's class enters by its own gain, bias and embedding alone
        for part in generator.modules():
            if isinstance(part, nn.Embedding):
                part.weight[2] += 1
    again = generator.eval()(latents, labels)
    generator_2 = generator(latents, torch.tensor([0, 1, 1, 0]))
    assert torch.equal(again[[0, 1, 3]], generator_2[[0, 1, 3]]) and not torch.equal(again[2], generator_2[2])


def test_spectral_norm_bounds_every_weight_of_the_discriminator() -> None:
    torch.manual_seed(0)
    judge = ProjectionDiscriminator(4, 32, 4)
    with torch.no_grad():
        for name, parameter in judge.named_parameters():
            if "original" in name:
                parameter.copy_(3 * torch.randn(parameter.shape))
        for _ in range(100):
            judge(torch.randn(4, 3, 32, 32), torch.arange(4))
    weights = [m.weight.detach() for m in judge.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.Embedding))]
    assert len(weights) == 12
    for weight in weights:
        assert float(torch.linalg.matrix_norm(weight.flatten(1), 2)) == pytest.approx(1, abs=0.02)


def test_both_losses_are_of_augmented_images() -> None:
    images = toy_images(8, 32)
    for name in COLUMNS:
        players, draws_of = Players(images, SETTINGS, CPU), stream("fixed")
        players.discriminator.eval()  # its norms are held where they are
        rows = torch.randint(8, (4,), generator=draws_of)
        latents = torch.randn(4, 4, generator=draws_of)
        draws, labels, real = draw(4, 32, draws_of), images.labels[rows], to_model_range(images.images[rows])
        with torch.no_grad():
            judged = [
                players.discriminator(augment(one, draws, ALL), labels)
                for one in (real, players.generator(latents, labels))
            ]
        expected = discriminator_hinge(*judged) if name == "discriminator" else generator_hinge(judged[1])
        found = getattr(players, f"{name}_step")(stream("fixed"))
        assert float(found) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


def test_a_step_of_each_player_is_to_its_own_gain() -> None:
    players = Players(toy_images(8, 32), SETTINGS.model_copy(update={"learning_rate": 5e-3}), CPU)
    latents, labels = torch.randn(4, 4, generator=stream()), torch.arange(4) % 2

    def weights(name: str) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in players.modules[name].parameters()]

    def score() -> float:
        with torch.no_grad():
            return float(players.discriminator(players.generator(latents, labels), labels).mean())

    before = weights("generator")
    losses = [float(players.discriminator_step(stream("fixed"))) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.05, losses
    assert all(map(torch.equal, before, weights("generator")))
    players.discriminator.eval()  # its norms are held where they are
    before, first = weights("discriminator"), score()
    losses = [float(players.generator_step(stream("fixed"))) for _ in range(12)]
    assert losses[-1] < losses[0] and score() > first
    assert all(map(torch.equal, before, weights("discriminator")))
    assert all(parameter.requires_grad for parameter in players.discriminator.parameters())


def test_the_result_is_the_average_with_statistics_of_its_own() -> None:
    players = Players(toy_images(8, 32), SETTINGS, CPU)
    begun = {name: value.clone() for name, value in players.generator.named_parameters()}
    players.step(0)
    for name, average in players.ema.named_parameters():
        torch.testing.assert_close(average, 0.1 * begun[name] + 0.9 * players.generator.get_parameter(name))
    players.settings = SETTINGS.model_copy(update={"batch_size": 500})
    generator = players.result()
    first = generator.get_submodule("blocks.0.norm_1.norm")
    # z ~ N(0, I) through one linear layer: of channel c the mean is b's, the variance |w|^2, both over its 16 pixels.
    bias, rows = generator.first.bias.unflatten(0, (-1, 16)), generator.first.weight.unflatten(0, (-1, 16))
    variance = rows.square().sum(2).mean(1) + bias.var(1, unbiased=False)
    torch.testing.assert_close(first.running_var, variance, rtol=0.05, atol=0.0)
    torch.testing.assert_close(first.running_mean, bias.mean(1), rtol=0.0, atol=0.01)


def test_it_learns_what_colour_each_class_has(tmp_path: Path) -> None:
    """Red and blue images of many shades: in 60 steps generated ones have the mean colour of their class."""
    labels = torch.arange(32) % 2
    colours = torch.tensor([[200.0, 60.0, 60.0], [60.0, 60.0, 200.0]])
    shades = 20 * torch.randn(32, 3, 1, 1, generator=stream()) + 10 * torch.randn(32, 3, 32, 32, generator=stream())
    pixels = (colours[labels][:, :, None, None] + shades).clamp(0, 255).round().to(torch.uint8)
    images = replace(toy_images(32, 32), images=pixels, labels=labels)
    settings = GanSettings(
        steps=60, width=4, latent_dim=4, batch_size=8, discriminator_steps=1, learning_rate=2e-3,
        augmentations=("translation", "cutout"),
    )  # fmt: skip
    gan = train_gan(images, tmp_path, settings, CPU)
    for label, colour in enumerate(colours):
        drawn = gan.images(torch.randn(100, 4, generator=stream()), torch.full((100,), label))
        found = (drawn.mean((0, 2, 3)) + 1) * 127.5
        assert float((found - colour).abs().max()) < 40, found  # of 255; a grey image is 73 or more away


class Killed(BaseException):
    pass


def test_killed_training_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, whole, cut = toy_images(8, 32), tmp_path / "whole", tmp_path / "cut"
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(training, "STATISTICS_BATCHES", 2)
    gan = train_gan(images, whole, SETTINGS, CPU)
    assert gan.class_names == images.class_names and gan.trained_on == {*images.hashes} and gan.size == 32
    step = Players.step

    def killed_in_step(players: Players, number: int) -> Tensor:
        found = step(players, number)
        if number == 2:
            raise Killed
        return found

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Players, "step", killed_in_step)
        train_gan(images, cut, SETTINGS, CPU)
    torch.rand(3)  # whatever else draws in between
    with monkeypatch.context() as patch, pytest.raises(Killed):  # after the last step, before the weights are written
        patch.setattr(training, "save_gan", lambda *_: (_ for _ in ()).throw(Killed()))
        train_gan(images, cut, SETTINGS, CPU)
    assert not (cut / WEIGHTS).exists()
    assert train_gan(images, cut, SETTINGS, CPU).hash == gan.hash
    a, b = (load_file(folder / training.STATE) for folder in (whole, cut))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert [record["step"] for record in read_log(cut / training.LOG)] == ["4"]
    assert train_gan(images, cut, SETTINGS, CPU).hash == gan.hash  # nothing is left to do
    with pytest.raises(ConfigMismatchError, match=r"settings\.steps: was 4, now 5"):
        train_gan(images, cut, SETTINGS.model_copy(update={"steps": 5}), CPU)
    with pytest.raises(UsageError, match=r"images of 48 px; the GAN has 32 or 64.*--size 32"):
        train_gan(toy_images(4, 48), tmp_path / "other", SETTINGS, CPU)


@pytest.mark.parametrize("within", [False, True])
def test_a_signal_costs_no_whole_step_and_no_bit(within: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first signal comes when a step is done, a second one anywhere: what half a step did is not kept."""
    images = toy_images(8, 32)
    monkeypatch.setattr(training, "STATISTICS_BATCHES", 1)
    whole = train_gan(images, tmp_path / "whole", SETTINGS, CPU)
    step, judge = Players.step, Players.discriminator_step
    calls = 0

    def interrupted(players: Players, draws: torch.Generator) -> Tensor:
        nonlocal calls
        calls += 1
        found = judge(players, draws)
        if calls == 6:  # the last of the third step's two
            if within:
                raise KeyboardInterrupt
            monkeypatch.setattr(signals, "_requested_at", time.monotonic())
        return found

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Players, "discriminator_step", interrupted)
        train_gan(images, tmp_path / "cut", SETTINGS, CPU)
    monkeypatch.setattr(signals, "_requested_at", None)
    done: list[int] = []
    monkeypatch.setattr(Players, "step", lambda players, number: (done.append(number), step(players, number))[1])
    assert train_gan(images, tmp_path / "cut", SETTINGS, CPU).hash == whole.hash
    assert done == ([0, 1, 2, 3] if within else [3])


def test_weights_of_another_layout_get_one_line(tmp_path: Path) -> None:
    training.save_gan(GanGenerator(2, 32, 2, 4), toy_images(4, 32), tmp_path / "good.safetensors")
    assert load_gan(tmp_path / "good.safetensors", CPU).latent_dim == 4
    biggan = {"shared.weight": torch.zeros(10, 128), "blocks.0.0.conv1.weight": torch.zeros(4, 4, 3, 3)}
    save_file(biggan, tmp_path / "biggan.safetensors")
    tensors = load_file(tmp_path / "good.safetensors")
    from diffusion_inversion.engine.untrusted import read_header

    metadata = read_header(tmp_path / "good.safetensors", max_bytes=2**20)[1]
    wider = {key: value.replace('"width": 2', '"width": 3') for key, value in metadata.items()}
    save_file(tensors, tmp_path / "wider.safetensors", metadata=wider)
    side = {key: value.replace('"size": 32', '"size": 48') for key, value in metadata.items()}
    save_file(tensors, tmp_path / "side.safetensors", metadata=side)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-1])
    for name, message in (
        ("biggan", r"not the layout of `dinv gan train`.*BigGAN go into a folder of their own with biggan\.json"),
        ("wider", "is float32 .*, expected float32"),
        ("side", "a side of 48 px"),
        ("cut", "its tensors overlap, leave gaps or do not end"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            load_gan(tmp_path / f"{name}.safetensors", CPU)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"no such file\. Make it with"):
        load_gan(tmp_path, CPU)
