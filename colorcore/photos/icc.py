"""ICC profiles: convert a photo's colours from its profile to sRGB.

More than a quarter of photos in the wild have a profile, and one in eleven is visibly off without
it. Nearly all are matrix/TRC profiles, which our own tables convert three times as fast as
LittleCMS; LittleCMS handles every other kind and every doubtful case.
"""

from __future__ import annotations

import struct
from functools import cache, lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageCms

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Pixels = NDArray[np.unsignedinteger[Any]]
    """Colours of 8 or 16 bits: an array of uint8 or uint16."""


class Shaper(NamedTuple):
    """Our own tables for a matrix/TRC profile, the kind of every RGB working space.

    linear (256,) or (1, 256, 3) uint16: device value -> linear light; matrix (3, 3) float32:
    linear device RGB -> linear sRGB.
    """

    linear: NDArray[np.uint16]
    matrix: NDArray[np.float32]

    def __call__(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """SRGB of device RGB, (H, W, 3) uint8 both."""
        light = cv2.transform(cv2.LUT(rgb, self.linear), self.matrix)
        return np.asarray(cv2.LUT(light, _srgb_encoding()), np.uint8)


class Conversion(NamedTuple):
    """The conversion of pictures of Pillow mode ``mode`` from their profile to sRGB."""

    mode: str
    transform: ImageCms.ImageCmsTransform
    shaper: Shaper | None


BAND_PIXELS = 1 << 20
"""Pixels of a large picture that are converted at a time, to bound memory."""
_ICC_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
_ICC_TOLERANCE = 2
"""Largest difference, in levels of 255, at which two conversions count as the same."""


def convert(rgb: NDArray[np.uint8], icc: bytes | None) -> NDArray[np.uint8]:
    """The same colours in sRGB. rgb (H, W, 3) uint8 in the profile's colour space, if any."""
    way = conversion(icc) if icc else None
    if way is None or way.mode != "RGB":
        return rgb
    return in_bands(rgb.shape[0], rgb.shape[1], lambda rows: to_srgb(rgb[rows], way))


def convert_image(image: Image.Image, icc: bytes | None) -> NDArray[np.uint8]:
    """The colours of a picture of mode L, RGB or CMYK in sRGB. -> (H, W, 3) uint8.

    CMYK without a profile is converted by Pillow's plain complement.
    """
    way = conversion(icc) if icc else None

    def band(rows: slice) -> NDArray[np.uint8]:
        part = image.crop((0, rows.start, image.width, rows.stop))
        if way is not None and way.mode == image.mode != "RGB":
            return apply_transform(part, way.transform)
        rgb = np.array(part.convert("RGB"))
        return (
            rgb if way is None or way.mode != "RGB" or image.mode == "CMYK" else to_srgb(rgb, way)
        )

    return in_bands(image.height, image.width, band)


def in_bands(
    height: int, width: int, band: Callable[[slice], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Convert a picture some rows at a time, so that intermediate arrays stay small."""
    rows = max(1, BAND_PIXELS // max(1, width))
    if rows >= height:
        return band(slice(0, height))
    out = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        part = slice(top, min(height, top + rows))
        out[part] = band(part)
    return out


def to_srgb(rgb: NDArray[np.uint8], way: Conversion) -> NDArray[np.uint8]:
    """The same colours in sRGB by a conversion of mode RGB. (H, W, 3) uint8 both."""
    return way.shaper(rgb) if way.shaper else apply_transform(Image.fromarray(rgb), way.transform)


def apply_transform(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> NDArray[np.uint8]:
    """A picture through LittleCMS at 8 bits. -> (H, W, 3) uint8."""
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # noqa: S101 - only in-place calls return none
    return np.array(converted)


@lru_cache(maxsize=64)
def conversion(icc: bytes) -> Conversion | None:
    """The conversion from a profile to sRGB; None if there is nothing to do, or it is broken.

    Relative colorimetric with black point compensation, the default of photo editors: colours in
    both gamuts stay the same, and the black of paper becomes black. A profile counts as sRGB by its
    effect on a cube of colours, because names of profiles are unreliable.

    LittleCMS (14 ms per megapixel) is the reference and the fallback; tables made from the same
    profile (4 ms) replace it if they agree on the cube.
    """
    mode = _ICC_MODES.get(icc[16:20])
    if mode is None:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc))
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode != "RGB":
            return Conversion(mode, transform, None)
        cube = np.indices((16, 16, 16), np.uint8).reshape(3, 64, 64).transpose(1, 2, 0) * 17
        wanted = apply_transform(Image.fromarray(np.ascontiguousarray(cube)), transform)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    if _same(wanted, cube):
        return None
    shaper = _shaper(icc, profile)
    good = shaper is not None and _same(shaper(np.ascontiguousarray(cube)), wanted)
    return Conversion(mode, transform, shaper if good else None)


def _same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    return bool(cv2.norm(one, np.ascontiguousarray(other), cv2.NORM_INF) <= _ICC_TOLERANCE)


@cache
def _srgb_encoding() -> NDArray[np.uint8]:
    """Linear light in 16 bits -> sRGB in 8 (IEC 61966-2-1). (65536,)."""
    v = np.arange(65536) / 65535.0
    encoded = np.where(v > 0.0031308, 1.055 * v ** (1 / 2.4) - 0.055, 12.92 * v)
    return np.rint(encoded * 255.0).astype(np.uint8)


def _shaper(icc: bytes, profile: ImageCms.ImageCmsProfile) -> Shaper | None:
    """Tables for a matrix/TRC profile; None for any other kind."""
    found = curves_and_matrix(icc, profile, 256)
    if found is None:
        return None
    curves, matrix = found
    linear = np.rint(curves * 65535.0).astype(np.uint16)
    alike = bool((linear == linear[:, :1]).all())
    return Shaper(linear[:, 0].copy() if alike else linear[None], matrix.astype(np.float32))


def curves_and_matrix(
    icc: bytes, profile: ImageCms.ImageCmsProfile, levels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """What a matrix/TRC profile consists of (ICC.1:2022, F.3); None for any other kind.

    -> linear light 0..1 of each of ``levels`` device values, (levels, 3), and the matrix from
    linear device RGB to linear sRGB, (3, 3).
    """
    try:
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        matrix = np.linalg.solve(_colorants(srgb), _colorants(profile))
        with np.errstate(all="ignore"):  # the cube reveals damaged curves
            names = (b"rTRC", b"gTRC", b"bTRC")
            curves = np.stack([_tone_curve(icc, name, levels) for name in names], -1)
    except (ValueError, TypeError, struct.error, np.linalg.LinAlgError):
        return None
    return np.nan_to_num(np.clip(curves, 0.0, 1.0)), np.asarray(matrix, np.float64)


def _colorants(profile: ImageCms.ImageCmsProfile) -> NDArray[np.float64]:
    """XYZ (D50) of a profile's three primaries, in columns. (3, 3)."""
    p = profile.profile
    columns = [c[0] for c in (p.red_colorant, p.green_colorant, p.blue_colorant) if c]
    if len(columns) != 3:
        raise ValueError(f"expected three colorants, got {len(columns)}")
    return np.array(columns, np.float64).T


def _tone_curve(icc: bytes, name: bytes, levels: int) -> NDArray[np.float64]:
    """A profile's tone curve at ``levels`` device values, 0..1 (ICC.1:2022, 10.6 and 10.18).

    Raises:
        ValueError: the tag is missing, or of a kind that photos do not use.
    """
    (count,) = struct.unpack_from(">I", icc, 128)
    tags = (struct.unpack_from(">4sII", icc, 132 + 12 * i) for i in range(min(count, 100)))
    at = next((offset for tag, offset, _ in tags if tag == name), None)
    if at is None:
        raise ValueError(f"expected a tag {name!r}, got none")
    x = np.arange(levels) / (levels - 1)
    kind, number = struct.unpack_from(">4s4xI", icc, at)
    if kind == b"curv" and number == 0:
        return x
    if kind == b"curv" and number == 1:
        return x ** float(struct.unpack_from(">H", icc, at + 12)[0] / 256.0)
    if kind == b"curv":
        samples = np.frombuffer(icc, ">u2", number, at + 12) / 65535.0
        return np.interp(x, np.linspace(0.0, 1.0, number), samples)
    if kind == b"para" and number >> 16 == 0:
        return x ** float(struct.unpack_from(">i", icc, at + 12)[0] / 65536.0)
    if kind == b"para" and number >> 16 == 3:
        g, a, b, c, d = np.frombuffer(icc, ">i4", 5, at + 12) / 65536.0
        return np.asarray(np.where(x >= d, np.maximum(a * x + b, 0.0) ** g, c * x))
    raise ValueError(f"expected a curve of type curv, or para 0 or 3, got {kind!r}")
