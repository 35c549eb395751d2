"""Upsampling of ab from the size of the network to the photo's, guided by the photo's lightness.

Bicubic interpolation of a few hundred pixels lets colours bleed across the edges of a photo of many
megapixels. Most of these edges are edges of lightness, too, so a linear relation between lightness
and ab, fitted around each small pixel as in the guided filter (He, Sun and Tang 2013, eq. 5 and 6),
on the small copy as in its fast form (He and Sun 2015), moves the colours to where the photo's own
edges are:

    ab = cubic(ab_small) + cubic(slope) · (f - cubic(f_small))

Unlike the filter itself this adds only what the small copy cannot show, and leaves everything else
as it was predicted. ``python -m tests.experiments.upsampling`` measures what it gains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Plane = NDArray[np.float32]

EPSILON = 0.015
"""What is added to the variance of f around a pixel: edges of less than √EPSILON hardly count."""
_CUBIC = -0.75
"""The parameter a of Keys's (1981) kernel, as in OpenCV's resize."""
_SHRINK = 3
"""OpenCV's INTER_AREA, which is imported inside functions."""


def slopes(f: Plane, ab: NDArray[np.float32]) -> NDArray[np.float32]:
    """How ab changes with lightness around each pixel. f (h, w), ab (2, h, w) -> (2, h, w).

    The slope of a ridge regression over 3 x 3 pixels, averaged over 3 x 3 such windows.
    """
    import cv2

    def mean(plane: NDArray[Any]) -> Plane:
        blurred = cv2.boxFilter(plane, -1, (3, 3), borderType=cv2.BORDER_REFLECT)
        return np.asarray(blurred, np.float32)

    mean_f = mean(f)
    variance = mean(f * f) - mean_f * mean_f + np.float32(EPSILON)
    return np.stack([mean((mean(f * c) - mean_f * mean(c)) / variance) for c in ab])


class Upsampled:
    """ab of a small copy at the photo's size, strip by strip.

    f (h, w) and ab (2, h, w), ab units, are the small copy's; ``height`` and ``width`` the photo's.
    """

    def __init__(self, f: Plane, ab: NDArray[np.float32], height: int, width: int) -> None:
        import cv2

        planes = np.stack([f, *ab, *slopes(f, ab)])
        h, w = min(f.shape[0], height), min(f.shape[1], width)
        if (h, w) != f.shape:  # the photo is smaller than the network's copy
            planes = np.stack([cv2.resize(each, (w, h), interpolation=_SHRINK) for each in planes])
        # Wide now, high later: a strip of the photo needs few of these rows.
        rows = np.ascontiguousarray(planes.transpose(1, 0, 2)).reshape(-1, w)
        wide = cv2.resize(rows, (width, len(rows)), interpolation=cv2.INTER_CUBIC)
        self._rows = np.asarray(wide, np.float32).reshape(h, -1)
        self._height, self._width = height, width

    def strip(self, f: Plane, top: int) -> tuple[Plane, Plane]:
        """The a and b (rows, width) from row ``top`` on; the photo's own f is (rows, width)."""
        first, weights = _cubic_weights(top, len(f), len(self._rows), self._height)
        rows = weights @ self._rows[first : first + weights.shape[1]]
        small_f, a, b, slope_a, slope_b = rows.reshape(len(f), -1, self._width).transpose(1, 0, 2)
        detail = f - small_f
        slope_a *= detail
        slope_b *= detail
        slope_a += a
        slope_b += b
        return slope_a, slope_b


def _cubic_weights(top: int, rows: int, small: int, height: int) -> tuple[int, Plane]:
    """The first of ``small`` rows, and the weights (rows, n) of n rows from it on, of a strip.

    Keys 1981, eq. 4; pixel centres are at half integers, and beyond the edge is the edge.
    """
    where = (np.arange(top, top + rows) + 0.5) * small / height - 0.5
    start = np.floor(where).astype(int) - 1
    taps = start[:, None] + np.arange(4)
    x = np.abs(where[:, None] - taps)
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
    taps = taps.clip(0, small - 1)
    first = int(taps.min())
    weights = np.zeros((rows, int(taps.max()) - first + 1), np.float32)
    np.add.at(weights, (np.arange(rows)[:, None], taps - first), np.where(x <= 1, near, far))
    return first, weights
