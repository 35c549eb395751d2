"""A JPEG's header and pixels: the marker walk, and OpenCV's decoder at full or reduced size."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from colorcore.photos.containers import exif_orientation
from colorcore.photos.refusal import PhotoRefused, Reason

if TYPE_CHECKING:
    from numpy.typing import NDArray


class JpegHeader(NamedTuple):
    """The data before a JPEG's first scan."""

    width: int
    height: int
    components: int
    common: bool  # 8 bits, baseline or progressive, Huffman: every decoder reads it
    orientation: int
    icc: bytes | None
    scan: int  # offset of the SOS marker


_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15 less DHT, JPG, DAC
_NO_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})  # stuffing, TEM, RST0..7, SOI
_EOI, _SOS, _APP1, _APP2 = 0xD9, 0xDA, 0xE1, 0xE2


def jpeg_header(data: bytes) -> JpegHeader:
    """Walk the markers up to the main picture's scan (ITU-T T.81, annex B).

    Thumbnails are inside APP segments, which are skipped by their length. Bytes outside segments
    are skipped too, as in libjpeg.
    """
    frame: tuple[int, int, int, bool] | None = None
    orientation, icc = 1, {}
    position = 2
    try:
        while (position := data.find(b"\xff", position)) >= 0:
            position += 1
            marker = data[position]
            if marker == 0xFF or marker in _NO_LENGTH:
                continue
            if marker in (_SOS, _EOI):
                break
            length = data[position + 1] << 8 | data[position + 2]
            body = position + 3
            if marker in _FRAMES:
                bits, height, width, components = struct.unpack_from(">BHHB", data, body)
                frame = width, height, components, bits == 8 and marker <= 0xC2
            elif marker == _APP1 and data.startswith(b"Exif\0\0", body):
                orientation = exif_orientation(data[body + 6 : position + 1 + length])
            elif marker == _APP2 and data.startswith(b"ICC_PROFILE\0", body):
                icc[data[body + 12]] = data[body + 14 : position + 1 + length]
            position += 1 + length
    except (IndexError, struct.error):
        position = -1
    if position < 0:
        detail = f"expected a JPEG's scan, got the end of the file after {len(data)} bytes"
        raise PhotoRefused(Reason.TRUNCATED, detail)
    if frame is None or marker == _EOI:
        raise PhotoRefused(Reason.UNREADABLE, "expected a JPEG's frame and scan, got none")
    profile = b"".join(icc[part] for part in sorted(icc)) or None
    return JpegHeader(*frame, orientation, profile, position - 1)


_IMREAD = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2,  # BGR, there is no reduced RGB
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def decode_jpeg(data: bytes, factor: int) -> NDArray[np.uint8] | None:
    """RGB as stored, at 1/factor (rounded up); None if OpenCV cannot decode it."""
    picture = cv2.imdecode(
        np.frombuffer(data, np.uint8), _IMREAD[factor] | cv2.IMREAD_IGNORE_ORIENTATION
    )
    if picture is not None and factor > 1:
        picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return None if picture is None else np.asarray(picture, np.uint8)


def reduction_for(side: int, min_size: int | None) -> int:
    """The largest factor of 1, 2, 4, 8 that leaves at least 2 · min_size pixels of ``side``."""
    if min_size is None:
        return 1
    return next((n for n in (8, 4, 2) if -(-side // n) >= 2 * min_size), 1)
