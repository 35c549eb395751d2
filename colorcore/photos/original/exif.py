"""EXIF blocks and TIFF directories, edited without moving what they hold.

Makers' notes contain offsets that only their maker understands, so a block is changed in place or
appended to, and never written anew. Only what a TIFF file keeps in its own directories has to be
gathered into a new block, and the other way round.

An EXIF block is a TIFF stream (TIFF 6.0, §2; CIPA DC-008, §4.5). Here it stands without the mark
``Exif`` of JPEG.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

ORIENTATION, SOFTWARE = 0x0112, 0x0131
EXIF, GPS, INTEROPERABILITY = 0x8769, 0x8825, 0xA005
"""Tags that point to further directories."""
_COLOR_SPACE, _WIDTH, _HEIGHT = 0xA001, 0xA002, 0xA003
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
_THUMBNAIL, _THUMBNAIL_BYTES = 0x0201, 0x0202
_DESCRIPTIVE = frozenset(
    {0x010D, 0x010E, 0x010F, 0x0110, 0x011D, SOFTWARE, 0x0132, 0x013B, 0x013C}  # names and dates
    | {0x4746, 0x4749, 0x8298, *range(0x9C9B, 0x9CA0)}  # ratings, copyright, what Windows writes
)
"""Tags of a TIFF's directory that describe the picture rather than how its pixels are stored."""
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
"""Bytes per value of each type (TIFF 6.0, §2; 13 is IFD, of supplement 1)."""
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I"}
EMPTY = b"II*\0" + struct.pack("<IHI", 8, 0, 0)
"""An EXIF block of no entries."""


class Field(NamedTuple):
    """One entry of a directory: its type, its number of values, their bytes, and where they are."""

    kind: int
    values: int
    value: bytes
    at: int = 0


class Directory(NamedTuple):
    """The entries of a directory by tag, and the directories that some of the tags point to."""

    fields: Mapping[int, Field]
    below: Mapping[int, Directory]


def byte_order(tiff: bytes | memoryview) -> str:
    """``<`` or ``>``, for struct."""
    return "<" if bytes(tiff[:2]) == b"II" else ">"


def read_fields(tiff: bytes | memoryview, offset: int) -> tuple[dict[int, Field], int]:
    """The entries of the directory at ``offset``, and where the offset of the next one stands.

    Entries of unknown types, and those that reach past the end, are left out.

    Raises:
        struct.error: the directory reaches past the end.
    """
    order = byte_order(tiff)
    (count,) = struct.unpack_from(order + "H", tiff, offset)
    end = offset + 2 + 12 * count
    fields = {}
    for at in range(offset + 2, end, 12):
        tag, kind, values = struct.unpack_from(order + "HHI", tiff, at)
        size = _SIZES.get(kind, 0) * values
        start = at + 8 if size <= 4 else struct.unpack_from(order + "I", tiff, at + 8)[0]
        if size and start + size <= len(tiff):
            fields[tag] = Field(kind, values, bytes(tiff[start : start + size]), start)
    struct.unpack_from(order + "I", tiff, end)
    return fields, end


def number(field: Field | None, order: str) -> int | None:
    """The first value of an entry of integers."""
    if field is None or field.kind not in _INTEGERS:
        return None
    return int(struct.unpack_from(order + _INTEGERS[field.kind], field.value)[0])


def pack_directory(directory: Directory, order: str, offset: int) -> bytes:
    """A directory, its values and the directories below it, to stand at ``offset`` (even)."""
    fields = dict(directory.fields)
    fields |= dict.fromkeys(directory.below, Field(4, 1, bytes(4)))
    start = offset + 2 + 12 * len(fields) + 4
    entries, values, pointers = [struct.pack(order + "H", len(fields))], bytearray(), {}
    for tag, field in sorted(fields.items()):
        inline = field.value.ljust(4, b"\0")
        if len(field.value) > 4:
            inline = struct.pack(order + "I", start + len(values))
            values += field.value + bytes(len(field.value) & 1)
        pointers[tag] = len(entries)
        entries.append(struct.pack(order + "HHI", tag, field.kind, field.values) + inline)
    for tag, below in directory.below.items():
        entries[pointers[tag]] = struct.pack(order + "HHII", tag, 4, 1, start + len(values))
        values += pack_directory(below, order, start + len(values))
    return b"".join(entries) + bytes(4) + bytes(values)


def swapped(directory: Directory) -> Directory:
    """The directory in the other byte order."""
    fields = {}
    for tag, field in directory.fields.items():
        width = 4 if field.kind in {5, 10} else _SIZES[field.kind]  # rationals are two integers
        parts = (field.value[at : at + width] for at in range(0, len(field.value), width))
        fields[tag] = field._replace(value=b"".join(part[::-1] for part in parts))
    return Directory(fields, {tag: swapped(below) for tag, below in directory.below.items()})


def descriptive(tiff: bytes, offset: int | None = None) -> Directory:
    """What describes the picture in a directory of a TIFF file or EXIF block (default: the first).

    Raises:
        struct.error: the directory reaches past the end.
    """
    order = byte_order(tiff)
    offset = struct.unpack_from(order + "I", tiff, 4)[0] if offset is None else offset
    fields, _ = read_fields(tiff, offset)
    return Directory(
        {tag: field for tag, field in fields.items() if tag in _DESCRIPTIVE},
        _below(tiff, fields, {EXIF: {INTEROPERABILITY: {}}, GPS: {}}),
    )


def _below(
    tiff: bytes, fields: Mapping[int, Field], tree: Mapping[int, Mapping[int, Any]]
) -> dict[int, Directory]:
    """The directories that some of the fields point to; damaged ones are left out."""
    found = {}
    for tag, further in tree.items():
        at = number(fields.get(tag), byte_order(tiff))
        if at is None:
            continue
        try:
            there, _ = read_fields(tiff, at)
        except struct.error:
            continue
        below = _below(tiff, there, further)
        own = {name: field for name, field in there.items() if name not in further}
        found[tag] = Directory(own, below)
    return found


def exif_of_tiff(tiff: bytes, offset: int) -> bytes | None:
    """An EXIF block of what describes a page of a TIFF file, whose directory is at ``offset``.

    Makers' notes move, so offsets in them are wrong afterwards; TIFF files seldom have any.
    """
    found = descriptive(tiff, offset)
    if not found.fields and not found.below:
        return None
    order = byte_order(tiff)
    header = tiff[:2] + struct.pack(order + "HI", 42, 8)
    return header + pack_directory(found, order, 8)


def reset_exif(exif: bytes, *, turned: bool) -> bytes | None:
    """The block for a picture that is upright, in sRGB, and no longer looks like its thumbnail.

    ``turned``: rows and columns have been exchanged. None if the block is damaged.
    """
    block = bytearray(exif)
    order = byte_order(exif)
    try:
        (first,) = struct.unpack_from(order + "I", exif, 4)
        fields, following = read_fields(exif, first)
        tree = _with_places(exif, fields)
        _set(block, order, fields.get(ORIENTATION), 1)
        inner = tree.get(EXIF, {})
        _set(block, order, inner.get(_COLOR_SPACE), 1)
        related = tree.get(INTEROPERABILITY, {}).get(1)
        if related is not None and related.value == b"R03\0":  # the Adobe RGB of DCF 2.0
            block[related.at : related.at + 4] = b"R98\0"
        if turned:
            _exchange(block, inner.get(_WIDTH), inner.get(_HEIGHT))
            _exchange(block, fields.get(_X_RESOLUTION), fields.get(_Y_RESOLUTION))
        used = [field for there in (fields, *tree.values()) for field in there.values()]
        _forget_thumbnail(block, order, following, used)
    except struct.error:
        return None
    return bytes(block)


def _with_places(exif: bytes, fields: Mapping[int, Field]) -> dict[int, Mapping[int, Field]]:
    """The fields of the directories below the first one, with their places in the block."""
    tree: dict[int, Mapping[int, Field]] = {}
    order = byte_order(exif)
    for tag, parent in ((EXIF, None), (GPS, None), (INTEROPERABILITY, EXIF)):
        at = number((fields if parent is None else tree.get(parent, {})).get(tag), order)
        if at is not None:
            try:
                tree[tag], _ = read_fields(exif, at)
            except struct.error:
                continue
    return tree


def _set(block: bytearray, order: str, field: Field | None, value: int) -> None:
    if field is not None and field.kind in _INTEGERS:
        struct.pack_into(order + _INTEGERS[field.kind], block, field.at, value)


def _exchange(block: bytearray, one: Field | None, other: Field | None) -> None:
    if one is not None and other is not None and one[:2] == other[:2]:
        block[one.at : one.at + len(one.value)] = other.value
        block[other.at : other.at + len(other.value)] = one.value


def _forget_thumbnail(block: bytearray, order: str, following: int, used: list[Field]) -> None:
    """Cut the chain after the first directory, and erase the JPEG of the second one."""
    (second,) = struct.unpack_from(order + "I", block, following)
    struct.pack_into(order + "I", block, following, 0)
    if not second:
        return
    try:
        fields, _ = read_fields(bytes(block), second)
    except struct.error:
        return
    start = number(fields.get(_THUMBNAIL), order)
    size = number(fields.get(_THUMBNAIL_BYTES), order)
    if start is None or size is None or start < 8:
        return
    end = min(len(block), start + size)
    if end <= start or any(f.at < end and f.at + len(f.value) > start for f in used):
        return
    if end == len(block):
        del block[start:]
    else:
        block[start:end] = bytes(end - start)


def with_software(exif: bytes | None, software: str) -> bytes:
    """The block with ``software`` as the program that made the picture.

    A damaged block is replaced.
    """
    name = software.encode("ascii", "replace") + b"\0"
    return _edited(exif or EMPTY, {SOFTWARE: Field(2, len(name), name)}, frozenset())


def without_orientation(exif: bytes) -> bytes:
    """The block without the tag that encoders may take for an order to turn the picture."""
    return _edited(exif, {}, frozenset({ORIENTATION}))


def _edited(block: bytes, added: Mapping[int, Field], dropped: frozenset[int]) -> bytes:
    """The block with a first directory of other entries, at the end; all else stays in place."""
    order = byte_order(block)
    try:
        fields, _ = read_fields(block, struct.unpack_from(order + "I", block, 4)[0])
    except struct.error:
        block, order, fields = EMPTY, "<", {}
    fields = {tag: field for tag, field in {**fields, **added}.items() if tag not in dropped}
    block += bytes(len(block) & 1)
    place = len(block)
    values_at = place + 2 + 12 * len(fields) + 4
    entries, values = [], b""
    for tag, field in sorted(fields.items()):
        inline = field.value.ljust(4, b"\0")
        if len(field.value) > 4 and tag in added:
            inline = struct.pack(order + "I", values_at + len(values))
            values += field.value + bytes(len(field.value) & 1)
        elif len(field.value) > 4:
            inline = struct.pack(order + "I", field.at)
        entries.append(struct.pack(order + "HHI", tag, field.kind, field.values) + inline)
    head = block[:4] + struct.pack(order + "I", place) + block[8:]
    return head + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4) + values


def shortened(exif: bytes) -> bytes:
    """The block with names and dates alone, without what cameras add, which may be megabytes."""
    try:
        found = descriptive(exif)
    except struct.error:
        return EMPTY
    order = byte_order(exif)
    header = exif[:2] + struct.pack(order + "HI", 42, 8)
    return header + pack_directory(Directory(found.fields, {}), order, 8)


def exif_dpi(exif: bytes) -> tuple[float, float] | None:
    """Pixels per inch across and down, of an EXIF block."""
    order = byte_order(exif)
    try:
        fields, _ = read_fields(exif, struct.unpack_from(order + "I", exif, 4)[0])
        both = [
            struct.unpack_from(order + "II", fields[tag].value)
            for tag in (_X_RESOLUTION, _Y_RESOLUTION)
        ]
        scale = {2: 1.0, 3: 2.54}[number(fields.get(_RESOLUTION_UNIT), order) or 2]
        x, y = (scale * top / bottom for top, bottom in both)
    except (KeyError, ZeroDivisionError, struct.error):
        return None
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None
