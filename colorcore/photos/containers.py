"""What files consist of: EXIF and TIFF directories, PNG chunks, and where a whole file ends."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Entry(NamedTuple):
    """One entry of a TIFF directory: its values are ``size`` bytes at ``start``."""

    tag: int
    format: str  # for struct, all values at once; empty if they are not integers
    size: int
    start: int


_TIFF_TYPES = {
    1: ("B", 1),
    2: ("", 1),
    3: ("H", 2),
    4: ("I", 4),
    5: ("", 8),
    6: ("b", 1),
    7: ("", 1),
    8: ("h", 2),
    9: ("i", 4),
}
"""Types of TIFF 6.0, §2: struct's letter for integers, and bytes per value."""


def tiff_entries(tiff: bytes) -> Iterator[_Entry]:
    """The first directory of a TIFF stream; an EXIF block is such a stream too.

    Raises:
        struct.error: the directory reaches past the end.
    """
    order = "<" if tiff[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(order + "I", tiff, 4)
    (entries,) = struct.unpack_from(order + "H", tiff, directory)
    for at in range(directory + 2, directory + 2 + 12 * entries, 12):
        tag, kind, count, offset = struct.unpack_from(order + "HHII", tiff, at)
        letter, width = _TIFF_TYPES.get(kind, ("", 0))
        size = count * width
        start = at + 8 if size <= 4 else offset
        yield _Entry(tag, f"{order}{count}{letter}" if letter else "", size, start)


def exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 of an EXIF block; 1 (upright) if it is missing or damaged."""
    try:
        for entry in tiff_entries(exif):
            if entry.tag == 0x0112 and entry.format:
                orientation = struct.unpack_from(entry.format, exif, entry.start)[0]
                return orientation if 1 <= orientation <= 8 else 1
    except (IndexError, struct.error):
        pass
    return 1


def ends_early(data: bytes) -> bool:
    """Whether a file declares more bytes than it has, by its format's lengths and end markers."""
    early = False
    try:
        if data.startswith(b"\x89PNG"):
            early = b"IEND" not in data
        elif data.startswith(b"GIF"):
            early = not data.rstrip(b"\0").endswith(b";")
        elif data.startswith(b"BM"):
            early = struct.unpack_from("<I", data, 2)[0] > len(data)
        elif data.startswith(b"RIFF"):
            early = struct.unpack_from("<I", data, 4)[0] + 8 > len(data)
        elif data[4:8] == b"ftyp":
            early = _boxes_end_early(data)
        elif data.startswith((b"II*\0", b"MM\0*")):
            early = _tiff_ends_early(data)
    except struct.error:
        early = True
    return early


def _boxes_end_early(data: bytes) -> bool:
    """AVIF is a sequence of boxes that begin with their length (ISO/IEC 14496-12)."""
    position = 0
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if length < 8:  # 0: to the end; 1: a 64-bit length; else damage. No verdict.
            return False
        position += length
    return position > len(data)


def _tiff_ends_early(data: bytes) -> bool:
    """Whether a TIFF's baseline tags, profile, strips or tiles lie beyond its end."""
    where: dict[int, tuple[int, ...]] = {}
    for entry in tiff_entries(data):
        needed = entry.tag < 0x8000 or entry.tag == 34675
        if needed and entry.start + entry.size > len(data):
            return True
        if entry.tag in {273, 279, 324, 325} and entry.format:  # offsets and lengths
            where[entry.tag] = struct.unpack_from(entry.format, data, entry.start)
    offsets = where.get(273) or where.get(324) or ()
    lengths = where.get(279) or where.get(325) or ()
    return any(at + n > len(data) for at, n in zip(offsets, lengths, strict=False))


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP from its first chunk (RFC 9649, §2.5 to 2.7)."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if chunk == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF


def is_lossless_webp(data: bytes) -> bool:
    """Whether the pixels of a WebP, or of its first frame, are stored losslessly."""
    lossless, lossy = data.find(b"VP8L", 12), data.find(b"VP8 ", 12)
    return lossless >= 0 and not 0 <= lossy < lossless


class _Chunk(NamedTuple):
    """A chunk of a PNG: its data are ``data[start:end]``, its checksum are the next 4 bytes."""

    name: bytes
    start: int
    end: int


_PICTURE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_MAX_PROFILE = 255 * 65_519
"""Bytes of the largest ICC profile that a JPEG can hold."""


def png_chunks(png: bytes) -> Iterator[_Chunk]:
    """The chunks of a PNG up to its end (W3C PNG, §5.3); the last one may reach past the file's."""
    position = 8
    name = b""
    while name != b"IEND" and position + 8 <= len(png):
        length, name = struct.unpack_from(">I4s", png, position)
        yield _Chunk(name, position + 8, position + 8 + length)
        position += 12 + length


def pixels_damaged(png: bytes) -> bool:
    """Whether a chunk of pixels has a wrong checksum.

    Pillow checks the other chunks that matter, but neither this checksum nor always that of the
    compressed pixels, so a flipped bit may change colours silently.
    """
    return any(c.name == b"IDAT" and not _intact(png, c) for c in png_chunks(png))


def _intact(png: bytes, chunk: _Chunk) -> bool:
    view = memoryview(png)
    checksum = zlib.crc32(view[chunk.start - 4 : chunk.end])
    return checksum.to_bytes(4, "big") == view[chunk.end : chunk.end + 4]


def without_metadata(png: bytes) -> tuple[bytes, bytes | None]:
    """A PNG with nothing but its pixels and EXIF, and its ICC profile, if that is whole.

    Of an animation, the picture is the one that programs show that know no animations.
    """
    parts, profile = [png[:8]], None
    for chunk in png_chunks(png):
        name, start, end = chunk
        if name in _PICTURE or (name == b"eXIf" and _intact(png, chunk)):
            parts.append(png[start - 8 : end + 4])
        elif name == b"iCCP" and _intact(png, chunk):
            profile = _png_profile(png[start:end])
    return b"".join(parts), profile


def _png_profile(chunk: bytes) -> bytes | None:
    """The profile of an iCCP chunk: a name, 0, the compression method 0, and a zlib stream."""
    _, _, compressed = chunk.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(compressed[1:], _MAX_PROFILE)
    except zlib.error:
        return None
    return profile if compressed[:1] == b"\0" and inflate.eof else None
