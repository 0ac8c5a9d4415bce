"""Licences by their terms: what those of the sources ask for, and where the one that is asked for cannot keep it.

What a licence says of images that a model drew from its material is not settled. The careful reading is taken: such
an image is derived from the images that it was made from, and not from the weights that drew it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from ..engine.text import shown

ATTRIBUTION, SHARE_ALIKE, NON_COMMERCIAL = "attribution", "share-alike", "non-commercial"
NO_DERIVATIVES, USE = "no derivatives", "use restrictions"
# Terms by SPDX id; those of Creative Commons are in the id itself. Others are "not known".
_NOTHING = ("0BSD", "CC0-1.0", "MIT-0", "PDDL-1.0", "Unlicense")
_ATTRIBUTION = (
    "AFL-3.0", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "ISC", "MIT",
    "NCSA", "ODC-By-1.0", "OGL-UK-3.0", "Zlib", "etalab-2.0",
)  # fmt: skip
_SHARE_ALIKE = ("CDLA-Sharing-1.0", "EPL-2.0", "EUPL-1.2", "MPL-2.0", "ODbL-1.0", "OSL-3.0")
TERMS: dict[str, frozenset[str]] = {
    **dict.fromkeys(_NOTHING, frozenset[str]()),
    **dict.fromkeys(_ATTRIBUTION, frozenset({ATTRIBUTION})),
    **dict.fromkeys(_SHARE_ALIKE, frozenset({ATTRIBUTION, SHARE_ALIKE})),
    # Ids of the hub that are none of SPDX's. Their restrictions bind whoever uses the model or what it drew.
    **dict.fromkeys(
        ("bigscience-bloom-rail-1.0", "bigscience-openrail-m", "creativeml-openrail-m", "openrail", "openrail++"),
        frozenset({USE}),
    ),
}
_OF_THE_HUB = {"odbl": "ODbL-1.0", "odc-by": "ODC-By-1.0", "pddl": "PDDL-1.0", "unlicense": "Unlicense"}
_CREATIVE_COMMONS = re.compile(r"CC[ -]BY((?:[ -](?:NC|SA|ND))*)[ -]v?(\d\.\d)", re.IGNORECASE)
_GPL = re.compile(r"[AL]?GPL-\d\.\d(?:-only|-or-later)?")
_MARKS = {"SA": SHARE_ALIKE, "NC": NON_COMMERCIAL, "ND": NO_DERIVATIVES}
# Words of a text that names no licence: what they forbid is known, what else it asks for is not.
_WORDS = {
    NON_COMMERCIAL: re.compile(r"non[ -]?commercial|research (?:use|purposes)? ?only", re.IGNORECASE),
    NO_DERIVATIVES: re.compile(r"no[ -]?derivative", re.IGNORECASE),
    SHARE_ALIKE: re.compile(r"share[ -]?alike", re.IGNORECASE),
}


@dataclass(frozen=True)
class Licence:
    """A licence as it was named.

    text: as it was given.
    name: its SPDX expression in SPDX's spelling, or its id on the hub; "" where it is neither.
    terms: what it asks for, of the constants above.
    known: whether these are all.
    """

    text: str
    name: str
    terms: frozenset[str]
    known: bool

    @property
    def line(self) -> str:
        """Its name and terms."""
        asked = ", ".join(sorted(self.terms)) or ("asks for nothing" if self.known else "")
        return f"{shown(self.name or self.text)} ({asked or 'terms not known: read them'})"


@dataclass(frozen=True)
class Material:
    """Something with a licence that images were made with.

    what: as messages name it.
    licence: "" where none is known.
    drawn_from: whether its pictures were drawn from; else it is the model that drew.
    """

    what: str
    licence: str
    drawn_from: bool = True


@dataclass(frozen=True)
class Finding:
    """A line about licences. `contradicts`: the licence that was asked for cannot be given."""

    line: str
    contradicts: bool = False


def read_licence(text: str) -> Licence:
    """What a text says: an SPDX expression, an id of the hub, or words such as `CC BY-NC 4.0: no trade`."""
    name = _name_of(text)
    if not name:
        return Licence(text, "", frozenset(term for term, words in _WORDS.items() if words.search(text)), False)
    found = [_terms_of(one) for one in re.split(r" AND | OR ", re.sub(r"[()]| WITH [^ )]+", "", name))]
    known = [terms for terms in found if terms is not None]
    if len(known) < len(found):
        return Licence(text, name, frozenset(), False)
    a_choice = " OR " in name and " AND " not in name  # in a mixture of both all terms count
    return Licence(text, name, frozenset.intersection(*known) if a_choice else frozenset.union(*known), True)


def _name_of(text: str) -> str:
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    plain = text.strip()
    if plain.lower() in TERMS or plain.lower() in _OF_THE_HUB:
        return _OF_THE_HUB.get(plain.lower(), plain.lower())
    try:
        return str(canonicalize_license_expression(plain))
    except InvalidLicenseExpression:
        pass
    if found := _CREATIVE_COMMONS.search(plain):
        return f"CC-BY{found[1].replace(' ', '-').upper()}-{found[2]}"
    return "CC0-1.0" if re.search(r"\bCC0\b", plain) else ""


def _terms_of(name: str) -> frozenset[str] | None:
    """Terms of one licence; None where they are not known."""
    if found := _CREATIVE_COMMONS.match(name):
        return frozenset({ATTRIBUTION, *(_MARKS[mark] for mark in found[1].split("-") if mark)})
    return frozenset({ATTRIBUTION, SHARE_ALIKE}) if _GPL.fullmatch(name) else TERMS.get(name)


def findings(materials: Sequence[Material], asked: str | None = None) -> list[Finding]:
    """A line for each material, for each two whose licences exclude each other, and for each that `asked` cannot keep.

    asked: the licence that the images are to have; None: nothing is asked for, and nothing contradicts.
    """
    read = [(one, read_licence(one.licence)) for one in materials]
    return [
        *(Finding(_said(one, licence)) for one, licence in read),
        *_between([(one, licence) for one, licence in read if one.drawn_from]),
        *([] if asked is None else _against(read, read_licence(asked))),
    ]


def _said(one: Material, licence: Licence) -> str:
    if not licence.text:
        return f"licence of {shown(one.what)}: none named; find out before you pass images on"
    line = f"licence of {shown(one.what)}: {licence.line}"
    return f"{line}; its restrictions hold for what is done with the images too" if USE in licence.terms else line


def _between(read: Sequence[tuple[Material, Licence]]) -> Iterator[Finding]:
    for (one, first), (other, second) in combinations(read, 2):
        alike = SHARE_ALIKE in first.terms & second.terms and not (_keeps(first, second) or _keeps(second, first))
        if alike:
            yield Finding(
                f"licences conflict: {shown(one.what)} ({first.name or shown(first.text)}) and {shown(other.what)} "
                f"({second.name or shown(second.text)}) each ask for themselves; images of both cannot be shared"
            )


def _against(read: Sequence[tuple[Material, Licence]], asked: Licence) -> Iterator[Finding]:
    for one, licence in read:
        if not licence.text or not licence.terms:
            continue
        of = f"{shown(one.what)} ({licence.name or shown(licence.text)})"
        if not one.drawn_from:
            if NON_COMMERCIAL in licence.terms - asked.terms:
                yield Finding(f"{of}: the model is for non-commercial use, which --licence {shown(asked.text)} is not")
            continue
        if NO_DERIVATIVES in licence.terms:
            yield Finding(
                f"--licence {shown(asked.text)}: {of} allows nothing derived to be shared. Ask its owner.", True
            )
            continue
        if not asked.known and asked.name != licence.name:
            yield Finding(f"--licence {shown(asked.text)}: its terms are not known; compare them with those of {of}")
            continue
        lacking = sorted(licence.terms - asked.terms - {USE})
        if SHARE_ALIKE in licence.terms and not lacking and not _keeps(licence, asked):
            lacking = [SHARE_ALIKE]
        if lacking:
            fit = licence.name.lower() or "one with these terms"
            remedy = f"Ask for {fit}, or leave --licence out."
            yield Finding(f"--licence {shown(asked.text)}: without {', '.join(lacking)} of {of}. {remedy}", True)


def _keeps(source: Licence, asked: Licence) -> bool:
    """Whether what is shared alike may have this licence: the same one, or a later version of Creative Commons'."""
    if not source.name or source.name == asked.name:
        return bool(source.name)
    was, now = _CREATIVE_COMMONS.fullmatch(source.name), _CREATIVE_COMMONS.fullmatch(asked.name)
    return was is not None and now is not None and was[1] == now[1] and float(now[2]) >= float(was[2])
