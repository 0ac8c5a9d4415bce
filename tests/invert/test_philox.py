"""Random numbers from counters: the published answers, the distributions, and what a number depends on."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion_inversion.invert.philox import integers, normals, philox, round_keys
from diffusion_inversion.randomness import generator_for, words_for


# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, answer.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_published_answers(counter: str, key: str, answer: str) -> None:
    words, keys = ([torch.tensor([int(word, 16)]) for word in text.split()] for text in (counter, key))
    assert " ".join(f"{int(word):08x}" for word in philox(words, round_keys(torch.stack(keys)))) == answer


def test_keys_and_counters_are_broadcast() -> None:
    identities = words_for([(0, "a"), (0, "b"), (1, "a")])[..., None]
    blocks, step = torch.arange(5), torch.tensor(7)
    together = philox((blocks, step, identities[2], identities[3]), round_keys(identities[:2]))
    assert all(word.shape == (3, 5) for word in together)
    for row in range(3):
        for block in range(5):
            key = round_keys(identities[:2, row])
            alone = philox((torch.tensor([block]), step[None], identities[2, row], identities[3, row]), key)
            assert [int(word) for word in alone] == [int(word[row, block]) for word in together]


def many(count: int = 2**16, key: int = 3) -> tuple[torch.Tensor, ...]:
    zero = torch.zeros(1, dtype=torch.int64)
    return philox((torch.arange(count), zero, zero, zero), round_keys(torch.tensor([[key], [0]])))


def test_words_are_32_uniform_bits() -> None:
    """2^16 words: each bit is set in half of them, with a standard deviation of 1/512; within five."""
    for word in many():
        assert int(word.min()) >= 0 and int(word.max()) < 2**32
        bits = torch.stack([(word >> place) & 1 for place in range(32)]).double().mean(1)
        assert float((bits - 0.5).abs().max()) < 5 / 512


def test_normal_numbers_have_the_moments_and_are_independent() -> None:
    """Mean, covariance, skewness, kurtosis of 4 x 65,536 numbers, and the share beyond two standard deviations."""
    numbers = normals([word[:, None] for word in many()]).double()  # (count, 4)
    count = len(numbers)
    assert float(numbers.mean(0).abs().max()) < 5 / math.sqrt(count)
    torch.testing.assert_close(numbers.T.cov(), torch.eye(4, dtype=torch.float64), atol=0.03, rtol=0)
    assert float(numbers.pow(3).mean().abs()) < 0.05 and float(numbers.pow(4).mean()) == pytest.approx(3, abs=0.1)
    assert float((numbers.abs() > 2).double().mean()) == pytest.approx(math.erfc(math.sqrt(2)), rel=0.05)
    squares = (numbers**2).T.cov()  # a pair shares its radius: independent all the same
    assert float((squares - squares.diag().diag()).abs().max()) < 0.06
    lagged = (numbers[1:] * numbers[:-1]).mean(0)
    assert float(lagged.abs().max()) < 5 / math.sqrt(count)


def test_normal_numbers_are_box_and_mullers() -> None:
    """Radius sqrt(-2 ln u) and angle 2 pi v, for u = 1/2, 1/8 and v in eighths: a number too many turns on shows."""
    eighths = torch.arange(8)
    halves, eights = torch.full((8,), 2**31), torch.full((8,), 2**29)
    found = normals((halves, eighths << 29, eights, eighths << 29)).double().view(4, 8)
    angle = eighths.double() * math.pi / 4
    wanted = [math.sqrt(2 * math.log(1 / u)) * turn for u in (1 / 2, 1 / 8) for turn in (angle.cos(), angle.sin())]
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-6, rtol=0)


def test_the_ends_of_the_uniform_numbers_are_finite() -> None:
    ends = torch.tensor([0, 2**32 - 1])
    found = normals((ends, ends, ends.flip(0), ends))
    assert bool(found.isfinite().all()) and float(found.abs().max()) == pytest.approx(6.76, abs=0.01)


def test_integers_are_uniform_and_below_the_bound() -> None:
    found = integers(many()[0], 1000)
    assert int(found.min()) == 0 and int(found.max()) == 999
    tenths = (found // 100).bincount(minlength=10)
    assert float((tenths / len(found) - 0.1).abs().max()) < 0.006
    assert integers(torch.tensor([0, 2**32 - 1]), 3).tolist() == [0, 2]


def test_identities_give_words_of_their_own_and_streams_keep_theirs() -> None:
    words = words_for([(0, "invert", "x"), (1, "invert", "x"), (0, "invert", "y")])
    assert words.shape == (4, 3) and len({tuple(column) for column in words.T.tolist()}) == 3
    assert int(words.min()) >= 0 and int(words.max()) < 2**32
    assert words_for([]).shape == (4, 0)
    # The seed of a stream is the first two of its words, halved: as it was before there were words.
    seed = (int(words[0, 0]) << 32 | int(words[1, 0])) >> 1
    assert generator_for(0, "invert", "x").initial_seed() == seed
