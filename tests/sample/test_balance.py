"""Counts of variants that even real and synthetic images: closed cases, and what holds for any counts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_inversion.config.sampling import SampleSettings
from diffusion_inversion.errors import DataError, UsageError
from diffusion_inversion.sample.balance import counts_of, even, least_variants, uneven

BALANCED = SampleSettings(variants=10, balance="class")
REAL = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def labelled(*real: int) -> dict[str, int]:
    return {f"{label}/{place}.png": label for label, count in enumerate(real) for place in range(count)}


def by_class(labels: dict[str, int], counts: dict[str, int]) -> list[int]:
    found = Counter[int]()
    for source, count in counts.items():
        found[labels[source]] += count
    return [found[label] for label in sorted(set(labels.values()))]


def with_variants(variants: int, balance: str = "class") -> SampleSettings:
    return SampleSettings(variants=variants, balance=balance)


def test_small_cases_by_hand() -> None:
    labels = labelled(4, 2)
    assert by_class(labels, counts_of(labels, with_variants(1))) == [2, 4], "4 + 2 = 2 + 4"
    assert by_class(labels, counts_of(labels, with_variants(2))) == [5, 7], "4 + 5 = 2 + 7"
    labels = labelled(7, 1, 1)
    assert by_class(labels, counts_of(labels, with_variants(1))) == [0, 5, 4], "full at 7; 6 and 5 the others"
    assert by_class(labels, counts_of(labels, with_variants(2))) == [2, 8, 8]
    assert counts_of(labelled(3, 3), with_variants(4)) == dict.fromkeys(labelled(3, 3), 4)
    assert counts_of(labelled(5, 1), SampleSettings(variants=3)) == dict.fromkeys(labelled(5, 1), 3)


@settings(deadline=None)
@given(REAL, st.integers(1, 12))
def test_counts_add_up_and_are_even_as_far_as_they_go(real: list[int], variants: int) -> None:
    labels = labelled(*real)
    counts = counts_of(labels, with_variants(variants))
    assert counts.keys() == labels.keys() and sum(counts.values()) == variants * len(labels)
    more = by_class(labels, counts)
    both = [mine + new for mine, new in zip(real, more, strict=True)]
    assert max(end for end, new in zip(both, more, strict=True) if new) - min(both) <= 1, "no one gets before the least"
    for label in range(len(real)):
        own = [count for source, count in counts.items() if labels[source] == label]
        assert max(own) - min(own) <= 1
        assert min(own) > 0 or more[label] < real[label], "a source gets none where its class needs fewer than it has"
    assert (uneven(labels, with_variants(variants)) is None) == (max(both) - min(both) <= 1)


@settings(deadline=None)
@given(REAL, st.integers(1, 6))
def test_more_variants_keep_what_fewer_ask_for(real: list[int], variants: int) -> None:
    labels = labelled(*real)
    few, many = (counts_of(labels, with_variants(count)) for count in (variants, variants + 1))
    assert all(few[source] <= many[source] for source in labels)


@settings(deadline=None)
@given(REAL, st.integers(0, 60))
def test_each_image_in_turn_goes_to_the_part_with_the_fewest(real: list[int], total: int) -> None:
    parts = {(str(place),): count for place, count in enumerate(real)}
    now = dict(parts)
    for _ in range(total):
        now[min(now, key=lambda part: (now[part], parts[part], part))] += 1
    assert even(parts, total) == {part: now[part] - parts[part] for part in parts}


@settings(deadline=None)
@given(REAL, st.randoms(use_true_random=False))
def test_the_order_of_the_sources_makes_no_difference(real: list[int], order: object) -> None:
    labels = labelled(*real)
    shuffled = list(labels)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert counts_of({source: labels[source] for source in shuffled}, BALANCED) == counts_of(labels, BALANCED)


@given(REAL)
def test_the_least_variants_are_the_first_that_even(real: list[int]) -> None:
    labels, least = labelled(*real), least_variants({(str(k),): count for k, count in enumerate(real)})
    assert uneven(labels, with_variants(least)) is None
    said = uneven(labels, with_variants(least - 1)) if least > 1 else None
    if said is not None:
        assert f"variants={least} would" in said and said.count("\n") == 0


def test_an_attribute_parts_images_alone_or_within_classes() -> None:
    labels = labelled(4, 4)
    value_of = {source: "old" if source.endswith(("0.png", "1.png", "2.png")) else "new" for source in labels}

    def by_part(balance: str) -> Counter[tuple[int, str]]:
        found = Counter[tuple[int, str]]()
        for source, count in counts_of(labels, with_variants(1, balance), value_of).items():
            found[labels[source], value_of[source]] += count
        return found

    alone = by_part("site")
    assert [sum(alone[label, value] for label in (0, 1)) for value in ("old", "new")] == [2, 6], "6 + 2 = 2 + 6"
    assert by_part("class,site") == {(0, "old"): 1, (0, "new"): 3, (1, "old"): 1, (1, "new"): 3}


def test_values_that_are_not_known_are_refused() -> None:
    with pytest.raises(UsageError, match="balance=site: the values of site are not known here; use class"):
        counts_of(labelled(2, 2), with_variants(1, "site"))
    with pytest.raises(DataError, match=r"balance=site: 3 of 4 images have no value, as 0/1\.png"):
        counts_of(labelled(2, 2), with_variants(1, "site"), {"0/0.png": "a"})


def test_an_attribute_with_one_value_is_refused() -> None:
    with pytest.raises(DataError, match="balance=class,site: all 4 training images have one value, a; use class"):
        counts_of(labelled(2, 2), with_variants(1, "class,site"), dict.fromkeys(labelled(2, 2), "a"))


def test_a_full_class_is_said_in_one_line() -> None:
    said = uneven(labelled(30, 2, 2), with_variants(1))
    assert said == (
        "balance=class: variants=1 does not even the counts: 1 of 3 parts have more real images than the 19 that the "
        "others come to with synthetic ones (up to 30), and get none. variants=2 would."
    )
