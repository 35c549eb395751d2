"""Pillow's pictures as pixels and alpha, for every format and mode that nothing else reads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from colorcore.photos.containers import without_metadata
from colorcore.photos.original.profiles import bands, inks_to_srgb, pixels_to_srgb
from colorcore.photos.read import grey_levels, keyed_alpha, scaled_to_16
from colorcore.photos.refusal import PhotoRefused, Reason

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

    from colorcore.photos.icc import Pixels


_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_LOCK = threading.Lock()


class Straight(NamedTuple):
    """SRGB with straight alpha: (H, W, 3) or, grey, (H, W), and (H, W) of the same type or None."""

    pixels: Pixels
    alpha: Pixels | None


@contextmanager
def pillow_limit_raised(pixels: int) -> Iterator[None]:
    """Keep Pillow's own limit of 179 MP from refusing a larger picture that ours allow.

    The limit belongs to the whole process, so one thread at a time raises it.
    """
    if Image.MAX_IMAGE_PIXELS is None or pixels <= 2 * Image.MAX_IMAGE_PIXELS:
        yield
        return
    with _LOCK:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def is_deep_png(data: bytes) -> bool:
    """Whether a PNG has 16 bits and a mode in which Pillow keeps 8 of them: all but plain grey."""
    return data[24] == 16 and data[25] in {2, 4, 6}


def deep_png(data: bytes) -> Straight:
    """A PNG of 16-bit colour, or grey with alpha, through OpenCV.

    Metadata and animations are taken out before, so that OpenCV sees nothing but pixels.

    Raises:
        ValueError: OpenCV cannot decode it.
    """
    picture, icc = without_metadata(data)
    kind = data[25]
    keyed = kind == 2 and b"tRNS" in picture
    flags = cv2.IMREAD_UNCHANGED
    if kind == 2 and not keyed:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(picture, np.uint8), flags)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        raise ValueError("expected pixels of 16 bits, got none")
    pixels = np.asarray(decoded, np.uint16)
    if pixels.shape[2] == 3:
        if flags == cv2.IMREAD_UNCHANGED:
            pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint16)
        return Straight(pixels_to_srgb(pixels, icc), None)
    alpha = np.ascontiguousarray(pixels[..., 3])
    if kind == 4:
        return Straight(pixels_to_srgb(np.ascontiguousarray(pixels[..., 0]), icc), alpha)
    rgb = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB), np.uint16)
    return Straight(pixels_to_srgb(rgb, icc), alpha)


def still_bits(image: ImageFile, data: bytes) -> int:
    """Bits per channel of a file that is no JPEG, PNG or TIFF: up to 12 in AVIF and HEIC."""
    if image.mode == "1":
        return 1
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    at = data.find(b"av1C", 0, 1 << 16)  # AV1 Codec ISO Media File Format Binding, 2.3.3
    if image.format == "AVIF" and 0 <= at < len(data) - 6:
        return {0x40: 10, 0x60: 12}.get(data[at + 6] & 0x60, 8)
    return 8


def deep_still(image: ImageFile, data: bytes, bits: int) -> Straight:
    """An AVIF or HEIC of more than 8 bits, of which Pillow has kept 8.

    Raises:
        ValueError: it has other pixels than Pillow has seen.
    """
    if image.format == "AVIF":
        import imagecodecs

        levels = np.asarray(imagecodecs.avif_decode(data, index=0))
    else:
        import pillow_heif

        decoded = pillow_heif.open_heif(data, convert_hdr_to_8bit=False)
        levels = np.asarray(decoded, np.uint16) >> (16 - bits)
    if levels.shape[:2] != (image.height, image.width) or levels.dtype != np.uint16:
        raise ValueError(f"expected {bits} bits, got {levels.dtype} {levels.shape}")
    pixels = scaled_to_16(levels, (1 << bits) - 1)
    icc = image.info.get("icc_profile")
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    alpha = np.ascontiguousarray(pixels[..., -1]) if channels in {2, 4} else None
    if channels > 1:
        pixels = pixels[..., 0] if channels == 2 else pixels[..., :3]
    return Straight(pixels_to_srgb(np.ascontiguousarray(pixels), icc), alpha)


def straight(image: Image.Image, data: bytes) -> Straight:
    """SRGB and alpha of any picture that Pillow has loaded; ``data`` are the bytes of its file.

    Raises:
        PhotoRefused: it has a mode that is no photo's.
    """
    icc = image.info.get("icc_profile")
    key = keyed_alpha(image, data)
    if image.mode.startswith("I;16"):
        pixels = grey_levels(image)
        deep = None if key is None else key.astype(np.uint16) * np.uint16(257)
        return Straight(pixels_to_srgb(pixels, icc), deep)
    if image.mode not in _MODES:
        detail = f"expected RGB, grey, palette or CMYK of 8 or 16 bits, got mode {image.mode}"
        raise PhotoRefused(Reason.UNREADABLE, detail)
    if image.mode == "CMYK":
        return Straight(inks_to_srgb(np.array(image), icc), None)
    transparent = image.has_transparency_data or image.mode == "La"
    grey = image.mode in {"1", "L", "LA", "La"}
    size = (image.height, image.width)
    pixels = np.empty(size if grey else (*size, 3), np.uint8)
    alpha = np.empty(size, np.uint8) if transparent and key is None else key
    for rows in bands(*size):
        part: Image.Image = image.crop((0, rows.start, image.width, rows.stop))
        part = part.convert("LA") if part.mode == "La" else part
        if transparent and key is None and alpha is not None:
            alpha[rows] = np.asarray(part.convert("RGBA").getchannel("A"))
            part = part if grey else part.convert("RGBA")
        wanted = "L" if grey else "RGB"
        pixels[rows] = np.asarray(part if part.mode == wanted else part.convert(wanted))
    return Straight(pixels_to_srgb(pixels, icc), alpha)


def png_bits(data: bytes) -> int:
    """Bits per channel of a PNG; palettes have 8."""
    return 8 if data[25] == 3 else data[24]


def tiff_bits(image: ImageFile) -> int:
    """Bits per channel of a TIFF's page that Pillow has loaded."""
    bits = image.tag_v2.get(258, (1,)) if isinstance(image, TiffImageFile) else (8,)
    return 8 if image.mode == "P" else int(max(bits))
