"""Licences: what a name means, what two of them exclude, and what an asked licence cannot keep. Closed cases."""

from __future__ import annotations

import pytest

from diffusion_inversion.data.licences import (
    ATTRIBUTION,
    NO_DERIVATIVES,
    NON_COMMERCIAL,
    SHARE_ALIKE,
    TERMS,
    USE,
    Material,
    findings,
    read_licence,
)

BY, NC, SA, ND = ATTRIBUTION, NON_COMMERCIAL, SHARE_ALIKE, NO_DERIVATIVES


@pytest.mark.parametrize(
    ("text", "name", "terms"),
    [
        ("cc-by-nc-sa-4.0", "CC-BY-NC-SA-4.0", {BY, NC, SA}),
        ("CC BY-NC-SA 4.0: non-commercial use only", "CC-BY-NC-SA-4.0", {BY, NC, SA}),
        ("CC BY 4.0", "CC-BY-4.0", {BY}),
        ("CC-BY-ND-3.0", "CC-BY-ND-3.0", {BY, ND}),
        ("CC-BY-NC-SA-2.0-UK", "CC-BY-NC-SA-2.0-UK", {BY, NC, SA}),
        ("CC0", "CC0-1.0", set()),
        ("mit", "MIT", {BY}),
        ("odbl", "ODbL-1.0", {BY, SA}),
        ("AGPL-3.0-or-later", "AGPL-3.0-or-later", {BY, SA}),
        ("creativeml-openrail-m", "creativeml-openrail-m", {USE}),
        ("OpenRAIL++", "openrail++", {USE}),
        ("Apache-2.0 AND CC-BY-SA-3.0", "Apache-2.0 AND CC-BY-SA-3.0", {BY, SA}),
        ("MIT OR GPL-3.0-only", "MIT OR GPL-3.0-only", {BY}),  # a choice: the recipient takes MIT
        ("MIT OR (GPL-3.0-only AND CC0-1.0)", "MIT OR (GPL-3.0-only AND CC0-1.0)", {BY, SA}),  # not unravelled
        ("GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0", {BY, SA}),
    ],
)
def test_what_a_licence_asks_for(text: str, name: str, terms: set[str]) -> None:
    found = read_licence(text)
    assert (found.name, found.terms, found.known) == (name, terms, True)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", set()),
        ("ask the clinic", set()),
        ("LicenseRef-clinic", set()),
        ("for non-commercial research, no derivatives", {NC, ND}),
        ("Share alike!", {SA}),
    ],
)
def test_words_say_what_they_say_and_no_more(text: str, terms: set[str]) -> None:
    found = read_licence(text)
    assert found.terms == terms and not found.known


def test_every_id_of_the_table_is_one() -> None:
    for name in TERMS:
        assert read_licence(name).name == name and read_licence(name.upper()).name == name


def against(source: str, asked: str, **others: bool) -> list[tuple[bool, str]]:
    """What is found beside the line of the source itself."""
    found = findings([Material("DATA", source, **others)], asked)
    return [(one.contradicts, one.line) for one in found[1:]]


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("CC-BY-4.0", "cc-by-4.0"),
        ("CC-BY-4.0", "mit"),
        ("CC-BY-4.0", "cc-by-nc-sa-4.0"),  # more may be asked for
        ("CC0-1.0", "cc0-1.0"),
        ("MIT", "apache-2.0"),
        ("CC-BY-NC-4.0", "cc-by-nc-4.0"),
        ("CC-BY-NC-SA-4.0", "CC BY-NC-SA 4.0"),
        ("CC-BY-SA-3.0", "cc-by-sa-4.0"),  # a later version
        ("ODbL-1.0", "odbl"),
        ("MIT OR GPL-3.0-only", "apache-2.0"),
        ("ask the clinic", "mit"),  # nothing known, nothing contradicted; its line says to read it
        ("", "mit"),
    ],
)
def test_a_licence_that_keeps_the_terms_is_given(source: str, asked: str) -> None:
    assert against(source, asked) == []


@pytest.mark.parametrize(
    ("source", "asked", "lacking"),
    [
        ("CC-BY-4.0", "cc0-1.0", "without attribution of DATA"),
        ("CC-BY-NC-4.0", "cc-by-4.0", "without non-commercial of DATA (CC-BY-NC-4.0). Ask for cc-by-nc-4.0, or leave"),
        ("CC-BY-NC-SA-4.0", "apache-2.0", "without non-commercial, share-alike of DATA"),
        ("CC-BY-NC-SA-4.0", "cc-by-nc-4.0", "without share-alike of DATA"),
        ("CC-BY-SA-4.0", "cc-by-sa-3.0", "without share-alike"),  # an earlier version
        ("CC-BY-SA-4.0", "gpl-3.0", "without share-alike"),
        ("CC-BY-SA-4.0", "cc-by-nc-sa-4.0", "without share-alike"),  # adds a term to what is shared alike
        ("GPL-3.0-only", "odbl", "without share-alike"),
        ("CC-BY-ND-4.0", "cc-by-nd-4.0", "allows nothing derived to be shared. Ask its owner"),
        ("for non-commercial use", "mit", "without non-commercial of DATA (for non-commercial use). Ask for one with"),
    ],
)
def test_a_licence_that_drops_a_term_contradicts(source: str, asked: str, lacking: str) -> None:
    ((contradicts, line),) = against(source, asked)
    assert contradicts and lacking in line and line.startswith(f"--licence {asked}")


def test_terms_that_nobody_knows_are_named_and_not_refused() -> None:
    ((contradicts, line),) = against("CC-BY-NC-4.0", "our own words")
    assert not contradicts and "its terms are not known; compare them" in line


def test_a_generators_licence_is_said_and_binds_no_image() -> None:
    assert against("creativeml-openrail-m", "mit", drawn_from=False) == []
    (said,) = findings([Material("the generator sd", "creativeml-openrail-m", drawn_from=False)])
    assert "its restrictions hold for what is done with the images too" in said.line and not said.contradicts
    ((contradicts, line),) = against("CC-BY-NC-SA-4.0", "mit", drawn_from=False)
    assert not contradicts and "the model is for non-commercial use" in line


def test_two_sources_that_exclude_each_other_are_named() -> None:
    def lines(first: str, second: str) -> list[str]:
        return [one.line for one in findings([Material("DATA", first), Material("the pool", second)])[2:]]

    assert lines("CC-BY-SA-4.0", "ODbL-1.0")[0].startswith("licences conflict: DATA (CC-BY-SA-4.0) and the pool")
    assert lines("CC-BY-SA-4.0", "CC-BY-SA-3.0") == lines("CC-BY-SA-4.0", "MIT") == lines("MIT", "CC-BY-NC-4.0") == []


def test_names_of_others_are_one_line() -> None:
    (found,) = findings([Material("a\nb", "c\x1b[2J")])
    assert found.line == r"licence of a\nb: c\x1b[2J (terms not known: read them)"
    (found,) = findings([Material("DATA", "")])
    assert found.line == "licence of DATA: none named; find out before you pass images on"
