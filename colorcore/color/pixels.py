"""CIELAB of photos of many megapixels, by tables: lightness of pixels, and pixels of CIELAB.

Arrays are strips of a photo, small enough for a core's cache. A pixel is described by Y, its
relative luminance 0..1, by f = (L + 16) / 116, from which L follows, and by a and b in ab units.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.color.lab import RGB_FROM_XYZ, XYZ_FROM_RGB, light_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Plane = NDArray[np.float32]
    Pixels = NDArray[np.uint8] | NDArray[np.uint16]

    """(H, W, 3) sRGB or (H, W) grey."""

_U16 = 65535


def require_photo(array: NDArray[Any]) -> None:
    """Check that an array is a photo: (H, W) or (H, W, 3), uint8 or uint16.

    Raises:
        ValueError: it has another shape or type, or no pixels.
    """
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype not in (np.uint8, np.uint16) or not shaped or not array.size:
        raise ValueError(
            "expected a photo (H, W) or (H, W, 3), uint8 or uint16, got "
            f"{array.shape} {array.dtype}; convert it to sRGB without alpha"
        )


def reduced(photo: NDArray[Any], side: int) -> NDArray[Any]:
    """A photo (H, W) or (H, W, 3) with at most ``side`` pixels on its longer side, by areas."""
    import cv2

    height, width = photo.shape[:2]
    scale = side / max(height, width)
    if scale >= 1.0:
        return photo
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA))


def f_of_L(L: Plane) -> Plane:
    """F = (L + 16) / 116 of L 0..100 (CIE 15:2004, eq. 8.6)."""
    return (L + np.float32(16.0)) / np.float32(116.0)


def luminance(pixels: Pixels) -> tuple[Plane, Plane]:
    """Y and f of sRGB pixels. (H, W, 3) or grey (H, W), uint8 or uint16 -> two (H, W) float32.

    IEC 61966-2-1 and CIE 15:2004, eq. 8.4 and 8.7. f is within 1e-5 of exact (L within .001) for 16
    bits, within 6e-5 (L within .007) for 8, whose own steps are 50 times as large.
    """
    import cv2

    if pixels.ndim == 2:
        linear, f = _grey_tables(pixels.dtype.itemsize)
        return _plane(cv2.LUT(pixels, linear)), _plane(cv2.LUT(pixels, f))
    linear, _ = _grey_tables(pixels.dtype.itemsize)
    Y = _plane(cv2.transform(cv2.LUT(pixels, linear), XYZ_FROM_RGB[1:2].astype(np.float32)))
    if pixels.dtype == np.uint16:
        return Y, _f_of(Y)
    return Y, _plane(cv2.LUT(_rounded(Y * np.float32(_U16)), _grey_f()))


def srgb(Y: Plane, f: Plane, a: Plane, b: Plane, out: Pixels) -> None:
    """SRGB of pixels of CIELAB, clipped and rounded. Four (H, W) float32 -> ``out`` (H, W, 3).

    ``out`` is uint8 or uint16, contiguous. a and b are used up.
    """
    import cv2

    a /= np.float32(500.0)
    a += f
    b /= np.float32(-200.0)
    b += f
    xyz = cv2.merge([light_of(a), Y, light_of(b)])
    if out.dtype == np.uint8:
        linear = _plane(cv2.transform(xyz, (RGB_FROM_XYZ * _U16).astype(np.float32)))
        cv2.LUT(_rounded(linear), _srgb_table(), dst=out)
        return
    linear = _plane(cv2.transform(xyz, RGB_FROM_XYZ.astype(np.float32)))
    np.clip(linear, 0.0, 1.0, out=linear)
    curved = _plane(cv2.pow(linear, 1 / 2.4))
    curved *= np.float32(1.055)
    curved -= np.float32(0.055)
    np.copyto(curved, linear * np.float32(12.92), where=linear <= np.float32(0.0031308))
    curved *= np.float32(_U16)
    out[...] = _rounded(curved)


def _plane(made: Any) -> Plane:
    """What OpenCV made, which is no copy."""
    return np.asarray(made, np.float32)


def _rounded(values: Plane) -> NDArray[np.uint16]:
    """Rounded to nearest and clipped to 0..65535; ``values`` are used up."""
    values += np.float32(0.5)
    np.clip(values, 0.0, _U16, out=values)
    return values.astype(np.uint16)


def _f_of(light: Plane) -> Plane:
    f = np.cbrt(light)
    dark = light <= np.float32(216 / 24389)
    np.copyto(f, light * np.float32(841 / 108) + np.float32(16 / 116), where=dark)
    return f


@cache
def _grey_tables(item: int) -> tuple[Plane, Plane]:
    """Y and f of grey by its value, of 1 or 2 bytes."""
    value = np.linspace(0.0, 1.0, 1 << 8 * item)
    linear = np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    return linear.astype(np.float32), _f_of(linear.astype(np.float32))


@cache
def _grey_f() -> Plane:
    """F of light in steps of 16 bits."""
    return _f_of(np.linspace(0.0, 1.0, _U16 + 1, dtype=np.float32))


@cache
def _srgb_table() -> NDArray[np.uint8]:
    """The 8-bit sRGB value of linear light in steps of 16 bits."""
    linear = np.linspace(0.0, 1.0, _U16 + 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(curved * 255.0).astype(np.uint8)
