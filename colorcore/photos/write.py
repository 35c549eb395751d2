"""Write pictures, as a plain file or like the original, and recognize those written here.

:func:`save_picture` writes what this project draws. :func:`encode_picture` writes a photo as its
original was: in its format, depth and quality, and with all that belongs to it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.storage.atomic import part_of, replace_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from colorcore.photos.icc import Pixels
    from colorcore.photos.original.encode import Page, Quality
    from colorcore.photos.original.metadata import Metadata
    from colorcore.photos.original.read import Original


DRAWN = "colorcore"
"""The software named in plots, contact sheets and comparisons."""
COLORIZED = "colorcore colorize"
"""The software named in colourized photos."""

_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
}
PICTURE_SUFFIXES = tuple(_FORMATS)
_LONGEST_SIDE = {".jpg": 65_500, ".webp": 16_383, ".avif": 65_536}
"""Pixels per side that an encoder takes: JPEG_MAX_DIMENSION of libjpeg, whose format would hold
65,535, WEBP_MAX_DIMENSION of libwebp, and what AV1 holds. PNG holds 2³¹ − 1."""
_SIGNED = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")
"""The formats that hold the software's name in a way that Pillow reads."""
_SOFTWARE_TAG = 0x0131
"""EXIF: the software that made the picture (CIPA DC-008, table 4)."""


class EncoderLimitError(ValueError):
    """A format cannot hold a picture."""


def check_encodable(suffix: str, height: int, width: int) -> None:
    """Check a picture's size before it is made.

    Raises:
        EncoderLimitError: the format of ``suffix`` cannot hold that many pixels per side.
    """
    longest = _LONGEST_SIDE.get(suffix.lower())
    if longest is not None and max(height, width) > longest:
        raise EncoderLimitError(
            f"expected at most {longest:,} pixels per side for {suffix}, got {width}x{height}"
        )


def save_picture(path: Path, rgb: NDArray[np.uint8], *, software: str | None = None) -> None:
    """Write an sRGB picture (H, W, 3) uint8, whole or not at all.

    The suffix selects the format: .png is lossless, .jpg and .webp are smaller and slightly lossy.
    The only metadata is ``software``, by which :func:`made_by` recognizes the file.

    Raises:
        ValueError: the array has another shape or type, or the suffix is not one of the three.
        EncoderLimitError: the format cannot hold the picture.
        OSError: the file cannot be written.
    """
    from PIL import Image

    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected a picture (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(f"expected a name ending in {', '.join(_FORMATS)}, got {path.name}")
    check_encodable(suffix, *rgb.shape[:2])
    name, options = _FORMATS[suffix]
    buffer = io.BytesIO()
    try:
        Image.fromarray(rgb).save(buffer, format=name, **options, **_metadata(name, software))
    except (OSError, ValueError) as error:  # from the encoder: nothing is written yet
        size = f"{rgb.shape[1]}x{rgb.shape[0]}"
        raise EncoderLimitError(f"expected {size} pixels to fit into {suffix}: {error}") from error
    write_whole(path, buffer.getvalue())


_NAMES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pnm": "PPM",
}
"""The format of each suffix that :func:`encode_picture` takes."""
ENCODED_SUFFIXES = tuple(_NAMES)
_OWN_SUFFIX = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "TIFF": ".tif",
    "WEBP": ".webp",
    "AVIF": ".avif",
    "BMP": ".bmp",
    "PPM": ".ppm",
}
_WITH_ALPHA = frozenset({"PNG", "TIFF", "WEBP", "AVIF"})
_WITH_16_BITS = frozenset({"PNG", "TIFF", "PPM"})


def format_for(original: Original) -> str:
    """The suffix of the format in which an original can be written without losing anything.

    That is its own format; PNG if that cannot be written (GIF, HEIC, JPEG XL) or lacks what the
    picture has: a BMP or PPM with transparency, an AVIF of more than 8 bits.
    """
    suffix = _OWN_SUFFIX.get(original.format, ".png")
    return ".png" if would_lose(original, suffix) else suffix


def would_lose(original: Original, suffix: str) -> bool:
    """Whether the format of a suffix lacks the transparency or the bits of an original.

    Raises:
        ValueError: no picture can be written in that format.
    """
    name = format_name(suffix)
    lacks_alpha = original.alpha is not None and name not in _WITH_ALPHA
    return lacks_alpha or (original.pixels.dtype == np.uint16 and name not in _WITH_16_BITS)


def encode_picture(
    rgb: Pixels,
    suffix: str,
    *,
    alpha: Pixels | None = None,
    metadata: Metadata | None = None,
    quality: Quality = None,
    software: str | None = None,
) -> bytes:
    """A picture as the bytes of a file, with an embedded sRGB profile; the same bytes every time.

    rgb: (H, W, 3) or, grey, (H, W), sRGB, uint8 or uint16; alpha: (H, W) of the same type.
    ``suffix`` (".tif") or the name of the format ("TIFF") selects the format. ``metadata`` and
    ``quality`` are those of an original, or ``quality`` is 1..100; the default is 95. ``software``
    is the name by which :func:`made_by` recognizes the file, in place of the original's.

    What the format lacks: JPEG, BMP and PPM have no transparency, so the picture is composited over
    white; all but PNG, TIFF and PPM have 8 bits, so 16 are rounded. IPTC is kept in JPEG, PNG and
    TIFF, resolution there and in BMP, EXIF and XMP there and in WebP and AVIF, a PNG's texts in
    PNG. BMP and PPM hold no profile, and BMP no name of a software.

    Raises:
        ValueError: the arrays have other shapes or types, or the format is unknown.
        EncoderLimitError: the format cannot hold the picture.
    """
    from colorcore.photos.original import encode
    from colorcore.photos.original.metadata import Metadata

    name = format_name(suffix)
    _check_picture(rgb, alpha)
    check_encodable(_OWN_SUFFIX[name], *rgb.shape[:2])
    if alpha is not None and name not in _WITH_ALPHA:
        rgb, alpha = _over_white(rgb, alpha), None
    kept = metadata or Metadata()
    if kept.exif or name != "PNG":  # which names the software in a text
        kept = encode.signed(kept, software)
    eight = _eight_bits(rgb) if name not in _WITH_16_BITS else np.empty(0, np.uint8)
    try:
        if name == "JPEG":
            return encode.encode_jpeg(eight, kept, quality)
        if name == "PNG":
            return encode.encode_png(rgb, alpha, kept, software)
        if name == "TIFF":
            return encode.encode_tiff([encode.Page(rgb, alpha, kept)])
        if name == "BMP":
            return encode.encode_bmp(eight, kept)
        if name == "PPM":
            return encode.encode_ppm(rgb, software)
        mask = None if alpha is None else _eight_bits(alpha)
        return encode.encode_with_pillow(name, eight, mask, kept, quality)
    except (OSError, ValueError) as error:  # from the encoder
        size = f"{rgb.shape[1]}x{rgb.shape[0]}"
        raise EncoderLimitError(f"expected {size} pixels to fit into {name}: {error}") from error


def encode_pages(pages: Sequence[Page], *, software: str | None = None) -> bytes:
    """Pictures as the pages of one TIFF, each as :func:`encode_picture` would write it.

    Raises:
        ValueError: there are no pages, or arrays have other shapes or types.
    """
    from colorcore.photos.original import encode

    if not pages:
        raise ValueError("expected at least one page, got none")
    for page in pages:
        _check_picture(page.pixels, page.alpha)
    return encode.encode_tiff(
        [page._replace(metadata=encode.signed(page.metadata, software)) for page in pages]
    )


def format_name(suffix: str) -> str:
    """The name of the format ("JPEG") of a suffix (".jpg"), or of such a name itself.

    Raises:
        ValueError: no picture can be written in that format.
    """
    name = _NAMES.get(suffix.lower(), suffix.upper())
    if name not in _OWN_SUFFIX:
        raise ValueError(f"expected one of {', '.join(_NAMES)}, got {suffix}")
    return name


def _check_picture(rgb: Pixels, alpha: Pixels | None) -> None:
    shaped = rgb.ndim == 2 or (rgb.ndim == 3 and rgb.shape[2] == 3)
    if not shaped or rgb.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        expected = "a picture (H, W, 3) or (H, W) of uint8 or uint16"
        raise ValueError(f"expected {expected}, got {rgb.shape} {rgb.dtype}")
    if alpha is not None and (alpha.shape != rgb.shape[:2] or alpha.dtype != rgb.dtype):
        expected = f"alpha {rgb.shape[:2]} {rgb.dtype}"
        raise ValueError(f"expected {expected}, got {alpha.shape} {alpha.dtype}")


def _eight_bits(picture: Pixels) -> NDArray[np.uint8]:
    """The nearest levels of 255; an array of uint8 stays as it is."""
    if picture.dtype == np.uint8:
        return np.asarray(picture, np.uint8)
    levels = np.rint(np.arange(65536) / 257.0).astype(np.uint8)
    return levels[picture]


def _over_white(rgb: Pixels, alpha: Pixels) -> Pixels:
    top = np.iinfo(rgb.dtype).max
    out = np.empty_like(rgb)
    for row, colour, opacity in zip(out, rgb, alpha, strict=True):
        share = opacity.astype(np.float32) / top
        share = share if rgb.ndim == 2 else share[:, None]
        row[:] = np.rint(colour * share + top * (1.0 - share))
    return out


def write_whole(path: Path, data: bytes, *, writer: str = "") -> None:
    """Write a file whole or not at all; a failure leaves no temporary file behind.

    writer  tells apart processes that may write the same file at the same time

    Raises:
        OSError: the file cannot be written.
    """
    try:
        replace_bytes(path, data, writer=writer)
    except BaseException:
        with contextlib.suppress(OSError):  # it was never made
            part_of(path, writer).unlink()
        raise


def made_by(path: Path, software: str) -> bool:
    """Whether a file is a picture that was written here for ``software``."""
    from PIL import Image

    from colorcore.photos.original.encode import ppm_software

    try:
        with path.open("rb") as file:
            if (named := ppm_software(file.read(80))) is not None:
                return named == software
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(path, formats=_SIGNED) as image:
                # Asking a PNG for EXIF would decode it.
                png = image.format == "PNG"
                named = image.info.get("Software") if png else image.getexif().get(_SOFTWARE_TAG)
    except Exception:  # a file of any kind
        return False
    return bool(named == software)


def _metadata(name: str, software: str | None) -> dict[str, Any]:
    from PIL import Image, PngImagePlugin

    if software is None:
        return {}
    if name == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", software)
        return {"pnginfo": text}
    exif = Image.Exif()
    exif[_SOFTWARE_TAG] = software
    return {"exif": exif}
