"""What a PNG says of itself: an XMP packet with IPTC's digital source type, what drew it, and what it was drawn from.

IPTC Photo Metadata Standard 2025.1 (DigitalSourceType, AISystemUsed, AISystemVersionUsed); XMP specification part 3,
1.1.5: a packet in PNG is an iTXt chunk of the keyword `XML:com.adobe.xmp`, uncompressed.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from ..errors import DataError

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
# Of the column `method`. Of any other method nothing is claimed: images of a pool are photographs, and who adopts
# images knows what made them, not we.
_GENERATING = ("inversion", "prompts", "lecf", "gan", "gan-inversion")
_NAMES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "dinv": "diffusion-inversion:xmp/1.0/",
}
_SIGNATURE, _KEYWORD = b"\x89PNG\r\n\x1a\n", b"XML:com.adobe.xmp\0"
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2
for _prefix, _uri in _NAMES.items():
    ElementTree.register_namespace(_prefix, _uri)


def is_generated(method: str) -> bool:
    """Whether a model drew the images of a method, as the column `method` names it."""
    return method in _GENERATING


def packet(
    method: str, *, generator: str = "", generator_hash: str = "", sources: Sequence[str] = (), rights: str = ""
) -> bytes:
    """An XMP packet, the same bytes for the same arguments.

    generator, generator_hash: of what drew the image; "" are left out, both where nothing did.
    sources: what names the images that it was made from, the first one its source.
    rights: its licence.
    """
    root = ElementTree.Element(_name("x:xmpmeta"))
    about = _child(_child(root, "rdf:RDF"), "rdf:Description")
    about.set(_name("rdf:about"), "")
    drawn = is_generated(method)
    texts = {
        "Iptc4xmpExt:DigitalSourceType": GENERATED if drawn else "",
        "Iptc4xmpExt:AISystemUsed": generator if drawn else "",
        "Iptc4xmpExt:AISystemVersionUsed": generator_hash if drawn else "",
        "xmp:CreatorTool": "diffusion-inversion" if drawn else "",
        "dinv:method": method,
        "dc:source": sources[0] if sources else "",
    }
    for name, text in texts.items():
        if text:
            _child(about, name, text)
    if rights:
        _child(_child(_child(about, "dc:rights"), "rdf:Alt"), "rdf:li", rights).set(
            "{http://www.w3.org/XML/1998/namespace}lang", "x-default"
        )
    if len(sources) > 1:
        listed = _child(_child(about, "dinv:sources"), "rdf:Seq")
        for source in sources:
            _child(listed, "rdf:li", source)
    content = ElementTree.tostring(root, encoding="unicode").encode()
    begin = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'.encode()
    return begin + content + b'<?xpacket end="r"?>'


def with_xmp(png: bytes, xmp: bytes) -> bytes:
    """The PNG with this packet in place of any that it has; no other chunk is touched. Raises DataError for no PNG."""
    first, *others = _chunks(png)
    data = b"iTXt" + _KEYWORD + b"\0\0\0\0" + xmp  # not compressed, of no language
    own = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return _SIGNATURE + first + own + b"".join(one for one in others if one[4:8] != b"iTXt" or _KEYWORD not in one[:30])


def _name(name: str) -> str:
    prefix, _, local = name.partition(":")
    return f"{{{_NAMES[prefix]}}}{local}"


def _child(parent: ElementTree.Element, name: str, text: str = "") -> ElementTree.Element:
    child = ElementTree.SubElement(parent, _name(name))
    child.text = _NO_XML.sub("\ufffd", text) or None
    return child


def _chunks(png: bytes) -> Iterator[bytes]:
    """The chunks of a PNG, each with its length, kind and checksum."""
    if not png.startswith(_SIGNATURE + b"\0\0\0\rIHDR"):
        raise DataError("not a PNG: a synthetic image with the hash that its record has; draw it again")
    place = len(_SIGNATURE)
    while place < len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        yield png[place : place + length + 12]
        place += length + 12
