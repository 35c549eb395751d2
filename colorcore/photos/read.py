"""Photos: any file's bytes -> an sRGB array, or one reason for refusal.

:func:`read_photo` reads millions of files from anywhere, so it guarantees three things:

- The pixels are what a viewer shows: EXIF orientation applied, ICC profile converted to sRGB,
  CMYK, palettes and 16 bits resolved, transparency composited over white.
- Sizes are read from the header and checked before any pixel is decoded.
- For any bytes, the only exception is :class:`PhotoRefused`, with a :class:`Reason`.

There are two paths. Nearly every photo is a plain JPEG: a walk over its markers (microseconds)
yields size, orientation and profile, and OpenCV decodes it. Pillow reads everything else. The
content decides, never the suffix.

``plain JPEG``   :func:`jpeg_header` -> limits -> OpenCV -> :mod:`colorcore.photos.icc` ->
orientation
``other files``  Pillow's header -> limits -> Pillow's pixels -> :func:`_flatten` -> orientation
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from PIL import Image, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from colorcore.photos.containers import (
    ends_early,
    pixels_damaged,
    webp_size,
    without_metadata,
)
from colorcore.photos.icc import convert, convert_image, in_bands
from colorcore.photos.jpeg import check_jpeg_end, decode_jpeg, jpeg_header, reduction_for
from colorcore.photos.original.netpbm import is_netpbm, netpbm_header, netpbm_pixels
from colorcore.photos.refusal import PhotoLimits, PhotoRefused, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

PHOTO_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"]
    + [".pbm", ".pgm", ".ppm", ".pnm"]
    + ([".avif"] if features.check("avif") else [])
)
"""Lower-case suffixes of the files that a folder's listing takes as photos."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedPhoto:
    """A decoded photo.

    rgb (H, W, 3) uint8 sRGB, C-contiguous; width and height are those of the whole photo, upright:
    H and W are smaller if it was decoded at a reduced size.
    """

    rgb: NDArray[np.uint8]
    width: int
    height: int


DEFAULT_LIMITS = PhotoLimits()
Pixel = TypeVar("Pixel", bound=np.unsignedinteger[Any])
"""The type of a picture's channels."""


def read_photo(
    data: bytes, *, limits: PhotoLimits = DEFAULT_LIMITS, min_size: int | None = None
) -> DecodedPhoto:
    """The photo in a file's bytes, upright and in sRGB.

    ``min_size``: the number of pixels that the caller needs on the shorter side. A JPEG is then
    decoded at 1/2, 1/4 or 1/8, the smallest size that leaves at least twice as many (decoding
    closer to the target would cost fidelity). None decodes every pixel.

    Raises:
        PhotoRefused: the only exception for any bytes; it holds the reason.
    """
    check_bytes(data, limits)
    plugin = sniff(data)
    if plugin is None:
        detail = f"expected JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or PPM, got {data[:12]!r}…"
        raise PhotoRefused(Reason.UNREADABLE, detail)
    with refusing(str(plugin.format), data):
        if plugin is JpegImageFile:
            return _read_jpeg(data, limits, min_size)
        if plugin is PpmImageFile:
            return _read_netpbm(data, limits)
        return _read_with_pillow(plugin, data, limits)


@contextmanager
def refusing(name: str, data: bytes) -> Iterator[None]:
    """Turn every exception of a decoder into a refusal; ``name`` is the format.

    Decoders raise nearly any exception on damage: OSError, SyntaxError, struct.error, …
    """
    try:
        yield
    except PhotoRefused:
        raise
    except Exception as error:
        raise _as_refusal(error, name, data) from error


def _as_refusal(error: Exception, name: str, data: bytes) -> PhotoRefused:
    said = " ".join(f"{type(error).__name__} {error}".split())[:200]
    if isinstance(error, _OUT_OF_MEMORY) or getattr(error, "code", 0) == cv2.Error.StsNoMem:
        reason, expected = Reason.BOMB, "pixels that fit into memory"
    elif "truncated" in said or ends_early(data):
        reason, expected = Reason.TRUNCATED, f"a whole {name} file"
    else:
        reason, expected = Reason.UNREADABLE, f"an undamaged {name} file"
    return PhotoRefused(reason, f"expected {expected}, got {said}")


def photo_header(data: bytes) -> tuple[str, int, int]:
    """Format ("JPEG", "PNG", …), width and height as stored of a photo, without decoding pixels.

    Raises:
        PhotoRefused: the only exception for any bytes: they are no photo, or its header is damaged.
    """
    plugin = sniff(data)
    try:
        if plugin is None:
            raise ValueError(f"{data[:12]!r}…")
        if plugin is JpegImageFile:
            header = jpeg_header(data)
            return "JPEG", header.width, header.height
        size = webp_size(data) if plugin is WebPImageFile else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            if plugin is PpmImageFile:
                size = netpbm_header(data)[1:3]
            width, height = size or open_image(plugin, data).size
        return str(plugin.format), width, height
    except PhotoRefused:
        raise
    except Exception as error:  # as in read_photo
        said = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise PhotoRefused(Reason.UNREADABLE, f"expected a photo's header, got {said}") from error


_OUT_OF_MEMORY = (MemoryError, Image.DecompressionBombError)


def sniff(data: bytes) -> type[ImageFile] | None:
    """Pillow's class for the format of the first bytes.

    The classes are used directly: ``Image.open`` would try every plugin (including PostScript
    through Ghostscript), and warns of bombs by its own limits instead of the caller's.
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
    if data.startswith(b"BM") and data[15:18] == b"\0\0\0":  # its second header is short
        return BmpImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    if is_netpbm(data):
        return PpmImageFile
    if data[4:8] == b"ftyp" and data[8:12] in {b"avif", b"avis", b"mif1", b"msf1"}:
        return AvifImageFile
    return None


def check_bytes(data: bytes, limits: PhotoLimits) -> None:
    """Refuse an empty file, and one over the limit on bytes."""
    if not data:
        raise PhotoRefused(Reason.EMPTY, "expected a photo, got a file of 0 bytes")
    if len(data) > limits.max_bytes:
        detail = f"expected at most {limits.max_bytes} bytes, got {len(data)}"
        raise PhotoRefused(Reason.TOO_LARGE, detail)


def check_limits(width: int, height: int, limits: PhotoLimits) -> None:
    """Refuse a picture of a size outside the limits."""
    short, long = sorted((width, height))
    if short < 1:
        raise PhotoRefused(Reason.UNREADABLE, f"expected pixels, got {width}x{height}")
    if short * long > limits.max_pixels:
        detail = f"expected at most {limits.max_pixels} pixels, got {width}x{height}"
        raise PhotoRefused(Reason.BOMB, detail)
    if short < limits.min_side:
        detail = f"expected {limits.min_side} pixels or more per side, got {width}x{height}"
        raise PhotoRefused(Reason.TOO_SMALL, detail)
    if long > limits.max_aspect * short:
        detail = f"expected sides within {limits.max_aspect:g}:1, got {width}x{height}"
        raise PhotoRefused(Reason.TOO_NARROW, detail)


def upright(picture: NDArray[Pixel], orientation: int) -> NDArray[Pixel]:
    """The picture turned by its EXIF orientation (tag 0x0112; CIPA DC-008, table 6), contiguous.

    picture (H, W) or (H, W, 3), uint8 or uint16.
    """
    if orientation >= 5:  # stored with rows and columns exchanged
        picture = np.asarray(cv2.transpose(picture), picture.dtype)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return picture if flip is None else np.asarray(cv2.flip(picture, flip), picture.dtype)


def _read_jpeg(data: bytes, limits: PhotoLimits, min_size: int | None) -> DecodedPhoto:
    header = jpeg_header(data)
    check_limits(header.width, header.height, limits)
    check_jpeg_end(data, header)
    grey = header.components == 1
    if not header.common or not (header.components == 3 or (grey and header.icc is None)):
        return _read_with_pillow(JpegImageFile, data, limits)

    factor = reduction_for(min(header.width, header.height), min_size)
    rgb = decode_jpeg(data, factor)
    expected = (-(-header.height // factor), -(-header.width // factor), 3)
    if rgb is None or rgb.shape != expected:
        got = "no picture" if rgb is None else str(rgb.shape)
        raise PhotoRefused(Reason.UNREADABLE, f"expected a JPEG of {expected}, got {got}")
    rgb = upright(convert(rgb, header.icc), header.orientation)
    turned = header.orientation >= 5
    width, height = (header.height, header.width) if turned else (header.width, header.height)
    return DecodedPhoto(rgb, width, height)


def _read_with_pillow(plugin: type[ImageFile], data: bytes, limits: PhotoLimits) -> DecodedPhoto:
    if plugin is WebPImageFile and (size := webp_size(data)):
        check_limits(*size, limits)  # Pillow allocates the canvas as it opens the file
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, and of bombs by its own limit. Filters belong to the whole
        # process: if threads race here, at worst Pillow's warnings stay switched off.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        image = open_image(plugin, data)
        check_limits(*image.size, limits)
        check_layout(image, data, limits)
        forget_xmp(image)
        image = load_image(image, data)
        orientation = pillow_orientation(image)
        rgb = upright(_flatten(image, keyed_alpha(image, data)), orientation)
    return DecodedPhoto(rgb, rgb.shape[1], rgb.shape[0])


def _read_netpbm(data: bytes, limits: PhotoLimits) -> DecodedPhoto:
    header = netpbm_header(data)
    check_limits(header.width, header.height, limits)
    pixels = netpbm_pixels(data, header)
    if pixels.dtype == np.uint16:
        pixels = np.asarray(cv2.convertScaleAbs(pixels, alpha=255 / 65535), np.uint8)
    rgb = pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return DecodedPhoto(np.asarray(rgb, np.uint8), header.width, header.height)


def open_image(plugin: type[ImageFile], data: bytes) -> ImageFile:
    """Pillow's image of a file, of which only the header is read."""
    try:
        return plugin(BytesIO(data))
    except (SyntaxError, ValueError):
        if plugin is PngImageFile:
            return _open_picture(data)
        raise


def load_image(image: ImageFile, data: bytes) -> ImageFile:
    """The image with its pixels; PNGs may have metadata that Pillow refuses behind them, too."""
    try:
        image.load()
    except (SyntaxError, ValueError):
        image = _open_picture(data) if isinstance(image, PngImageFile) else image
        image.load()
    return image


def _open_picture(png: bytes) -> PngImageFile:
    """Pillow's image of a PNG without the metadata that Pillow refused.

    Pillow raises for damaged texts, profiles and animations, and for texts and profiles that
    inflate to more than a megabyte; the picture is fine without them.
    """
    picture, profile = without_metadata(png)
    image = PngImageFile(BytesIO(picture))
    if profile is not None:
        image.info["icc_profile"] = profile
    return image


def check_layout(image: ImageFile, data: bytes, limits: PhotoLimits) -> None:
    """Refuse files that Pillow would silently decode incompletely, wrongly or at any cost."""
    if isinstance(image, PngImageFile | TiffImageFile) and ends_early(data):
        detail = f"expected a whole {image.format} file, got its end after {len(data)} bytes"
        raise PhotoRefused(Reason.TRUNCATED, detail)
    if isinstance(image, PngImageFile) and pixels_damaged(data):
        detail = "expected an undamaged PNG file, got pixels with a wrong checksum"
        raise PhotoRefused(Reason.UNREADABLE, detail)
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        bits, planes = max(tags.get(258, (1,))), tags.get(284, 1) == 2
        if planes and (bits > 8 or image.mode in {"LA", "La"}):
            detail = f"expected interleaved channels in a TIFF of {bits} bits and mode {image.mode}"
            raise PhotoRefused(Reason.UNREADABLE, f"{detail}, got planes")
        if 2 in tags.get(339, ()):
            detail = "expected a TIFF of unsigned integers, got signed ones"
            raise PhotoRefused(Reason.UNREADABLE, detail)
        width, height = tags.get(322, 0), tags.get(323, 0)
        if width * height > limits.max_pixels:
            detail = f"expected tiles of at most {limits.max_pixels} pixels, got {width}x{height}"
            raise PhotoRefused(Reason.BOMB, detail)


def forget_xmp(image: ImageFile) -> None:
    """Keep Pillow from looking for an orientation in XMP if EXIF has none.

    Other decoders do not, nor do we for JPEGs: XMP is copied along when a photo is turned upright,
    so it often is a former file's. Chunks of a PNG may follow the pixels.
    """
    for key in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(key, None)


def pillow_orientation(image: ImageFile) -> int:
    """EXIF orientation of an image that Pillow has loaded (Pillow turns TIFFs itself)."""
    forget_xmp(image)
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:
        return 1  # the picture is fine without a damaged EXIF block
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _flatten(image: Image.Image, alpha: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Opaque sRGB of any picture that Pillow has loaded. -> (H, W, 3) uint8.

    alpha (H, W) uint8 replaces Pillow's.
    """
    icc = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips.
        grey = cv2.convertScaleAbs(grey_levels(image), alpha=255 / 65535)
        image = Image.fromarray(np.asarray(grey, np.uint8))
    if image.mode not in {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}:
        detail = f"expected RGB, grey, palette or CMYK of 8 or 16 bits, got mode {image.mode}"
        raise PhotoRefused(Reason.UNREADABLE, detail)
    if alpha is None and not (image.has_transparency_data or image.mode == "La"):
        if image.mode not in {"L", "CMYK", "RGB"}:
            image = image.convert("L" if image.mode == "1" else "RGB")
        return convert_image(image, icc)

    def over_white(rows: slice) -> NDArray[np.uint8]:
        part = image.crop((0, rows.start, image.width, rows.stop))
        if alpha is None:
            part = part.convert("LA") if part.mode == "La" else part
            mask = part.convert("RGBA").getchannel("A")
            grey = part.mode in {"1", "L", "LA"}
            part = part.convert("L") if grey else part.convert("RGBA").convert("RGB")
        else:
            mask = Image.fromarray(alpha[rows])
        opaque = Image.fromarray(convert_image(part, icc))
        white = Image.new("RGB", part.size, "white")
        return np.array(Image.composite(opaque, white, mask))

    return in_bands(image.height, image.width, over_white)


def keyed_alpha(image: Image.Image, data: bytes) -> NDArray[np.uint8] | None:
    """Alpha of a PNG in which one colour is transparent, if Pillow would mistake that colour.

    The colour has the file's bits (W3C PNG, §11.3.1.1), which Pillow compares with 8 bits.
    -> (H, W) uint8, 0 or 255.
    """
    key = image.info.get("transparency")
    if not isinstance(image, PngImageFile) or key is None:
        return None
    bits, kind = data[24], data[25]  # of the IHDR chunk, always the first
    if kind not in {0, 2} or bits in {1, 8}:
        return None
    del image.info["transparency"]
    if kind == 2:  # of 16 bits, of which Pillow has kept 8
        rgba = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
        return np.asarray(np.where(rgba[..., 3] == 0, 0, 255), np.uint8)
    if bits < 8:
        key = (key & (1 << bits) - 1) * 255 // ((1 << bits) - 1)
    return np.asarray(np.where(np.asarray(image) == key, 0, 255), np.uint8)


def scaled_to_16(levels: NDArray[np.uint16], top: int) -> NDArray[np.uint16]:
    """Levels of 0..top in all of 16 bits."""
    if top == 65535:
        return levels
    table = np.rint(np.minimum(np.arange(65536), top) * (65535 / top)).astype(np.uint16)
    return table[levels]


def grey_levels(image: Image.Image) -> NDArray[np.uint16]:
    """A picture of mode I;16 in all levels of 16 bits, whatever it has; black is 0. (H, W)."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    top = (1 << tags.get(258, (16,))[0]) - 1
    grey = scaled_to_16(np.array(image, np.uint16), top)
    white_is_zero = tags.get(262) == 0  # Pillow inverts these at 8 bits only
    return 65535 - grey if white_is_zero else grey
