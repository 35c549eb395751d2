"""Upsampling of ab from the size of the network to the photo's, guided by the photo's lightness.

Bicubic interpolation of a few hundred pixels lets colours bleed across the edges of a photo of many
megapixels. Most of these edges are edges of lightness, too, so a linear relation between lightness
and ab, fitted around each small pixel as in the guided filter (He, Sun and Tang 2013, eq. 5 and 6),
on the small copy as in its fast form (He and Sun 2015), moves the colours to where the photo's own
edges are:

    ab = cubic(ab_small) + cubic(slope) · (f - cubic(f_small))

with the products taken between rows of the small copy, after it was made wide. Unlike the filter
itself this adds only what the small copy cannot show, and leaves everything else as predicted.
``python -m tests.experiments.upsampling`` measures what it gains.
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
        wide = np.asarray(
            cv2.resize(planes.reshape(-1, w), (width, 5 * h), interpolation=cv2.INTER_CUBIC)
        ).reshape(5, h, width)
        wide[1:3] -= wide[3:] * wide[0]
        self._rows = np.ascontiguousarray(wide[1:].transpose(1, 0, 2)).reshape(h, -1)
        self._taps, self._weights = _cubic(h, height)
        self._width = width

    def strip(self, f: Plane, top: int) -> tuple[Plane, Plane]:
        """The a and b (rows, width) from row ``top`` on; the photo's own f is (rows, width)."""
        taps, weights = self._taps[top : top + len(f)], self._weights[top : top + len(f)]
        first = int(taps[0, 0])
        some = np.zeros((len(f), int(taps[-1, -1]) - first + 1), np.float32)
        np.add.at(some, (np.arange(len(f))[:, None], taps - first), weights)
        rows = (some @ self._rows[first : first + some.shape[1]]).reshape(len(f), 4, self._width)
        a, b = f * rows[:, 2], f * rows[:, 3]
        a += rows[:, 0]
        b += rows[:, 1]
        return a, b


def _cubic(small: int, height: int) -> tuple[NDArray[np.intp], Plane]:
    """The four of ``small`` rows that each of ``height`` rows is made of, and their weights.

    Keys 1981, eq. 4; pixel centres are at half integers, and beyond the edge is the edge.
    """
    where = (np.arange(height) + 0.5) * small / height - 0.5
    taps = np.floor(where).astype(np.intp)[:, None] + np.arange(-1, 3)
    x = np.abs(where[:, None] - taps)
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
    return taps.clip(0, small - 1), np.where(x <= 1, near, far).astype(np.float32)
