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

_STEPS, _HUES = 512, 1440
"""Steps of L from black to white, and of the hue over the whole circle."""
_VIVID = 140.0
"""No sRGB colour has more chroma: blue, the most vivid, has 134."""
_HALVINGS = 16
_CLEFT = 8.0
"""Chroma by which neighbours in the table differ at a cleft, but hardly anywhere else."""
_WIDEST = 1 << 14
"""Columns at once; OpenCV's remap takes fewer than 2¹⁵."""
_MANY = 0.4
"""Share of colours from which on picking out those that may not fit takes longer than it saves."""
_ROW = 1024
"""Columns in which the colours that were picked out are laid."""


@cache
def _largest_chroma() -> Plane:
    """(_HUES + 1, _STEPS + 1) largest chroma by hue and L; the last hue repeats the first."""
    import cv2

    f = np.linspace(F_OF_BLACK, 1.0, _STEPS + 1, dtype=np.float32)
    hue = np.linspace(0.0, 2 * np.pi, _HUES + 1, dtype=np.float32)[:, None]
    a, b = np.cos(hue), np.sin(hue)
    low = np.zeros((_HUES + 1, _STEPS + 1), np.float32)
    step = np.float32(_VIVID)
    for _ in range(_HALVINGS):
        step /= 2
        chroma = low + step
        rgb = linear_rgb(f, a * chroma, b * chroma)
        fits = (rgb.min(axis=0) >= 0.0) & (rgb.max(axis=0) <= 1.0)
        low += step * fits
    # Beside yellow the edge has a cleft; interpolated across it, colours would be outside.
    least = cv2.erode(low, np.ones((3, 3), np.uint8))
    return np.maximum(np.where(low - least > _CLEFT, least, low), np.float32(1e-6))


@cache
def _sure_chroma() -> Plane:
    """(256,) the chroma that fits for all hues, from each whole L to the next."""
    at = _largest_chroma().min(axis=0)
    L = np.linspace(0.0, 100.0, _STEPS + 1)
    sure = np.zeros(256, np.float32)
    for whole in range(100):
        ends = np.interp([whole, whole + 1], L, at)
        sure[whole] = min(*ends, *at[(whole <= L) & (whole + 1 >= L)])
    return sure


def fit_chroma(L: Plane, a: Plane, b: Plane) -> None:
    """Reduce the chroma of colours that sRGB cannot show, in place; lightness and hue stay.

    L, a, b (H, W) float32, contiguous; L in 0..100, a and b in ab units.

    The chroma that is left is within 0.3 ab units of the most that fits, for 99.9% of colours;
    beside a cleft near yellow (hue 100°, L above 93) it is less than it could be. Clipping what is
    still outside changes L by at most .005 (tests/colorcore/color/test_gamut.py).
    """
    import cv2

    chroma = np.asarray(cv2.magnitude(a, b), np.float32)
    unsure = chroma > cv2.LUT(L.astype(np.uint8), _sure_chroma())
    count = np.count_nonzero(unsure)
    if count == 0:
        return
    if count > _MANY * unsure.size:
        _fit(L, a, b, chroma)
        return
    # Half of all photos have fewer than one pixel in nine to look up.
    picked = np.flatnonzero(unsure)
    where = np.append(picked, np.full(-count % _ROW, picked[-1])).reshape(-1, _ROW)
    L, some_a, some_b, chroma = (plane.take(where) for plane in (L, a, b, chroma))
    _fit(L, some_a, some_b, chroma)
    a.reshape(-1, copy=False)[where] = some_a
    b.reshape(-1, copy=False)[where] = some_b


def _fit(L: Plane, a: Plane, b: Plane, chroma: Plane) -> None:
    """As :func:`fit_chroma`, for colours whose chroma is known; looks up each of them."""
    import cv2

    for left in range(0, L.shape[1], _WIDEST):
        part = np.s_[:, left : left + _WIDEST]
        hue = np.asarray(cv2.phase(a[part], b[part]), np.float32)
        hue *= np.float32(_HUES / (2 * np.pi))
        column = L[part] * np.float32(_STEPS / 100.0)
        largest = np.asarray(
            cv2.remap(
                _largest_chroma(),
                column,
                hue,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            ),
            np.float32,
        )
        largest /= cv2.max(chroma[part], largest)
        a[part] *= largest
        b[part] *= largest
