"""CIELAB of photos of many megapixels, by tables: lightness of pixels, and pixels of CIELAB.

Arrays are strips of a photo, small enough for a core's cache.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.color.lab import XYZ_FROM_RGB

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Plane = NDArray[np.float32]
    Pixels = NDArray[np.uint8] | NDArray[np.uint16]

    """(H, W, 3) sRGB or (H, W) grey."""

_U16 = 65535
_LUMINANCE = XYZ_FROM_RGB[1:2].astype(np.float32)
"""From linear R, G and B to Y, (1, 3)."""


def require_photo(array: NDArray[Any]) -> None:
    """Check that an array is a photo: (H, W) or (H, W, 3), uint8 or uint16.

    Raises:
        ValueError: it has another shape or type, or no pixels.
    """
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype not in (np.uint8, np.uint16) or not shaped or not array.size:
        if not array.size:
            advice = "it has no pixels"
        elif array.dtype not in (np.uint8, np.uint16):
            advice = "scale it to 0..255 and convert it to uint8"
        elif array.ndim > 3:
            advice = "pass several photos as a list"
        else:
            advice = "convert it to sRGB without alpha"
        raise ValueError(
            "expected a photo (H, W) or (H, W, 3), uint8 or uint16, got "
            f"{array.shape} {array.dtype}; {advice}"
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


def lightness(pixels: Pixels) -> Plane:
    """L of sRGB pixels. (H, W, 3) or grey (H, W), uint8 or uint16 -> (H, W) float32, 0..100.

    IEC 61966-2-1 and CIE 15:2004, eq. 8.3 and 8.4. L is within .001 of exact for 16 bits, within
    .007 for 8, whose own steps are 50 times as large.
    """
    import cv2

    linear, L = _tables(pixels.dtype.itemsize)
    if pixels.ndim == 2:
        return _plane(cv2.LUT(pixels, L))
    light = cv2.LUT(pixels, linear)
    if pixels.dtype == np.uint16:
        return _L_of(_plane(cv2.transform(light, _LUMINANCE)))
    # In steps of 16 bits, with the half that makes truncation round.
    steps = cv2.transform(light, np.append(_LUMINANCE * _U16, 0.5)[None])
    return _plane(cv2.LUT(_plane(steps).astype(np.uint16), _L_by_step()))


def srgb(L: Plane, a: Plane, b: Plane, out: Pixels) -> None:
    """SRGB of pixels of CIELAB, clipped and rounded. Three (H, W) float32 -> ``out`` (H, W, 3).

    ``out`` is uint8 or uint16, contiguous.
    """
    import cv2

    linear = _plane(cv2.cvtColor(cv2.merge([L, a, b]), cv2.COLOR_LAB2LRGB))  # clipped to 0..1
    if out.dtype == np.uint8:
        linear *= np.float32(_U16)
        cv2.LUT(linear.astype(np.uint16), _srgb_by_step(), dst=out)
        return
    curved = _plane(cv2.pow(linear, 1 / 2.4))
    curved *= np.float32(1.055)
    curved -= np.float32(0.055)
    np.copyto(curved, linear * np.float32(12.92), where=linear <= np.float32(0.0031308))
    curved *= np.float32(_U16)
    curved += np.float32(0.5)
    out[...] = curved.astype(np.uint16)


def _plane(made: Any) -> Plane:
    """What OpenCV made, which is no copy."""
    return np.asarray(made, np.float32)


def _L_of(Y: Plane) -> Plane:
    L = np.cbrt(Y)
    L *= np.float32(116.0)
    L -= np.float32(16.0)
    np.copyto(L, Y * np.float32(24389 / 27), where=np.float32(216 / 24389) >= Y)
    return L


@cache
def _tables(item: int) -> tuple[Plane, Plane]:
    """Linear light and L of grey by its value, of 1 or 2 bytes."""
    value = np.linspace(0.0, 1.0, 1 << 8 * item)
    linear = np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    return linear.astype(np.float32), _L_of(linear.astype(np.float32))


@cache
def _L_by_step() -> Plane:
    """L by luminance in steps of 16 bits."""
    return _L_of(np.linspace(0.0, 1.0, _U16 + 1, dtype=np.float32))


@cache
def _srgb_by_step() -> NDArray[np.uint8]:
    """The 8-bit sRGB value of linear light, truncated to 16 bits: that of the middle of a step."""
    linear = ((np.arange(_U16 + 1) + 0.5) / _U16).clip(0.0, 1.0)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(curved * 255.0).astype(np.uint8)
