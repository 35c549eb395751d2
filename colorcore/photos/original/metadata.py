"""What belongs to a photo apart from its pixels: EXIF, XMP, IPTC, resolution and PNG's texts.

Metadata never decide whether a photo can be read: what is damaged is left out.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from colorcore.photos.containers import png_chunks
from colorcore.photos.jpeg import APP1, jpeg_segments
from colorcore.photos.original.exif import exif_dpi, exif_of_tiff, reset_exif

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

EXIF_MARK = b"Exif\0\0"
XMP_MARK = b"http://ns.adobe.com/xap/1.0/\0"
PHOTOSHOP_MARK = b"Photoshop 3.0\0"
"""How the data of a JPEG's APP segments begin (XMP, part 3, 1.1.3; Photoshop's file formats)."""
XMP_KEYWORD = b"XML:com.adobe.xmp"
"""How the data of PNG's iTXt chunk with XMP begin (XMP, part 3, 1.1.5)."""
_IPTC_RESOURCE = 0x0404
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_RAW_PROFILE = b"Raw profile type "
_MAX_PACKET = 1 << 24
"""Bytes of the largest XMP packet or raw profile that is read from a PNG."""
_MAX_TEXTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Metadata:
    """What belongs to an upright sRGB picture; None and () where the file has none.

    exif   a TIFF stream, without the mark ``Exif`` of JPEG
    xmp    a packet in UTF-8
    iptc   the records of IPTC-IIM
    dpi    pixels per inch, across and down
    texts  PNG's chunks of texts, each its type and data
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    texts: tuple[bytes, ...] = ()


def reset(found: Metadata, *, turned: bool) -> Metadata:
    """The metadata for the picture after it has been turned upright and converted to sRGB.

    turned: rows and columns have been exchanged.
    """
    exif = reset_exif(found.exif, turned=turned) if found.exif else None
    dpi = found.dpi[::-1] if found.dpi and turned else found.dpi
    dpi = dpi or (exif_dpi(exif) if exif else None)
    return replace(found, exif=exif, xmp=_reset_xmp(found.xmp), dpi=dpi)


def _reset_xmp(xmp: bytes | None) -> bytes | None:
    """The packet as UTF-8 of an upright sRGB picture, without thumbnails."""
    if not xmp:
        return None
    xmp = re.sub(rb"(tiff:Orientation\s*=\s*[\"'])[2-8]([\"'])", rb"\g<1>1\2", xmp)
    xmp = re.sub(rb"(<tiff:Orientation>)\s*[2-8]\s*(</)", rb"\g<1>1\2", xmp)
    xmp = re.sub(rb"(exif:ColorSpace\s*=\s*[\"'])65535([\"'])", rb"\g<1>1\2", xmp)
    xmp = re.sub(rb"(<exif:ColorSpace>)\s*65535\s*(</)", rb"\g<1>1\2", xmp)
    start, end = xmp.find(b"<xmp:Thumbnails>"), xmp.find(b"</xmp:Thumbnails>")
    return xmp[:start] + xmp[end + 17 :] if 0 <= start < end else xmp


def jpeg_metadata(data: bytes) -> Metadata:
    """The metadata in a JPEG's segments, as they are in the file."""
    exif = xmp = dpi = None
    photoshop = b""
    try:
        for marker, start, end in jpeg_segments(data):
            if marker == 0xE0 and data.startswith(b"JFIF\0", start):
                unit, x, y = struct.unpack_from(">BHH", data, start + 7)
                if unit in {1, 2} and x and y:
                    scale = 1.0 if unit == 1 else 2.54
                    dpi = (x * scale, y * scale)
            elif marker == APP1 and data.startswith(EXIF_MARK, start):
                exif = exif or data[start + len(EXIF_MARK) : end]
            elif marker == APP1 and data.startswith(XMP_MARK, start):
                xmp = xmp or data[start + len(XMP_MARK) : end]
            elif marker == 0xED and data.startswith(PHOTOSHOP_MARK, start):
                photoshop += data[start + len(PHOTOSHOP_MARK) : end]
    except (IndexError, struct.error):  # pragma: no cover - the header has been read before
        pass
    return Metadata(exif, xmp, iptc_of_photoshop(photoshop), dpi)


def photoshop_resources(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and data of each image resource (Adobe Photoshop File Formats, Image resources)."""
    position = 0
    while data.startswith(b"8BIM", position) and position + 12 <= len(data):
        (number,) = struct.unpack_from(">H", data, position + 4)
        position += 6 + (data[position + 6] + 2) // 2 * 2  # a name, padded with its length byte
        if position + 4 > len(data):
            return
        (size,) = struct.unpack_from(">I", data, position)
        yield number, data[position + 4 : position + 4 + size]
        position += 4 + size + (size & 1)


def iptc_of_photoshop(data: bytes) -> bytes | None:
    """The IPTC records among Photoshop's image resources."""
    return next((d for number, d in photoshop_resources(data) if number == _IPTC_RESOURCE), None)


def iptc_resource(iptc: bytes) -> bytes:
    """IPTC records as one of Photoshop's image resources."""
    return (
        struct.pack(">4sHHI", b"8BIM", _IPTC_RESOURCE, 0, len(iptc))
        + iptc
        + b"\0" * (len(iptc) & 1)
    )


def pillow_metadata(image: ImageFile, xmp: bytes | str | None) -> Metadata:
    """The metadata that Pillow has found in a file without a reader of its own here.

    xmp: what it has found before :func:`colorcore.photos.read.forget_xmp`.
    """
    exif, xmp = image.info.get("exif"), image.info.get("xmp") or xmp
    packet = xmp.encode() if isinstance(xmp, str) else xmp
    exif = exif.removeprefix(EXIF_MARK) if isinstance(exif, bytes) else None
    return Metadata(exif or None, packet or None, None, _dpi(image.info.get("dpi")))


def png_metadata(data: bytes) -> Metadata:
    """The metadata in a PNG's chunks, before and behind its pixels; texts up to 1 MB in all."""
    exif = xmp = dpi = None
    texts: list[bytes] = []
    profiles: dict[bytes, bytes] = {}
    for name, start, end in png_chunks(data):
        if end > len(data):
            break
        if name == b"eXIf":
            exif = data[start:end].removeprefix(EXIF_MARK)
        elif name == b"pHYs" and end - start == 9:
            x, y, unit = struct.unpack_from(">IIB", data, start)
            dpi = _dpi((x * 0.0254, y * 0.0254)) if unit == 1 else None
        elif name in _TEXTS:
            keyword, _, rest = data[start : min(end, start + _MAX_PACKET)].partition(b"\0")
            if keyword == XMP_KEYWORD:
                xmp = _international_text(rest)
            elif keyword.startswith(_RAW_PROFILE):
                profiles[keyword.removeprefix(_RAW_PROFILE)] = _raw_profile(name, rest)
            elif keyword != b"Software" and sum(map(len, texts)) + end - start <= _MAX_TEXTS:
                texts.append(name + data[start:end])
    iptc = profiles.get(b"iptc", b"")
    iptc = iptc.removeprefix(PHOTOSHOP_MARK)
    iptc = (iptc_of_photoshop(iptc) or b"") if iptc.startswith(b"8BIM") else iptc
    raw = profiles.get(b"exif") or profiles.get(b"APP1", b"")
    exif = exif or (raw.removeprefix(EXIF_MARK) if raw.startswith(EXIF_MARK) else None)
    return Metadata(exif or None, xmp, iptc or None, dpi, tuple(texts))


def _international_text(data: bytes) -> bytes | None:
    """The text of an iTXt chunk behind its keyword (W3C PNG, §11.3.3.4)."""
    parts = data[2:].split(b"\0", 2)  # compression; then language, translated keyword, text
    if len(parts) < 3:
        return None
    return _inflated(parts[2]) if data[:1] == b"\1" else parts[2]


def _raw_profile(name: bytes, data: bytes) -> bytes:
    """A profile as ImageMagick and exiftool write it: its kind, its size, hexadecimal lines."""
    if name == b"iTXt":
        text = _international_text(data)
    else:
        text = data if name == b"tEXt" else _inflated(data[1:])
    lines = (text or b"").strip().split(b"\n")
    try:
        return bytes.fromhex(b"".join(lines[2:]).decode("ascii"))
    except ValueError:
        return b""


def _inflated(data: bytes) -> bytes | None:
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(data, _MAX_PACKET)
    except zlib.error:
        return None
    return text if inflate.eof else None


def tiff_metadata(data: bytes, directory: int, tags: dict[int, object]) -> Metadata:
    """The metadata of a TIFF's page whose directory is at ``directory``.

    tags: values of the tags 282, 283, 296, 700, 33723 and 34377, as far as the page has them. Of a
    BigTIFF, whose directories are different, EXIF is left out.
    """
    exif = None
    if data[2:4] in {b"*\0", b"\0*"}:
        try:
            exif = exif_of_tiff(data, directory)
        except struct.error:
            exif = None
    iptc = _bytes(tags.get(33723)) or iptc_of_photoshop(_bytes(tags.get(34377)) or b"")
    scale = {2: 1.0, 3: 2.54}.get(tags.get(296, 2))  # type: ignore[call-overload]
    dpi = None
    try:
        if scale is not None:
            dpi = _dpi(tuple(scale * _ratio(tags[tag]) for tag in (282, 283)))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        dpi = None
    return Metadata(exif, _bytes(tags.get(700)), iptc, dpi)


def _ratio(value: object) -> float:
    if isinstance(value, tuple):
        return float(value[0]) / float(value[1])
    return float(value)  # type: ignore[arg-type]


def _bytes(value: object) -> bytes | None:
    """A tag's value as bytes. IPTC is often declared as 32-bit integers, in the file's order."""
    if isinstance(value, bytes):
        return value or None
    try:
        return bytes(value) or None if isinstance(value, tuple) else None
    except (TypeError, ValueError):
        return None


def _dpi(value: object) -> tuple[float, float] | None:
    if not isinstance(value, tuple) or len(value) != 2:
        return None
    try:
        x, y = float(value[0]), float(value[1])
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None
