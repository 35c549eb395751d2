"""The edge of sRGB in CIELAB: how vivid a colour can be at a lightness and a hue.

A colourized photo must keep its lightness, so a colour that sRGB cannot show loses chroma; clipping
its R, G and B instead would change its lightness. A table of the largest chroma, read with one
bilinear interpolation per pixel, replaces a search for each pixel.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from colorcore.color.lab import F_OF_BLACK, linear_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Plane = NDArray[np.float32]

_ROWS, _HUES = 512, 1440
"""Steps of f(Y) from black to white, and of the hue over the whole circle."""
_VIVID = 140.0
"""No sRGB colour has more chroma: blue, the most vivid, has 134."""
_HALVINGS = 16
_CLEFT = 8.0
"""Chroma by which neighbours in the table differ at a cleft, but hardly anywhere else."""
_WIDEST = 1 << 14
"""Columns at once; OpenCV's remap takes fewer than 2¹⁵."""


@cache
def _largest_chroma() -> Plane:
    """(_ROWS + 1, _HUES + 1) largest chroma by f(Y) and hue; the last column repeats the first."""
    import cv2

    f = np.linspace(F_OF_BLACK, 1.0, _ROWS + 1, dtype=np.float32)[:, None]
    hue = np.linspace(0.0, 2 * np.pi, _HUES + 1, dtype=np.float32)[None]
    a, b = np.cos(hue), np.sin(hue)
    low = np.zeros((_ROWS + 1, _HUES + 1), np.float32)
    step = np.float32(_VIVID)
    for _ in range(_HALVINGS):
        step /= 2
        chroma = low + step
        rgb = linear_rgb(f, a * chroma, b * chroma)
        fits = (rgb.min(axis=0) >= 0.0) & (rgb.max(axis=0) <= 1.0)
        low += step * fits
    # Beside yellow the edge has a cleft; interpolated across it, colours would be outside.
    least = cv2.erode(low, np.ones((3, 3), np.uint8))
    return np.where(low - least > _CLEFT, least, low)


def fit_chroma(f: Plane, a: Plane, b: Plane) -> None:
    """Reduce the chroma of colours that sRGB cannot show, in place; lightness and hue stay.

    f (H, W) float32 is f(Y) = (L + 16) / 116 (CIE 15:2004, eq. 8.6); a, b (H, W) float32, ab units.

    The chroma that is left is within 0.3 ab units of the most that fits, for 99.9% of colours;
    beside a cleft near yellow (hue 100°, L above 93) it is less than it could be. Clipping what is
    still outside changes L by at most .005 (tests/colorcore/color/test_gamut.py).
    """
    import cv2

    for left in range(_WIDEST, f.shape[1], _WIDEST):
        part = np.s_[:, left : left + _WIDEST]
        fit_chroma(f[part], a[part], b[part])
    f, a, b = f[:, :_WIDEST], a[:, :_WIDEST], b[:, :_WIDEST]
    table = _largest_chroma()
    chroma = np.asarray(cv2.magnitude(a, b), np.float32)
    hue = np.asarray(cv2.phase(a, b), np.float32)
    hue *= np.float32(_HUES / (2 * np.pi))
    row = (f - np.float32(F_OF_BLACK)) * np.float32(_ROWS / (1.0 - F_OF_BLACK))
    read = cv2.remap(table, hue, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    largest = np.asarray(read, np.float32)
    chroma += np.float32(1e-6)
    largest /= chroma
    np.minimum(largest, np.float32(1.0), out=largest)
    a *= largest
    b *= largest
