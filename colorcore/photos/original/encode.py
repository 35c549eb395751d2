"""Pictures as the bytes of a file, with what belongs to them; an sRGB profile is always embedded.

Each function takes pixels (H, W, 3) or, grey, (H, W), and metadata that hold for them. The same
input gives the same bytes.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from colorcore.photos.jpeg import APP1, APP2, JpegQuality, jpeg_quality
from colorcore.photos.original.exif import (
    Directory,
    Field,
    byte_order,
    descriptive,
    pack_directory,
    read_fields,
    shortened,
    swapped,
    with_software,
    without_orientation,
)
from colorcore.photos.original.metadata import (
    EXIF_MARK,
    PHOTOSHOP_MARK,
    XMP_KEYWORD,
    XMP_MARK,
    Metadata,
    iptc_resource,
)
from colorcore.photos.original.profiles import srgb_profile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from colorcore.photos.icc import Pixels

    Quality = JpegQuality | int | Literal["lossless"] | None

DEFAULT_QUALITY = 95
_SEGMENT = 65_533
"""Bytes of data that a JPEG's segment holds (T.81, B.1.1.4)."""
_SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


class Page(NamedTuple):
    """One page of a TIFF: pixels uint8 or uint16, alpha (H, W) of the same type or None."""

    pixels: Pixels
    alpha: Pixels | None = None
    metadata: Metadata = Metadata()


def signed(metadata: Metadata, software: str | None) -> Metadata:
    """The metadata with ``software`` as the program that made the picture."""
    if software is None:
        return metadata
    return replace(metadata, exif=with_software(metadata.exif, software))


# -- JPEG ------------------------------------------------------------------------------------------


def encode_jpeg(pixels: NDArray[np.uint8], metadata: Metadata, quality: Quality) -> bytes:
    """A JPEG with the tables and sampling of ``quality``, if it is another JPEG's.

    A grey JPEG's lightness keeps its table, and the colours get libjpeg's of about the same
    quality. A segment holds 64 kB: longer EXIF is reduced to names and dates, longer XMP left out.
    """
    options: dict[str, Any] = {"quality": DEFAULT_QUALITY, "subsampling": 0}
    if isinstance(quality, JpegQuality):
        tables = quality.tables
        if pixels.ndim == 3 and len(tables) == 1:
            tables = (*tables, _standard_tables(nearest_quality(tables[0]))[1])
        options = {"qtables": [list(table) for table in tables[: pixels.ndim - 1]]}
        options["subsampling"] = _SAMPLINGS[quality.sampling]
        options["progressive"] = quality.progressive
    elif isinstance(quality, int):
        options = {"quality": quality}
    image = Image.fromarray(pixels) if pixels.ndim == 2 else _without_copy(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return _with_segments(buffer.getbuffer(), metadata)


def _without_copy(rgb: NDArray[np.uint8]) -> Image.Image:
    """Pillow's image of RGB in its own layout of four bytes, which OpenCV makes twice as fast."""
    height, width = rgb.shape[:2]
    padded = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA), np.uint8)
    return Image.frombuffer("RGBX", (width, height), padded, "raw", "RGBX", 0, 1)


@cache
def _standard_tables(quality: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two tables that libjpeg uses for a quality of 1..100."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
    found = jpeg_quality(buffer.getvalue())
    assert found is not None  # noqa: S101 - libjpeg's own
    light, colour = found.tables
    return light, colour


def nearest_quality(table: Sequence[int]) -> int:
    """The quality 1..100 at which libjpeg's table for the lightness is nearest to a given one."""
    wanted = np.array(table)
    differences = [np.abs(_standard_tables(q)[0] - wanted).sum() for q in range(1, 101)]
    return int(np.argmin(differences)) + 1


def _with_segments(jpeg: bytes | memoryview, metadata: Metadata) -> bytes:
    """A JPEG of an encoder, which begins with a JFIF segment, with metadata and profile."""
    (length,) = struct.unpack_from(">H", jpeg, 4)
    jfif = bytearray(jpeg[2 : 4 + length])
    if metadata.dpi:
        x, y = (min(65535, max(1, round(value))) for value in metadata.dpi)
        struct.pack_into(">BHH", jfif, 11, 1, x, y)
    parts = [b"\xff\xd8", bytes(jfif)]
    if metadata.exif:
        fits = len(EXIF_MARK) + len(metadata.exif) <= _SEGMENT
        exif = metadata.exif if fits else shortened(metadata.exif)
        parts.append(_segment(APP1, EXIF_MARK + exif))
    if metadata.xmp:
        parts.append(_segment(APP1, XMP_MARK + metadata.xmp))
    parts.append(_segment(APP2, b"ICC_PROFILE\0\1\1" + srgb_profile()))
    if metadata.iptc:
        resource, room = iptc_resource(metadata.iptc), _SEGMENT - len(PHOTOSHOP_MARK)
        parts += [
            _segment(0xED, PHOTOSHOP_MARK + resource[at : at + room])
            for at in range(0, len(resource), room)
        ]
    return b"".join([*parts, jpeg[4 + length :]])


def _segment(marker: int, data: bytes) -> bytes:
    if len(data) > _SEGMENT:
        return b""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


# -- PNG -------------------------------------------------------------------------------------------


def encode_png(
    pixels: Pixels, alpha: Pixels | None, metadata: Metadata, software: str | None
) -> bytes:
    """A PNG of 8 or 16 bits."""
    written, png = cv2.imencode(".png", _for_opencv(pixels, alpha))
    if not written:
        raise ValueError("OpenCV cannot encode it")
    chunks = [_chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(srgb_profile(), 9))]
    if metadata.dpi:
        x, y = (min(2**31 - 1, max(1, round(value / 0.0254))) for value in metadata.dpi)
        chunks.append(_chunk(b"pHYs", struct.pack(">IIB", x, y, 1)))
    if metadata.exif:
        chunks.append(_chunk(b"eXIf", metadata.exif))
    if metadata.xmp:
        chunks.append(_chunk(b"iTXt", XMP_KEYWORD + bytes(5) + metadata.xmp))
    if metadata.iptc:
        resource = iptc_resource(metadata.iptc)
        text = f"\niptc\n{len(resource):8}\n{resource.hex()}\n".encode()
        chunks.append(_chunk(b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(text, 9)))
    chunks += [_chunk(text[:4], text[4:]) for text in metadata.texts]
    if software is not None:
        chunks.append(_chunk(b"tEXt", b"Software\0" + software.encode("latin-1", "replace")))
    view = memoryview(np.asarray(png, np.uint8).data)
    return b"".join([view[:33], *chunks, view[33:]])  # 8 bytes of signature, 25 of IHDR


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _for_opencv(pixels: Pixels, alpha: Pixels | None) -> Pixels:
    """BGR or BGRA, or grey without alpha."""
    if alpha is None:
        bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        return np.asarray(bgr, pixels.dtype)
    code = cv2.COLOR_GRAY2BGRA if pixels.ndim == 2 else cv2.COLOR_RGB2BGRA
    bgra = np.asarray(cv2.cvtColor(pixels, code), pixels.dtype)
    bgra[..., 3] = alpha
    return bgra


# -- TIFF ------------------------------------------------------------------------------------------


def encode_tiff(pages: Sequence[Page]) -> bytes:
    """A TIFF of one or more pages of 8 or 16 bits, compressed with Deflate.

    The numbers of its directories are in the order of the first page's EXIF.
    """
    from tifffile import TiffWriter

    orders = [byte_order(page.metadata.exif) for page in pages if page.metadata.exif]
    order: Literal["<", ">"] = ">" if orders[:1] == [">"] else "<"
    buffer = io.BytesIO()
    with TiffWriter(buffer, byteorder=order) as writer:
        for pixels, alpha, metadata in pages:
            x, y = metadata.dpi or (None, None)
            writer.write(
                pixels if alpha is None else np.dstack([pixels, alpha]),
                photometric="minisblack" if pixels.ndim == 2 else "rgb",
                planarconfig=None if pixels.ndim == 2 and alpha is None else "contig",
                extrasamples=None if alpha is None else ["unassalpha"],
                compression="zlib",
                predictor=True,
                resolution=(x, y) if x and y else None,
                resolutionunit=2 if x and y else None,
                software=False,
                metadata=None,
                iccprofile=srgb_profile(),
            )
    _add_tags(buffer, [page.metadata for page in pages], order)
    return buffer.getvalue()


def _add_tags(tiff: io.BytesIO, each: Sequence[Metadata], order: str) -> None:
    """Add each page's metadata to its directory, which moves to the end of the file."""
    with tiff.getbuffer() as view:
        classic = bytes(view[2:4]) in {b"*\0", b"\0*"}
    pointer = 4
    for metadata in each:
        if not classic:  # a BigTIFF, of more than 4 GB, stays without
            return
        with tiff.getbuffer() as view:
            (place,) = struct.unpack_from(order + "I", view, pointer)
            fields, following = read_fields(view, place)
            (next_place,) = struct.unpack_from(order + "I", view, following)
        added = _tags(metadata, order)
        directory = Directory({**added.fields, **fields}, added.below)
        end = tiff.seek(0, io.SEEK_END)
        place = end + (end & 1)
        packed = bytearray(pack_directory(directory, order, place))
        following = 2 + 12 * len(directory.fields.keys() | directory.below.keys())
        struct.pack_into(order + "I", packed, following, next_place)
        tiff.write(bytes(end & 1) + packed)
        tiff.seek(pointer)
        tiff.write(struct.pack(order + "I", place))
        pointer = place + following


def _tags(metadata: Metadata, order: str) -> Directory:
    fields: dict[int, Field] = {}
    below = {}
    if metadata.exif:
        try:
            found = descriptive(metadata.exif)
        except struct.error:
            found = Directory({}, {})
        found = found if byte_order(metadata.exif) == order else swapped(found)
        fields, below = dict(found.fields), dict(found.below)
    if metadata.xmp:
        fields[700] = Field(1, len(metadata.xmp), metadata.xmp)
    if metadata.iptc:
        fields[33723] = Field(7, len(metadata.iptc), metadata.iptc)
    return Directory(fields, below)


# -- others ----------------------------------------------------------------------------------------


def encode_with_pillow(
    name: str,
    pixels: NDArray[np.uint8],
    alpha: NDArray[np.uint8] | None,
    metadata: Metadata,
    quality: Quality,
) -> bytes:
    """A WebP or AVIF of 8 bits; neither holds IPTC or resolution."""
    options: dict[str, Any] = {"quality": quality if isinstance(quality, int) else DEFAULT_QUALITY}
    if name == "WEBP" and quality == "lossless":
        options = {"lossless": True, "exact": True}
    if metadata.exif:
        # Pillow would write EXIF with an orientation anew for AVIF, and break its texts.
        options["exif"] = EXIF_MARK + without_orientation(metadata.exif)
    if metadata.xmp:
        options["xmp"] = metadata.xmp
    image = Image.fromarray(pixels)
    if alpha is not None:
        image = image.convert("RGB")
        image.putalpha(Image.fromarray(alpha))
    buffer = io.BytesIO()
    image.save(buffer, name, icc_profile=srgb_profile(), **options)
    return buffer.getvalue()


def encode_bmp(pixels: NDArray[np.uint8], metadata: Metadata) -> bytes:
    """A BMP of 8 bits, which holds the resolution and nothing else."""
    buffer = io.BytesIO()
    dpi = metadata.dpi and tuple(min(value, 1e6) for value in metadata.dpi)
    options = {"dpi": dpi} if dpi else {}
    Image.fromarray(pixels).save(buffer, "BMP", **options)
    return buffer.getvalue()


_PPM_SOFTWARE = re.compile(rb"P[56]\n# (.{1,70})\n")


def encode_ppm(pixels: Pixels, software: str | None) -> bytes:
    """A PPM or, grey, a PGM of 8 or 16 bits, which holds a comment and nothing else."""
    kind = b"P5" if pixels.ndim == 2 else b"P6"
    comment = b"" if software is None else b"# " + software.encode("ascii", "replace") + b"\n"
    height, width = pixels.shape[:2]
    deep = pixels.dtype == np.uint16
    header = kind + b"\n" + comment + f"{width} {height}\n{65535 if deep else 255}\n".encode()
    return header + (pixels.astype(">u2") if deep else pixels).tobytes()


def ppm_software(data: bytes) -> str | None:
    """The software that :func:`encode_ppm` has named in the first bytes of a file."""
    match = _PPM_SOFTWARE.match(data)
    return match[1].decode("ascii", "replace") if match else None
