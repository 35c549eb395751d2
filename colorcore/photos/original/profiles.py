"""ICC profiles at a photo's own depth, grey or in colour: what :mod:`colorcore.photos.icc` lacks.

A profile whose effect is within 2 levels of 255 of sRGB's counts as sRGB, as there, and leaves the
pixels as they are. Of other photos of 16 bits:

- matrix/TRC profiles go through float tables, at most 2 of 65,535 levels from exact arithmetic;
- all other kinds go through LittleCMS at 16 bits.
"""

from __future__ import annotations

from functools import cache, lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageCms

from colorcore.photos.icc import BAND_PIXELS, Conversion, conversion, curves_and_matrix, to_srgb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from colorcore.photos.icc import Pixels


_TOLERANCE = 64
"""Largest difference, in levels of 65,535, at which the tables and LittleCMS count as the same."""
_SPACES = {"RGB": "rgb", "L": "gray", "CMYK": "cmyk"}


def bands(height: int, width: int) -> Iterator[slice]:
    """Rows of a picture, some at a time, so that intermediate arrays stay small."""
    rows = max(1, BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(height, top + rows))


def pixels_to_srgb(pixels: Pixels, icc: bytes | None) -> Pixels:
    """The same colours in sRGB; ``pixels`` may be overwritten.

    pixels: (H, W, 3) or, grey, (H, W); uint8 or uint16 in the profile's colour space. Grey stays
    grey unless its profile gives it a hue. A profile of another colour space is ignored.
    """
    way = conversion(icc) if icc else None
    if way is None or icc is None:
        return pixels
    if pixels.ndim == 2:
        return _grey(pixels, icc, way)
    if way.mode != "RGB":
        return pixels
    deep = _deep(icc) if pixels.dtype == np.uint16 else None
    for rows in bands(*pixels.shape[:2]):
        if deep is None:
            pixels[rows] = to_srgb(np.asarray(pixels[rows], np.uint8), way)
        else:
            pixels[rows] = deep(np.asarray(pixels[rows], np.uint16))
    return pixels


def _grey(pixels: Pixels, icc: bytes, way: Conversion) -> Pixels:
    if way.mode not in {"L", "RGB"}:
        return pixels
    table = _grey_table(icc, way.mode, deep=pixels.dtype == np.uint16)
    if table.ndim == 1:
        for rows in bands(*pixels.shape):
            pixels[rows] = cv2.LUT(pixels[rows], table)
        return pixels
    out = np.empty((*pixels.shape, 3), pixels.dtype)
    for rows in bands(*pixels.shape):
        out[rows] = cv2.LUT(cv2.merge([pixels[rows]] * 3), table)
    return out


@lru_cache(maxsize=16)
def _grey_table(icc: bytes, mode: str, *, deep: bool) -> Pixels:
    """What each level of grey becomes: (N,), or (1, N, 3) if that is not grey. N 256 or 65,536."""
    ramp = np.arange(65536 if deep else 256, dtype=np.uint16).reshape(-1, 256)
    levels = ramp if deep else np.asarray(ramp * 257, np.uint16)
    rgb = cms_srgb(levels if mode == "L" else np.dstack([levels] * 3), icc, mode).reshape(-1, 3)
    table: Pixels = rgb if deep else np.rint(rgb / 257.0).astype(np.uint8)
    hue = int(np.ptp(rgb.astype(np.int32), axis=1).max())
    return table[:, 1].copy() if hue <= 257 else table[None]


def cms_srgb(pixels: NDArray[np.uint16], icc: bytes, mode: str) -> NDArray[np.uint16]:
    """SRGB through LittleCMS at 16 bits, as :func:`colorcore.photos.icc.conversion` has it.

    Without its optimizations: they replace curves by grids, which are up to 8% off at 16 bits.

    pixels: (H, W), (H, W, 3) or, 65,535 being full ink, (H, W, 4) uint16. -> (H, W, 3) uint16.
    """
    import imagecodecs

    flags = imagecodecs.CMS.FLAGS
    converted = imagecodecs.cms_transform(
        np.ascontiguousarray(pixels),
        icc,
        srgb_profile(),
        colorspace=_SPACES[mode],
        outcolorspace="rgb",
        outdtype="uint16",
        intent=imagecodecs.CMS.INTENT.RELATIVE_COLORIMETRIC,
        flags=flags.BLACKPOINTCOMPENSATION | flags.NOOPTIMIZE,
    )
    return np.asarray(converted, np.uint16)


@cache
def srgb_profile() -> bytes:
    """An sRGB profile, the same bytes every time: LittleCMS's own, without its date of creation."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    date = np.array([2000, 1, 1, 0, 0, 0], ">u2").tobytes()  # ICC.1:2022, 7.2.10
    return profile[:24] + date + profile[36:]


class DeepShaper(NamedTuple):
    """Float tables of a matrix/TRC profile, for 16 bits.

    linear (1, 65536, 3) float32: device value -> linear light; matrix (3, 3) float32: linear device
    RGB -> linear sRGB.
    """

    linear: NDArray[np.float32]
    matrix: NDArray[np.float32]

    def __call__(self, rgb: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """SRGB of device RGB, (H, W, 3) uint16 both."""
        light = cv2.transform(cv2.LUT(rgb, self.linear), self.matrix)
        root = np.sqrt(np.clip(light, 0.0, 1.0, out=light), out=light)
        steps = cv2.multiply(root, np.full(4, 65535.0), dtype=cv2.CV_16U)
        return np.asarray(cv2.LUT(steps, _encoding()), np.uint16)


@cache
def _encoding() -> NDArray[np.uint16]:
    """The square root of linear light in 16 bits -> sRGB in 16 (IEC 61966-2-1). (65536,).

    The root has about the same steps as sRGB, so its rounding costs less than one level; that of
    linear light would cost six.
    """
    v = (np.arange(65536) / 65535.0) ** 2
    encoded = np.where(v > 0.0031308, 1.055 * v ** (1 / 2.4) - 0.055, 12.92 * v)
    return np.rint(encoded * 65535.0).astype(np.uint16)


@lru_cache(maxsize=4)
def _deep(icc: bytes) -> Callable[[NDArray[np.uint16]], NDArray[np.uint16]]:
    """The conversion of 16-bit RGB from a profile that is known to work at 8 bits."""

    def reference(rgb: NDArray[np.uint16]) -> NDArray[np.uint16]:
        return cms_srgb(rgb, icc, "RGB")

    profile = ImageCms.ImageCmsProfile(BytesIO(icc))
    found = curves_and_matrix(icc, profile, 65536)
    if found is None:
        return reference
    curves, matrix = found
    shaper = DeepShaper(curves.astype(np.float32)[None], matrix.astype(np.float32))
    cube = np.indices((16, 16, 16), np.uint16).reshape(3, 64, 64).transpose(1, 2, 0) * 4369
    cube = np.ascontiguousarray(cube)
    far = cv2.norm(shaper(cube), reference(cube), cv2.NORM_INF)
    return shaper.__call__ if far <= _TOLERANCE else reference


def inks_to_srgb(inks: Pixels, icc: bytes | None) -> Pixels:
    """SRGB of CMYK, the largest value being full ink. (H, W, 4) -> (H, W, 3), of the same type.

    Without a profile, by the plain complement of each ink and black, as Pillow does.
    """
    way = conversion(icc) if icc else None
    known = way if way is not None and way.mode == "CMYK" else None
    out = np.empty((*inks.shape[:2], 3), inks.dtype)
    top = np.iinfo(inks.dtype).max
    for rows in bands(*inks.shape[:2]):
        part = inks[rows]
        if known is None or icc is None:
            light = (top - part[..., :3].astype(np.float32)) * (top - part[..., 3:]) / top
            out[rows] = np.rint(light)
        elif inks.dtype == np.uint16:
            out[rows] = cms_srgb(np.asarray(part, np.uint16), icc, "CMYK")
        else:
            image = Image.fromarray(np.ascontiguousarray(part), "CMYK")
            out[rows] = ImageCms.applyTransform(image, known.transform)
    return out
