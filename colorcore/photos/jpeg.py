"""A JPEG's header and pixels: the marker walk, and decoders at full or reduced size."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from colorcore.photos.containers import exif_orientation
from colorcore.photos.refusal import PhotoRefused, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


class JpegSegment(NamedTuple):
    """A marker and its data ``data[start:end]``, without the two bytes of the length."""

    marker: int
    start: int
    end: int


class JpegHeader(NamedTuple):
    """The data before a JPEG's first scan."""

    width: int
    height: int
    components: int
    common: bool  # 8 bits, baseline or progressive, Huffman: every decoder reads it
    orientation: int
    icc: bytes | None
    scan: int  # offset of the SOS marker


FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15 less DHT, JPG, DAC
_NO_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})  # stuffing, TEM, RST0..7, SOI
EOI, SOS, APP1, APP2 = 0xD9, 0xDA, 0xE1, 0xE2


def jpeg_segments(data: bytes) -> Iterator[JpegSegment]:
    """The segments before a JPEG's first scan (ITU-T T.81, annex B); the last one is SOS or EOI.

    Thumbnails are inside APP segments, which are skipped by their length. Bytes outside segments
    are skipped too, as in libjpeg.

    Raises:
        IndexError: the file ends within a marker or a length.
    """
    position = 2
    while (position := data.find(b"\xff", position)) >= 0:
        position += 1
        marker = data[position]
        if marker == 0xFF or marker in _NO_LENGTH:
            continue
        if marker in (SOS, EOI):
            yield JpegSegment(marker, position + 1, position + 1)
            return
        end = position + 1 + (data[position + 1] << 8 | data[position + 2])
        yield JpegSegment(marker, position + 3, end)
        position = end


def jpeg_header(data: bytes) -> JpegHeader:
    """Size, orientation and profile of a JPEG's main picture.

    Raises:
        PhotoRefused: there is no frame or no scan.
    """
    frame: tuple[int, int, int, bool] | None = None
    orientation, icc, scan = 1, {}, -1
    try:
        for marker, start, end in jpeg_segments(data):
            if marker in (SOS, EOI):
                scan = start - 2
            elif marker in FRAMES:
                bits, height, width, components = struct.unpack_from(">BHHB", data, start)
                frame = width, height, components, bits == 8 and marker <= 0xC2
            elif marker == APP1 and data.startswith(b"Exif\0\0", start):
                orientation = exif_orientation(data[start + 6 : end])
            elif marker == APP2 and data.startswith(b"ICC_PROFILE\0", start):
                icc[data[start + 12]] = data[start + 14 : end]
    except (IndexError, struct.error):
        scan = -1
    if scan < 0:
        detail = f"expected a JPEG's scan, got the end of the file after {len(data)} bytes"
        raise PhotoRefused(Reason.TRUNCATED, detail)
    if frame is None or data[scan + 1] == EOI:
        raise PhotoRefused(Reason.UNREADABLE, "expected a JPEG's frame and scan, got none")
    profile = b"".join(icc[part] for part in sorted(icc)) or None
    return JpegHeader(*frame, orientation, profile, scan)


def check_jpeg_end(data: bytes, header: JpegHeader) -> None:
    """Refuse a JPEG that has been cut off: decoders fill missing pixels with grey silently.

    Within a scan FF is always escaped, so the end marker cannot occur by chance. It is searched for
    from the end, but anywhere: cameras append data after it.
    """
    if data.rfind(b"\xff\xd9", header.scan) < 0:
        detail = f"expected a JPEG's end marker, got the end of the file after {len(data)} bytes"
        raise PhotoRefused(Reason.TRUNCATED, detail)


class JpegQuality(NamedTuple):
    """How lossy a JPEG is: what an encoder needs to write it so again.

    tables       quantization of the lightness and, if it has colours, of the colours; each 64
                 steps of 1..65,535, row by row
    sampling     of the colours: 4:4:4, 4:2:2 or 4:2:0; the next finer one for other kinds
    progressive  whether it is stored in several scans
    """

    tables: tuple[tuple[int, ...], ...]
    sampling: str
    progressive: bool


_DQT = 0xDB
_ROW_BY_ROW = np.argsort(
    sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))
)
"""Where each step is in the file's zigzag order (T.81, figure 5)."""


def jpeg_quality(data: bytes) -> JpegQuality | None:
    """The quality of a JPEG that :func:`jpeg_header` has read; None if its tables are damaged."""
    tables: dict[int, tuple[int, ...]] = {}
    frame, parts = 0, b""
    try:
        for marker, start, end in jpeg_segments(data):
            if marker == _DQT:
                tables |= _quantization(data[start:end])
            elif marker in FRAMES:
                frame, parts = marker, data[start + 6 : end]
        components = [
            (parts[i + 1] >> 4, parts[i + 1] & 15, parts[i + 2])
            for i in range(0, len(parts) - 2, 3)
        ][:2]
        chosen = tuple(tables[table] for _, _, table in components)
        sampling = _sampling(components)
    except (IndexError, KeyError, ValueError, struct.error, ZeroDivisionError):
        return None
    return JpegQuality(chosen, sampling, frame == 0xC2) if chosen else None


def _quantization(segment: bytes) -> dict[int, tuple[int, ...]]:
    """Tables by their number (T.81, B.2.4.1)."""
    tables, position = {}, 0
    while position < len(segment):
        wide, number = segment[position] >> 4, segment[position] & 15
        kind = np.dtype(">u2") if wide else np.dtype(np.uint8)
        steps = np.frombuffer(segment, kind, 64, position + 1)
        tables[number] = tuple(int(step) for step in np.maximum(steps, 1)[_ROW_BY_ROW])
        position += 1 + 64 * kind.itemsize
    return tables


def _sampling(components: list[tuple[int, int, int]]) -> str:
    """Of the colours, by the sampling factors of the first two components."""
    if len(components) < 2:
        return "4:2:0"
    (h, v, _), (colour_h, colour_v, _) = components
    across, down = h // colour_h, v // colour_v
    if across >= 2 and down >= 2:
        return "4:2:0"
    return "4:2:2" if across >= 2 else "4:4:4"


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


def decode_whole_jpeg(data: bytes, header: JpegHeader) -> NDArray[np.uint8] | None:
    """A common JPEG of one or three components as stored: (H, W) grey or (H, W, 3) RGB, uint8.

    None if it cannot be decoded. imagecodecs writes into an array of NumPy's, whose large pages
    spare the system a quarter of the CPU time that OpenCV's decoder takes; where it stops at a
    damaged place, OpenCV continues. Both are libjpeg-turbo, with the same pixels.
    """
    import imagecodecs

    grey = header.components == 1
    pixels = np.empty(
        (header.height, header.width) if grey else (header.height, header.width, 3), np.uint8
    )
    try:
        imagecodecs.jpeg8_decode(data, outcolorspace="GRAYSCALE" if grey else "RGB", out=pixels)
    except (imagecodecs.Jpeg8Error, ValueError):
        return _decode_grey_jpeg(data) if grey else decode_jpeg(data, 1)
    return pixels


def _decode_grey_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """The lightness of a JPEG of one component as stored, (H, W) uint8; None as above."""
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if picture is None else np.asarray(picture, np.uint8)


def reduction_for(side: int, min_size: int | None) -> int:
    """The largest factor of 1, 2, 4, 8 that leaves at least 2 · min_size pixels of ``side``."""
    if min_size is None:
        return 1
    return next((n for n in (8, 4, 2) if -(-side // n) >= 2 * min_size), 1)
