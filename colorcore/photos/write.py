"""Write pictures as PNG, JPEG or WebP, and recognize those written here."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.storage.atomic import replace_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


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
_LONGEST_SIDE = {".jpg": 65_500, ".webp": 16_383}
"""Pixels per side that an encoder takes: JPEG_MAX_DIMENSION of libjpeg, whose format would hold
65,535, and WEBP_MAX_DIMENSION of libwebp. PNG holds 2³¹ − 1."""
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


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; a failure leaves no temporary file behind.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        replace_bytes(path, data)
    except BaseException:
        with contextlib.suppress(OSError):  # it was never made
            path.with_name(f".{path.name}.part").unlink()
        raise


def made_by(path: Path, software: str) -> bool:
    """Whether a file is a picture that :func:`save_picture` wrote for ``software``."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with Image.open(path, formats=[name for name, _ in _FORMATS.values()]) as image:
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
