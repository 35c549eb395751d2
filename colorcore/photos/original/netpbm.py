"""PBM, PGM and PPM (netpbm's pbm(5), pgm(5), ppm(5)): plain, binary, and of up to 16 bits.

Pillow keeps 8 bits of PPM's 16, so these few lines read the formats instead.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from colorcore.photos.refusal import PhotoRefused, Reason

if TYPE_CHECKING:
    from colorcore.photos.icc import Pixels

_SPACE = rb"(?:[ \t\n\v\f\r]|#[^\n\r]*[\n\r])+"
_HEADER = {
    kind: re.compile(rb"P([1-6])" + (_SPACE + rb"(\d{1,10})") * numbers + rb"[ \t\n\v\f\r]")
    for kind, numbers in (("bits", 2), ("levels", 3))
}
_MAGIC = re.compile(rb"P[1-6][ \t\n\v\f\r#]")
_NUMBERS = re.compile(rb"[0-9 \t\n\v\f\r]*")
_COMMENT = re.compile(rb"#[^\n\r]*")


class NetpbmHeader(NamedTuple):
    """What stands before the pixels: kind 1..6 is the digit of the magic number."""

    kind: int
    width: int
    height: int
    top: int  # the largest level
    pixels: int  # where they begin


def is_netpbm(data: bytes) -> bool:
    """Whether the first bytes are those of PBM, PGM or PPM."""
    return _MAGIC.match(data) is not None


def netpbm_header(data: bytes) -> NetpbmHeader:
    """Kind, size and largest level.

    Raises:
        PhotoRefused: the header is damaged.
    """
    bits = data[1:2] in b"14"
    match = _HEADER["bits" if bits else "levels"].match(data)
    if match is None:
        detail = f"expected a header of PBM, PGM or PPM, got {data[:32]!r}…"
        raise PhotoRefused(Reason.UNREADABLE, detail)
    kind, width, height, *top = (int(group) for group in match.groups())
    if top and not 0 < top[0] < 65536:
        raise PhotoRefused(Reason.UNREADABLE, f"expected levels up to 65,535, got {top[0]}")
    return NetpbmHeader(kind, width, height, top[0] if top else 1, match.end())


def netpbm_pixels(data: bytes, header: NetpbmHeader) -> Pixels:
    """The pixels, scaled to the whole range of 8 or 16 bits. -> (H, W) or (H, W, 3).

    Raises:
        PhotoRefused: there are fewer pixels than the header says.
        ValueError: a plain file holds other things than numbers.
    """
    kind, width, height, top, start = header
    shape = (height, width, 3) if kind in {3, 6} else (height, width)
    count = int(np.prod(shape))
    if kind == 4:  # eight pixels per byte, rows padded
        row = -(-width // 8)
        packed = _stored(data, start, row * height, np.dtype(np.uint8))
        bits = np.unpackbits(packed.astype(np.uint8).reshape(height, row), axis=1, count=width)
        return _scaled(1 - bits, 1)
    if kind in {5, 6}:
        values = _stored(data, start, count, np.dtype(np.uint8 if top < 256 else ">u2"))
    else:
        values = _enough(_plain(data[start:], kind), count)
    return _scaled(values.reshape(shape), top)


def _stored(data: bytes, start: int, count: int, kind: np.dtype[Any]) -> Pixels:
    there = min(count, (len(data) - start) // kind.itemsize)
    return _enough(np.frombuffer(data, kind, there, start), count)


def _plain(text: bytes, kind: int) -> Pixels:
    """The numbers of a plain file; PBM's need no spaces between them, and 1 is black."""
    text = _COMMENT.sub(b"", text)
    if not _NUMBERS.fullmatch(text):
        raise ValueError("expected numbers, got something else")
    if kind == 1:
        digits = np.frombuffer(text, np.uint8)
        return np.asarray(49 - digits[(digits == 48) | (digits == 49)], np.uint8)
    return np.fromstring(text.decode("ascii"), np.uint16, sep=" ")


def _enough(values: Pixels, count: int) -> Pixels:
    if values.size < count:
        raise PhotoRefused(Reason.TRUNCATED, f"expected {count} values, got {values.size}")
    return values[:count]


def _scaled(values: Pixels, top: int) -> Pixels:
    """Levels of 0..top in 0..255, or in 0..65,535 if there are more than 256; a copy."""
    full, kind = (255, np.uint8) if top < 256 else (65535, np.uint16)
    native: Pixels = values.astype(kind)
    if top == full:
        return native
    table: Pixels = np.rint(np.minimum(np.arange(full + 1), top) * (full / top)).astype(kind)
    return table[native]
