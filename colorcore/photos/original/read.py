"""Photos at full quality: any file's bytes -> its pictures, with all that belongs to them.

Unlike :func:`colorcore.photos.read.read_photo`, which prepares millions of photos for training,
:func:`read_original` keeps everything that colourizing should give back: every page of a TIFF, 16
bits where the file has them, grey as grey, transparency, EXIF, XMP, IPTC, resolution, and a JPEG's
own quality. It has the same limits and the same refusals.

``JPEG``         imagecodecs; damaged: OpenCV; CMYK and what is rare: Pillow
``PNG``          Pillow; 16 bits: OpenCV
``TIFF``         tifffile; palettes, bits and JPEG in TIFF: Pillow
``PGM, PPM``     :mod:`colorcore.photos.original.netpbm`
``all others``   Pillow, with its plugins for HEIC and JPEG XL where they are installed; AVIF of
more than 8 bits: imagecodecs. Of JPEG XL, 8 bits are read.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Literal

from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from colorcore.photos.containers import exif_orientation, is_lossless_webp, webp_size
from colorcore.photos.jpeg import (
    JpegQuality,
    check_jpeg_end,
    decode_whole_jpeg,
    jpeg_header,
    jpeg_quality,
)
from colorcore.photos.original.metadata import (
    Metadata,
    jpeg_metadata,
    pillow_metadata,
    png_metadata,
    reset,
    tiff_metadata,
)
from colorcore.photos.original.netpbm import netpbm_header, netpbm_pixels
from colorcore.photos.original.pillow import (
    Straight,
    deep_png,
    deep_still,
    is_deep_png,
    pillow_limit_raised,
    png_bits,
    still_bits,
    straight,
    tiff_bits,
)
from colorcore.photos.original.profiles import inks_to_srgb, pixels_to_srgb
from colorcore.photos.original.tiff import (
    is_plain,
    open_tiff,
    page_pixels,
    page_size,
    page_tags,
    picture_pages,
)
from colorcore.photos.read import (
    DEFAULT_LIMITS,
    check_bytes,
    check_layout,
    check_limits,
    forget_xmp,
    load_image,
    open_image,
    pillow_orientation,
    refusing,
    sniff,
    upright,
)
from colorcore.photos.refusal import PhotoLimits, PhotoRefused, Reason

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

    from colorcore.photos.icc import Pixels


@dataclass(frozen=True, slots=True, eq=False)
class Original:
    """One picture of a file, at full quality.

    pixels    (H, W, 3) or, grey, (H, W); uint8 or uint16 sRGB, upright
    alpha     (H, W) of the same type, not multiplied into the pixels; None if all are opaque
    format    of the file: JPEG, PNG, TIFF, WEBP, BMP, GIF, AVIF, PPM, HEIF or JXL
    bits      per channel in the file: 1..16; pixels of more than 8 bits fill 16
    metadata  what else belongs to the picture, true for these pixels
    quality   how lossy the file is, to be written so again; None if its format leaves no choice
    """

    pixels: Pixels
    alpha: Pixels | None
    format: str
    bits: int
    metadata: Metadata
    quality: JpegQuality | Literal["lossless"] | None = None


class Originals:
    """The pictures of a file, each decoded as the iteration reaches it: a TIFF may have many."""

    def __init__(self, name: str, data: bytes, pages: list[Callable[[], Original]]) -> None:
        self._name, self._data, self._pages = name, data, pages

    def __len__(self) -> int:
        return len(self._pages)

    def __iter__(self) -> Iterator[Original]:
        """Decode the pictures.

        Raises:
            PhotoRefused: the only exception for any bytes; it holds the reason.
        """
        for page in self._pages:
            with refusing(self._name, self._data):
                original = page()
            yield original


def read_original(data: bytes, *, limits: PhotoLimits = DEFAULT_LIMITS) -> Originals:
    """The pictures in a file's bytes: every page of a TIFF, the first frame of an animation.

    Thumbnails and masks among a TIFF's pages are left out. ``limits`` hold for each picture, are
    checked before its pixels are decoded, and may be as high as memory allows.

    Raises:
        PhotoRefused: the only exception for any bytes, here or in the iteration.
    """
    check_bytes(data, limits)
    plugin = sniff(data) or _optional_plugin(data)
    if plugin is None:
        detail = f"expected a photo in a known format, got {data[:12]!r}…"
        raise PhotoRefused(Reason.UNREADABLE, detail)
    if plugin is TiffImageFile:
        with refusing("TIFF", data), open_tiff(data) as file:
            numbers = picture_pages(file)
        return Originals("TIFF", data, [partial(_read_tiff, data, limits, n) for n in numbers])
    read = _READERS.get(plugin) or partial(_read_other, plugin)
    return Originals(str(plugin.format), data, [partial(read, data, limits)])


_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
_JXL_BOX = b"\0\0\0\x0cJXL \r\n\x87\n"


def _optional_plugin(data: bytes) -> type[ImageFile] | None:
    """Pillow's class for HEIC or JPEG XL.

    Raises:
        PhotoRefused: the file is one of these, and its decoder is not installed.
    """
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        name, module, plugin = "HEIC", "pillow_heif", "HeifImageFile"
    elif data.startswith((b"\xff\x0a", _JXL_BOX)):
        name, module, plugin = "JPEG XL", "pillow_jxl.JpegXLImagePlugin", "JXLImageFile"
    else:
        return None
    found = _plugin(module, plugin)
    if found is None:
        detail = f"expected a decoder for {name}, got none; install colorcore[formats]"
        raise PhotoRefused(Reason.UNREADABLE, detail)
    return found


@cache
def _plugin(module: str, name: str) -> type[ImageFile] | None:
    try:
        found: type[ImageFile] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None
    return found


def _finished(
    name: str,
    pixels: Straight,
    orientation: int,
    bits: int,
    metadata: Metadata,
    quality: JpegQuality | Literal["lossless"] | None = None,
) -> Original:
    turned = orientation >= 5
    alpha = None if pixels.alpha is None else upright(pixels.alpha, orientation)
    kept = reset(metadata, turned=turned)
    return Original(upright(pixels.pixels, orientation), alpha, name, bits, kept, quality)


def _read_jpeg(data: bytes, limits: PhotoLimits) -> Original:
    header = jpeg_header(data)
    check_limits(header.width, header.height, limits)
    check_jpeg_end(data, header)
    if header.common and header.components in {1, 3}:
        decoded = decode_whole_jpeg(data, header)
        if decoded is None or decoded.shape[:2] != (header.height, header.width):
            got = "no picture" if decoded is None else str(decoded.shape[:2])
            detail = f"expected a JPEG of {(header.height, header.width)}, got {got}"
            raise PhotoRefused(Reason.UNREADABLE, detail)
        pixels = Straight(pixels_to_srgb(decoded, header.icc), None)
    else:
        _, pixels, _ = _decode(JpegImageFile, data, limits)
    metadata = jpeg_metadata(data)
    return _finished("JPEG", pixels, header.orientation, 8, metadata, jpeg_quality(data))


def _decode(
    plugin: type[ImageFile], data: bytes, limits: PhotoLimits, page: int = 0
) -> tuple[ImageFile, Straight, Metadata]:
    """A picture that Pillow decodes, as it turns it, and the metadata that Pillow finds."""
    size = webp_size(data) if plugin is WebPImageFile else None
    if size:
        check_limits(*size, limits)  # Pillow allocates the canvas as it opens the file
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, and of bombs by its own limit.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with pillow_limit_raised(math.prod(size or ())):
            image = open_image(plugin, data)
        if page:
            image.seek(page)
        check_limits(*image.size, limits)
        check_layout(image, data, limits)
        xmp = image.info.get("xmp")
        forget_xmp(image)
        with pillow_limit_raised(image.width * image.height):
            image = load_image(image, data)
        metadata = pillow_metadata(image, xmp)
        return image, straight(image, data), metadata


def _read_png(data: bytes, limits: PhotoLimits) -> Original:
    metadata = png_metadata(data)
    if is_deep_png(data):
        image = open_image(PngImageFile, data)
        check_limits(*image.size, limits)
        check_layout(image, data, limits)
        pixels = deep_png(data)
    else:
        _, pixels, _ = _decode(PngImageFile, data, limits)
    orientation = exif_orientation(metadata.exif or b"")
    return _finished("PNG", pixels, orientation, png_bits(data), metadata)


def _read_tiff(data: bytes, limits: PhotoLimits, number: int) -> Original:
    with open_tiff(data) as file:
        size = page_size(file, number)
        check_limits(*size, limits)
        metadata = tiff_metadata(data, *page_tags(file, number))
        if is_plain(file, number):
            page = page_pixels(file, number, limits, len(data))
            inks = page.pixels.ndim == 3 and page.pixels.shape[2] == 4
            convert = inks_to_srgb if inks else pixels_to_srgb
            pixels = Straight(convert(page.pixels, page.icc), page.alpha)
            return _finished("TIFF", pixels, page.orientation, page.bits, metadata)
    image, pixels, _ = _decode(TiffImageFile, data, limits, number)
    turned = size != image.size  # by Pillow, except for squares, whose metadata stay the same
    return Original(*pixels, "TIFF", tiff_bits(image), reset(metadata, turned=turned))


def _read_other(plugin: type[ImageFile], data: bytes, limits: PhotoLimits) -> Original:
    image, pixels, metadata = _decode(plugin, data, limits)
    # The decoders of HEIC and JPEG XL turn photos themselves.
    orientation = 1 if image.format in {"HEIF", "JXL"} else pillow_orientation(image)
    quality: Literal["lossless"] | None = None
    if plugin is WebPImageFile and is_lossless_webp(data):
        quality = "lossless"
    bits = still_bits(image, data)
    if bits > 8:
        pixels = deep_still(image, data, bits)
    return _finished(str(image.format), pixels, orientation, bits, metadata, quality)


def _read_netpbm(data: bytes, limits: PhotoLimits) -> Original:
    header = netpbm_header(data)
    check_limits(header.width, header.height, limits)
    pixels = netpbm_pixels(data, header)
    return Original(pixels, None, "PPM", header.top.bit_length(), Metadata())


_READERS = {JpegImageFile: _read_jpeg, PngImageFile: _read_png, PpmImageFile: _read_netpbm}
