"""Standard errors against the spread of fresh draws; intervals that hold the truth."""

from __future__ import annotations

import pytest
import torch
from made_up import normal
from scipy import stats
from torch import Tensor

from diffusion_inversion.errors import DataError
from diffusion_inversion.measure.metrics import intervals
from diffusion_inversion.measure.metrics.frechet import fid, fid_infinity
from diffusion_inversion.measure.metrics.intervals import (
    estimate,
    fid_error,
    manifold_errors,
    student,
    wide_intervals,
)
from diffusion_inversion.measure.metrics.kernel import cubic_kernel, discrepancy, kid
from diffusion_inversion.measure.metrics.manifold import left_out_values, manifold_values
from diffusion_inversion.measure.metrics.units import (
    Units,
    by_content,
    deal,
    jackknife,
    named_units,
    single_units,
)

N, M, DIM = 100, 80, 6


def draw(seed: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    real = torch.randn(N, DIM, generator=stream, dtype=torch.float64)
    return real, 0.8 * torch.randn(M, DIM, generator=stream, dtype=torch.float64) + 0.4


DRAWS = [draw(seed) for seed in range(150)]


def kid_error(real: Tensor, generated: Tensor, units: Units | None = None) -> float:
    sets = jackknife(units or single_units(len(real), len(generated)), seed=0)
    return sets.error(discrepancy(cubic_kernel, real, generated, sets.real, sets.generated).parts)


def ratio(errors: list[float], values: list[float]) -> float:
    """Mean error over true spread."""
    return float(torch.tensor(errors).mean() / torch.tensor(values).std())


def test_the_errors_of_fid_and_kid_are_their_spread() -> None:
    assert 0.8 < ratio([fid_error(*d, 0) or 0 for d in DRAWS[:15]], [fid(*d) for d in DRAWS]) < 1.3
    assert 0.8 < ratio([kid_error(*d) for d in DRAWS[:30]], [kid(*d) for d in DRAWS]) < 1.3


def test_the_errors_of_the_ball_metrics_are_their_spread() -> None:
    values = [manifold_values(*d, k=5) for d in DRAWS]
    errors = [manifold_errors(*d, k=5, seed=0) for d in DRAWS[:15]]
    for name in ("precision", "recall", "density", "coverage"):
        found = ratio([e[name] or 0 for e in errors], [float(getattr(v, name).mean()) for v in values])
        assert 0.7 < found < 1.7, name


def test_a_kid_interval_holds_the_truth_as_often_as_it_says() -> None:
    """The truth: the mean of an unbiased estimate over many draws."""
    values = [kid(*d) for d in DRAWS]
    truth = sum(values) / len(values)
    found = [estimate(v, kid_error(*d), 0.9) for v, d in zip(values, DRAWS, strict=True)]
    held = sum((e.low or 0) < truth < (e.high or 0) for e in found) / len(found)
    assert 0.83 < held <= 0.99


def mean_difference(x: Tensor, y: Tensor, units: Units) -> float:
    """The jackknife's error of mean(x) - mean(y)."""
    sets = jackknife(units, seed=3)
    return sets.error((x @ sets.real) / sets.real.sum(dim=0) - (y @ sets.generated) / sets.generated.sum(dim=0))


def test_the_jackknife_of_a_mean_is_its_textbook_error() -> None:
    """Groups of one: exactly std / sqrt(n)."""
    x, y = normal(15), normal(15, seed=1)
    expected = (x.var() / 15 + y.var() / 15) ** 0.5
    assert mean_difference(x, y, single_units(15, 15)) == pytest.approx(float(expected), rel=1e-9)


def test_variants_of_one_source_count_as_one() -> None:
    """The error of the mean of 15 sources of 4 variants is that of 15 means."""
    x, y = normal(15), (normal(15, 1, seed=1) + 0.3 * normal(15, 4, seed=2)).flatten()
    units = Units(torch.arange(15) + 15, torch.arange(15).repeat_interleave(4))
    expected = (x.var() / 15 + y.view(15, 4).mean(dim=1).var() / 15) ** 0.5
    assert mean_difference(x, y, units) == pytest.approx(float(expected), rel=1e-9)


def test_a_source_and_its_variants_go_together() -> None:
    """The error of a paired difference: what both sides have in common is no error."""
    x = normal(15)
    y = (x[:, None] + 0.3 * normal(15, 4, seed=2)).flatten()
    units = named_units(list(range(15)), [row // 4 for row in range(60)])
    assert units.shared and jackknife(units, 0).real.shape == (15, 15)
    expected = (x - y.view(15, 4).mean(dim=1)).std() / 15**0.5
    assert mean_difference(x, y, units) == pytest.approx(float(expected), rel=1e-9)


def test_each_jackknife_set_leaves_one_group_of_one_side_out() -> None:
    sets = jackknife(single_units(50, 63), seed=0)
    assert sets.real.shape == (50, 40) and sets.series == 20
    left_out = (1 - sets.real).sum(dim=0), (1 - sets.generated).sum(dim=0)
    assert left_out[0][:20].sum() == 50
    assert left_out[0][20:].sum() == 0
    assert left_out[1][:20].sum() == 0
    assert left_out[1][20:].sum() == 63
    assert (1 - sets.real).sum(dim=1).tolist() == [1] * 50


def test_groups_are_dealt_evenly_and_by_unit() -> None:
    """Also where some real images are sources and others are not."""
    units = named_units([f"r{n}" for n in range(100)], [f"r{n // 5}" for n in range(200)])
    real, generated, groups = deal(units, seed=0)
    assert groups == 20
    assert real.bincount().tolist() == [5] * 20 and generated.bincount().tolist() == [10] * 20
    assert all(len(set(generated[5 * n : 5 * n + 5].tolist()) | {int(real[n])}) == 1 for n in range(20))
    for shared, alone in ((10, 10), (4, 6), (19, 1), (2, 1), (1, 2)):
        units = named_units(range(shared + alone), [*range(shared), *range(-alone, 0)])
        real, generated, groups = deal(units, seed=0)
        for side in (real, generated):
            filled = side.bincount(minlength=groups)
            assert filled.max() - filled.min() <= 1 and torch.equal(side[:shared], real[:shared])


def test_sides_that_share_some_of_few_units_have_errors() -> None:
    """As `--real-groups` and `--generated-groups` may say: two of three patients on both sides."""
    units = named_units([n for n in "abc" for _ in range(5)], [n for n in "abe" for _ in range(5)])
    x, y = normal(15, 4), normal(15, 4, seed=1)
    errors = manifold_errors(x, y, k=1, seed=0, units=units)
    assert all(error is not None and error > 0 for error in errors.values())


def test_an_interval_where_sides_share_some_units_holds_as_often_as_it_says() -> None:
    """Of a difference of means, whose truth is 0, with two units on both sides and one on either alone."""
    units = named_units("abc", "abe")
    held = 0
    for seed in range(400):
        x, y = normal(3, seed=seed), normal(3, seed=seed + 10_000)
        found = estimate(float(x.mean() - y.mean()), mean_difference(x, y, units), 0.95, freedom=units.groups - 1)
        held += found.low is not None and found.high is not None and found.low <= 0 <= found.high
    assert 0.92 < held / 400 < 0.98


def sourced(seed: int, sources: int = 40, variants: int = 5) -> tuple[Tensor, Tensor, Units]:
    """200 real images and variants of sources of the same kind."""
    generated = (
        0.8 * normal(sources, 1, DIM, seed=seed) + 0.4 + 0.4 * normal(sources, variants, DIM, seed=seed + 10_000)
    )
    units = Units(torch.arange(200) + sources, torch.arange(sources).repeat_interleave(variants))
    return normal(200, DIM, seed=seed + 20_000), generated.flatten(0, 1), units


def test_errors_by_source_are_the_spread_of_other_sources() -> None:
    """benchmarks/metric_errors.py has more of it."""
    drawn = [sourced(seed) for seed in range(120)]
    few = drawn[:12]
    fids, kids = ([metric(x, y) for x, y, _ in drawn] for metric in (fid, kid))
    assert ratio([fid_error(x, y, 0) or 0 for x, y, _ in few], fids) < 0.8, "as if each image stood alone"
    assert 0.8 < ratio([fid_error(x, y, 0, units) or 0 for x, y, units in few], fids) < 1.25
    assert ratio([kid_error(x, y) for x, y, _ in few], kids) < 0.8
    assert 0.8 < ratio([kid_error(x, y, units) for x, y, units in few], kids) < 1.25
    balls = [manifold_values(x, y, k=5) for x, y, _ in drawn]
    errors = [manifold_errors(x, y, k=5, seed=0, units=units) for x, y, units in few]
    for name in ("precision", "coverage"):
        found = ratio([error[name] or 0 for error in errors], [float(getattr(v, name).mean()) for v in balls])
        assert 0.7 < found < 1.35, name


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_left_out_is_as_if_it_had_never_been(shared: bool) -> None:
    real, generated = normal(60, DIM), 0.8 * normal(90, DIM, seed=1) + 0.3
    own = torch.arange(60) if shared else torch.arange(60) + 1000
    real_group, generated_group, groups = deal(Units(own, torch.arange(90) // 2), seed=0)
    for entries in (1 << 24, 500):
        found = left_out_values(real, generated, real_group, generated_group, groups, k=3, entries=entries)
        for out in (0, 7, groups - 1):
            fewer = manifold_values(real[real_group != out], generated, k=3)
            assert torch.equal(found.precision[:, out], fewer.precision)
            assert torch.allclose(found.density[:, out], fewer.density)
            fewer = manifold_values(real, generated[generated_group != out], k=3)
            assert torch.equal(found.recall[:, out], fewer.recall)
            assert torch.equal(found.coverage[:, out], fewer.coverage)
            left = real_group != out
            fewer = manifold_values(real[left], generated, k=3)
            assert torch.equal(found.coverage_real[left, out], fewer.coverage)
            fewer = manifold_values(real[left], generated[generated_group != out], k=3)
            assert torch.equal(found.coverage_both[left, out], fewer.coverage)
    with pytest.raises(DataError, match="without one group"):
        left_out_values(real, generated, real_group * 0, generated_group, groups, k=3)


def test_an_error_that_the_other_side_has_no_part_in_is_that_of_a_share() -> None:
    """Generated images near and far from real ones that are many: precision is a share of the sources."""
    real = 0.05 * normal(400, 2)
    far = (torch.arange(40) % 4 == 0).double()
    generated = (50 * far[:, None, None] + 0.001 * normal(40, 5, 2)).flatten(0, 1)
    units = Units(torch.arange(400) + 40, torch.arange(40).repeat_interleave(5))
    error = manifold_errors(real, generated, k=5, seed=0, units=units)["precision"]
    assert error == pytest.approx((0.25 * 0.75 / 39) ** 0.5, rel=1e-3)
    alone = manifold_errors(real, generated, k=5, seed=0)["precision"]
    assert alone == pytest.approx((0.25 * 0.75 / 199) ** 0.5, rel=1e-3)


def test_the_error_of_a_recall_that_grows_with_every_source() -> None:
    """Variants in small heaps: half of the sources reach half as far, and halves would see half of the error."""

    def heaps(seed: int) -> tuple[Tensor, Tensor, Units]:
        sources = 1.2 + 0.8 * normal(30, 1, DIM, seed=seed)
        generated = (sources + 0.4 * normal(30, 8, DIM, seed=seed + 10_000)).flatten(0, 1)
        units = Units(torch.arange(300) + 30, torch.arange(30).repeat_interleave(8))
        return normal(300, DIM, seed=seed + 20_000), generated, units

    drawn = [heaps(seed) for seed in range(150)]
    values = [float(manifold_values(x, y, k=5).recall.mean()) for x, y, _ in drawn]
    assert sum(values) / len(values) < 0.4
    errors = [manifold_errors(x, y, k=5, seed=0, units=units)["recall"] or 0 for x, y, units in drawn[:25]]
    assert 0.85 < ratio(errors, values) < 1.2


def test_fid_infinity_has_the_error_of_fid_and_hardly_depends_on_its_draw() -> None:
    x, y = normal(200, 20), normal(200, 20, seed=1) + 0.27  # the truth: 20 x 0.27^2 = 1.46
    found = [fid_infinity(x, y, seed=seed) for seed in range(10)]
    assert max(found) - min(found) < 0.2
    error = fid_error(x, y, 0)
    assert error is not None and abs(sum(found) / 10 - 1.46) < 2 * error < 1.0
    both = [(normal(200, 20, seed=s), normal(200, 20, seed=s + 1000) + 0.27) for s in range(60)]
    fresh = [fid_infinity(*one) for one in both]
    assert 0.75 < ratio([fid_error(*one, 0) or 0 for one in both[:8]], fresh) < 1.25
    # It varies as the FID does, from which it is taken: so their errors are one.
    values = torch.tensor([fresh, [fid(*one) for one in both]])
    assert torch.corrcoef(values)[0, 1] > 0.9


def test_fid_infinity_does_not_depend_on_the_order_of_the_rows() -> None:
    x, y, units = sourced(0)
    a, b = (torch.randperm(len(side), generator=torch.Generator().manual_seed(5)) for side in (x, y))
    for given, moved in ((units, Units(units.real[a], units.generated[b])), (None, None)):
        assert fid_infinity(x[a], y[b], units=moved) == pytest.approx(fid_infinity(x, y, units=given), rel=1e-9)
    moved = by_content(Units(units.real[a], units.generated[b]), x[a], y[b])
    straight = by_content(units, x, y)
    assert torch.equal(moved.real, straight.real[a]) and torch.equal(moved.generated, straight.generated[b])
    assert fid_error(x[a], y[b], 0, moved) == pytest.approx(fid_error(x, y, 0, straight), rel=1e-6)


def test_the_error_in_leading_components_is_close_to_that_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = torch.Generator().manual_seed(0)
    scale = torch.arange(1, 41).double() ** -1.0  # spectra of features fall off like this
    real, generated = (torch.randn(150, 40, generator=stream).double() * scale + shift for shift in (0, 0.1))
    whole = fid_error(real, generated, 0)
    monkeypatch.setattr(intervals, "COMPONENTS", 12)
    assert fid_error(real, generated, 0) == pytest.approx(whole, rel=0.15)


def test_an_interval_is_cut_to_what_the_metric_can_be() -> None:
    assert estimate(0.5, 0.1, 0.95).low == pytest.approx(0.5 - 0.1959964, rel=1e-6)
    cut = estimate(0.98, 0.1, 0.95, least=0.0, most=1.0)
    assert (cut.low, cut.high) == (pytest.approx(0.784, abs=1e-3), 1)
    assert estimate(3.0, None, 0.95).low is None


def test_few_groups_have_the_quantile_of_students_t() -> None:
    for freedom in (2, 4, 9, 19):
        for place in (0.95, 0.975, 0.9875):
            assert student(place, freedom) == pytest.approx(
                stats.t.ppf(place, freedom), rel=0.02 if freedom < 4 else 1e-3
            )
    assert student(0.975, None) == pytest.approx(1.959964, rel=1e-6)
    assert estimate(0.0, 1.0, 0.95, freedom=19).high == pytest.approx(2.093024, rel=1e-5)


def test_a_share_of_all_or_none_is_not_held_for_sure() -> None:
    """No unit's image lies outside: as in the verdict, the error is not below that of one unit that would."""
    real = normal(400, 2)
    errors = manifold_errors(real, 0.01 * normal(50, 2, seed=1), k=5, seed=0)
    assert errors["precision"] == pytest.approx(1 / 50)
    (few,) = wide_intervals(single_units(400, 50), 1_280)
    assert "50 generated units" in few and wide_intervals(single_units(400, 400), 1_280) == []


def test_few_sources_for_the_dimensions_are_said() -> None:
    """On both sides at once, an error of FID counts twice what a fresh draw would change once."""
    sources = Units(torch.arange(150), torch.arange(300) // 2)
    (wide,) = wide_intervals(sources, 100)
    assert "150 units in 100 dimensions (fewer than 200)" in wide
    assert wide_intervals(sources, 75) == []
    assert wide_intervals(single_units(150, 300), 100) == []  # none on both sides


def test_too_few_images_have_no_error() -> None:
    few = torch.randn(8, 3).double()
    assert set(manifold_errors(few, few, k=5, seed=0).values()) == {None}
    assert fid_error(few[:2], few, 0) is None
    many = torch.randn(40, 3).double()
    lopsided = Units(torch.arange(40) + 40, (torch.arange(40) - 33).clamp(min=0))  # all but 6 are of one unit
    assert set(manifold_errors(many, many, k=6, seed=0, units=lopsided).values()) == {None}
    two = Units(torch.arange(8) + 2, torch.arange(8) % 2)  # of two sources
    assert fid_error(few, few, 0, two) is None and set(manifold_errors(few, few, k=1, seed=0, units=two).values()) == {
        None
    }
    assert fid_infinity(few, few + 1, units=two) > 0
    one_shared = named_units("abcd", "axyz")  # a half of the units of one side alone would be one image
    assert fid_infinity(few[:4], few[4:], units=one_shared) == fid_infinity(few[:4], few[4:])
