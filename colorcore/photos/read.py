"""Photos: any file's bytes -> an sRGB array, or one reason why not.

Millions of files out of the wild go through :func:`read_photo`, so it makes three promises:

- The pixels are what a viewer shows: EXIF orientation applied, ICC profile converted to sRGB,
  CMYK, palettes and 16 bits resolved, transparency laid over white.
- Sizes are read from the header and checked before a pixel is decoded.
- Whatever the bytes, the only exception is :class:`PhotoRefused`, with a :class:`Reason`.

Two ways lead through it. Nearly every photo is a plain JPEG: a walk over its markers (some
microseconds) yields size, orientation and profile, and OpenCV decodes it. Everything else is
Pillow's. The content decides which, never the suffix.

``plain JPEG``   :func:`_jpeg_header` -> limits -> OpenCV -> :mod:`colorcore.photos.icc` ->
orientation
``other files``  Pillow's header -> limits -> Pillow's pixels -> :func:`_flatten` -> orientation
"""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from PIL import Image, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from colorcore.photos.icc import convert, convert_image
from colorcore.photos.refusal import PhotoLimits, PhotoRefused, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

PHOTO_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"]
    + ([".avif"] if features.check("avif") else [])
)
"""Lower-case suffixes by which a listing of a folder takes a file for a photo."""


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A decoded photo.

    rgb (H, W, 3) uint8 sRGB, C-contiguous; width and height are the photo's own, upright: H and
    W are smaller when the photo was decoded reduced.
    """

    rgb: NDArray[np.uint8]
    width: int
    height: int


DEFAULT_LIMITS = PhotoLimits()


def read_photo(
    data: bytes, *, limits: PhotoLimits = DEFAULT_LIMITS, min_size: int | None = None
) -> Photo:
    """The photo in a file's bytes, upright and in sRGB.

    ``min_size``: the caller needs no more than this many pixels on the shorter side. A JPEG is
    then decoded at 1/2, 1/4 or 1/8 by the largest factor that leaves twice as many (decoding
    closer to the target would cost fidelity). None decodes every pixel.

    Raises:
        PhotoRefused: always with a reason, and the only exception for any bytes.
    """
    if not data:
        raise PhotoRefused(Reason.EMPTY, "expected a photo, got a file of 0 bytes")
    if len(data) > limits.max_bytes:
        detail = f"expected at most {limits.max_bytes} bytes, got {len(data)}"
        raise PhotoRefused(Reason.TOO_LARGE, detail)
    plugin = _sniff(data)
    if plugin is None:
        detail = f"expected JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF, got {data[:12]!r}…"
        raise PhotoRefused(Reason.UNREADABLE, detail)
    try:
        if plugin is JpegImageFile:
            return _read_jpeg(data, limits, min_size)
        return _read_with_pillow(plugin, data, limits)
    except PhotoRefused:
        raise
    except Exception as error:
        # Decoders meet damage with nearly any exception: OSError, SyntaxError, struct.error, …
        said = " ".join(f"{type(error).__name__} {error}".split())[:200]
        if isinstance(error, _OUT_OF_MEMORY) or getattr(error, "code", 0) == cv2.Error.StsNoMem:
            reason, expected = Reason.BOMB, "pixels that fit into memory"
        elif "truncated" in said or _ends_early(data):
            reason, expected = Reason.TRUNCATED, f"a whole {plugin.format} file"
        else:
            reason, expected = Reason.UNREADABLE, f"a sound {plugin.format} file"
        raise PhotoRefused(reason, f"expected {expected}, got {said}") from error


_OUT_OF_MEMORY = (MemoryError, Image.DecompressionBombError)


def square(rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The largest centred square, antialiased. rgb (H, W, 3) uint8 -> (size, size, 3) uint8."""
    height, width = rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = rgb[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(crop)
    if side > size:
        return _area_mean(crop, size)
    return np.asarray(cv2.resize(crop, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)


def _area_mean(rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The mean colour of each cell of a grid. rgb (S, S, 3) uint8, S > size -> (size, size, 3).

    On x86 OpenCV has a kernel of Intel's IPP for this, twice as fast. It has to be asked for, as
    its sums are not OpenCV's bit for bit: of the stored bytes of 1,000 photos 0.06% are another
    one, by one level, and either is as near to the exact mean. Its AVX2 and AVX-512 give the
    same bytes; SSE4.2, and other processors, round a few otherwise.
    """
    cv2.ipp.setUseIPP_NotExact(True)  # this thread's alone
    try:
        return np.asarray(cv2.resize(rgb, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
    finally:
        cv2.ipp.setUseIPP_NotExact(False)


def _sniff(data: bytes) -> type[ImageFile] | None:
    """Pillow's class for the format that the first bytes announce.

    The classes are used directly: ``Image.open`` would try every plugin (PostScript through
    Ghostscript among them), and it warns of bombs by limits that are not the caller's.
    """
    for magic, plugin in (
        (b"\xff\xd8\xff", JpegImageFile),
        (b"\x89PNG\r\n\x1a\n", PngImageFile),
        (b"GIF87a", GifImageFile),
        (b"GIF89a", GifImageFile),
        (b"II*\0", TiffImageFile),
        (b"MM\0*", TiffImageFile),
        (b"II+\0", TiffImageFile),  # BigTIFF
        (b"MM\0+", TiffImageFile),
    ):
        if data.startswith(magic):
            return plugin
    if data.startswith(b"BM") and data[15:18] == b"\0\0\0":  # the size of a small second header
        return BmpImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    if data[4:8] == b"ftyp" and data[8:12] in {b"avif", b"avis", b"mif1", b"msf1"}:
        return AvifImageFile
    return None


def _check_limits(width: int, height: int, limits: PhotoLimits) -> None:
    short, long = sorted((width, height))
    if short < 1:
        raise PhotoRefused(Reason.UNREADABLE, f"expected pixels, got {width}x{height}")
    if short * long > limits.max_pixels:
        detail = f"expected at most {limits.max_pixels} pixels, got {width}x{height}"
        raise PhotoRefused(Reason.BOMB, detail)
    if short < limits.min_side:
        detail = f"expected {limits.min_side} pixels or more a side, got {width}x{height}"
        raise PhotoRefused(Reason.TOO_SMALL, detail)
    if long > limits.max_aspect * short:
        detail = f"expected sides within {limits.max_aspect:g}:1, got {width}x{height}"
        raise PhotoRefused(Reason.TOO_NARROW, detail)


def _upright(rgb: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The photo turned by its EXIF orientation (tag 0x0112; CIPA DC-008, table 6), contiguous."""
    if orientation >= 5:  # stored with rows and columns exchanged
        rgb = np.asarray(cv2.transpose(rgb), np.uint8)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return rgb if flip is None else np.asarray(cv2.flip(rgb, flip), np.uint8)


# ------------------------------------------------------------------------------------- JPEG


class _JpegHeader(NamedTuple):
    """What stands before a JPEG's first scan."""

    width: int
    height: int
    components: int
    common: bool  # 8 bits, baseline or progressive, Huffman: what every decoder knows
    orientation: int
    icc: bytes | None
    scan: int  # offset of the SOS marker


_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15 less DHT, JPG, DAC
_NO_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})  # stuffing, TEM, RST0..7, SOI
_EOI, _SOS, _APP1, _APP2 = 0xD9, 0xDA, 0xE1, 0xE2


def _jpeg_header(data: bytes) -> _JpegHeader:
    """Walk the markers up to the main picture's scan (ITU-T T.81, annex B).

    Thumbnails hide inside APP segments, which are stepped over by their length. As libjpeg does,
    bytes that belong to no segment are skipped.
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
                orientation = _exif_orientation(data[body + 6 : position + 1 + length])
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
    return _JpegHeader(*frame, orientation, profile, position - 1)


def _read_jpeg(data: bytes, limits: PhotoLimits, min_size: int | None) -> Photo:
    header = _jpeg_header(data)
    _check_limits(header.width, header.height, limits)
    # Decoders fill up what is missing with grey and keep silent about it. Within a scan FF is
    # always escaped, so that the end marker cannot occur by chance. Cameras append things to it.
    if data.rfind(b"\xff\xd9", header.scan) < 0:
        detail = f"expected a JPEG's end marker, got the end of the file after {len(data)} bytes"
        raise PhotoRefused(Reason.TRUNCATED, detail)
    grey = header.components == 1
    if not header.common or not (header.components == 3 or (grey and header.icc is None)):
        return _read_with_pillow(JpegImageFile, data, limits)

    factor = _reduction(min(header.width, header.height), min_size)
    rgb = _decode_jpeg(data, factor)
    expected = (-(-header.height // factor), -(-header.width // factor), 3)
    if rgb is None or rgb.shape != expected:
        got = "no picture" if rgb is None else str(rgb.shape)
        raise PhotoRefused(Reason.UNREADABLE, f"expected a JPEG of {expected}, got {got}")
    rgb = _upright(convert(rgb, header.icc), header.orientation)
    turned = header.orientation >= 5
    width, height = (header.height, header.width) if turned else (header.width, header.height)
    return Photo(rgb, width, height)


_IMREAD = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2,  # BGR, there is no reduced RGB
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def _decode_jpeg(data: bytes, factor: int) -> NDArray[np.uint8] | None:
    """RGB as stored, at 1/factor (rounded up); None when OpenCV cannot."""
    picture = cv2.imdecode(
        np.frombuffer(data, np.uint8), _IMREAD[factor] | cv2.IMREAD_IGNORE_ORIENTATION
    )
    if picture is not None and factor > 1:
        picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return None if picture is None else np.asarray(picture, np.uint8)


def _reduction(side: int, min_size: int | None) -> int:
    """The largest of 1, 2, 4, 8 by which ``side`` may shrink and keep 2 · min_size pixels."""
    if min_size is None:
        return 1
    return next((n for n in (8, 4, 2) if -(-side // n) >= 2 * min_size), 1)


# -------------------------------------------------------------------- EXIF and TIFF directories


class _Entry(NamedTuple):
    """One entry of a TIFF directory: its values are ``size`` bytes at ``start``."""

    tag: int
    format: str  # of struct, for all its values; empty when they are not unsigned integers
    size: int
    start: int


_TIFF_TYPES = {1: ("B", 1), 2: ("", 1), 3: ("H", 2), 4: ("I", 4), 5: ("", 8), 7: ("", 1)}
"""Of the types in TIFF 6.0, §2: struct's letter for unsigned integers, and bytes a value."""


def _tiff_entries(tiff: bytes) -> Iterator[_Entry]:
    """The first directory of a TIFF stream, which is also what an EXIF block is.

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


def _exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 of an EXIF block; 1 (upright) where it is absent or damaged."""
    try:
        for entry in _tiff_entries(exif):
            if entry.tag == 0x0112 and entry.format:
                orientation = struct.unpack_from(entry.format, exif, entry.start)[0]
                return orientation if 1 <= orientation <= 8 else 1
    except (IndexError, struct.error):
        pass
    return 1


def _ends_early(data: bytes) -> bool:
    """Whether a file announces more bytes than it has, by the lengths and marks of its format."""
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
    """AVIF is a row of boxes, each of which begins with its length (ISO/IEC 14496-12)."""
    position = 0
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if length < 8:  # 0 to the end, 1 a 64-bit length, else damage: cannot be told
            return False
        position += length
    return position > len(data)


def _tiff_ends_early(data: bytes) -> bool:
    """Whether something a TIFF needs lies beyond its end: baseline tags, profile, strips, tiles."""
    where: dict[int, tuple[int, ...]] = {}
    for entry in _tiff_entries(data):
        needed = entry.tag < 0x8000 or entry.tag == 34675
        if needed and entry.start + entry.size > len(data):
            return True
        if entry.tag in {273, 279, 324, 325} and entry.format:  # offsets and lengths
            where[entry.tag] = struct.unpack_from(entry.format, data, entry.start)
    offsets = where.get(273) or where.get(324) or ()
    lengths = where.get(279) or where.get(325) or ()
    return any(at + n > len(data) for at, n in zip(offsets, lengths, strict=False))


# ------------------------------------------------------------------------------ other formats


def _read_with_pillow(plugin: type[ImageFile], data: bytes, limits: PhotoLimits) -> Photo:
    if plugin is WebPImageFile and (size := _webp_size(data)):
        _check_limits(*size, limits)  # Pillow allocates the canvas as it opens the file
    with warnings.catch_warnings():
        # Warnings of odd metadata, and of bombs by a limit of Pillow's own. Filters belong to the
        # whole process: should threads race here, only Pillow's warnings can stay switched off.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        image = plugin(BytesIO(data))
        _check_limits(*image.size, limits)
        _check_layout(image, data, limits)
        image.load()
        orientation = _pillow_orientation(image)
        rgb = _upright(_flatten(image), orientation)
    return Photo(rgb, rgb.shape[1], rgb.shape[0])


def _webp_size(data: bytes) -> tuple[int, int] | None:
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


def _check_layout(image: ImageFile, data: bytes, limits: PhotoLimits) -> None:
    """Refuse what Pillow would decode without a word, but incomplete, wrongly or at any cost."""
    if isinstance(image, PngImageFile | TiffImageFile) and _ends_early(data):
        detail = f"expected a whole {image.format} file, got its end after {len(data)} bytes"
        raise PhotoRefused(Reason.TRUNCATED, detail)
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        bits = max(tags.get(258, (1,)))
        if bits > 8 and tags.get(284, 1) == 2:
            detail = f"expected interleaved channels in a TIFF of {bits} bits, got planes"
            raise PhotoRefused(Reason.UNREADABLE, detail)
        width, height = tags.get(322, 0), tags.get(323, 0)
        if width * height > limits.max_pixels:
            detail = f"expected tiles of at most {limits.max_pixels} pixels, got {width}x{height}"
            raise PhotoRefused(Reason.BOMB, detail)


def _pillow_orientation(image: ImageFile) -> int:
    """EXIF orientation of an image that Pillow has loaded (and has turned, if a TIFF)."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:
        return 1  # a damaged EXIF block does not spoil the picture
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _flatten(image: Image.Image) -> NDArray[np.uint8]:
    """Opaque sRGB of any picture that Pillow has loaded. -> (H, W, 3) uint8."""
    icc = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        return convert_image(Image.fromarray(_grey8(image)), icc)
    if image.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}:
        detail = f"expected RGB, grey, palette or CMYK of 8 or 16 bits, got mode {image.mode}"
        raise PhotoRefused(Reason.UNREADABLE, detail)
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        grey = image.mode in {"1", "L", "LA"}
        colour = image.convert("L") if grey else image.convert("RGBA").convert("RGB")
        opaque = Image.fromarray(convert_image(colour, icc))
        white = Image.new("RGB", image.size, "white")
        return np.array(Image.composite(opaque, white, alpha))
    if image.mode not in {"L", "CMYK", "RGB"}:
        image = image.convert("L" if image.mode == "1" else "RGB")
    return convert_image(image, icc)


def _grey8(image: Image.Image) -> NDArray[np.uint8]:
    """Eight bits of up to sixteen, scaled: Pillow's own conversion clips. -> (H, W) uint8."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    top = (1 << tags.get(258, (16,))[0]) - 1
    grey = np.asarray(cv2.convertScaleAbs(np.asarray(image, np.uint16), alpha=255 / top), np.uint8)
    white_is_zero = tags.get(262) == 0  # Pillow inverts these at 8 bits only
    return 255 - grey if white_is_zero else grey
