"""Upsampling of ab from the size of the network to the photo's, guided by the photo's lightness.

Bicubic interpolation of a few hundred pixels lets colours bleed across the edges of a photo of many
megapixels. Most of these edges are edges of lightness, too, so a linear relation between lightness
and ab, fitted around each small pixel as in the guided filter (He, Sun and Tang 2013, eq. 5 and 6),
on the small copy as in its fast form (He and Sun 2015), moves the colours to where the photo's own
edges are:

    ab = cubic(ab_small) + cubic(slope) · (L - cubic(L_small))

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

EPSILON = 200.0
"""What is added to the variance of L around a pixel: edges of less than √EPSILON hardly count."""
_CUBIC = -0.75
"""The parameter a of Keys's (1981) kernel, as in OpenCV's resize."""
_SHRINK = 3
"""OpenCV's INTER_AREA, which is imported inside functions."""


def slopes(L: Plane, ab: NDArray[np.float32]) -> NDArray[np.float32]:
    """How ab changes with L around each pixel. L (h, w), ab (2, h, w) -> (2, h, w).

    The slope of a ridge regression over 3 x 3 pixels, averaged over 3 x 3 such windows.
    """
    import cv2

    def mean(plane: NDArray[Any]) -> Plane:
        blurred = cv2.boxFilter(plane, -1, (3, 3), borderType=cv2.BORDER_REFLECT)
        return np.asarray(blurred, np.float32)

    mean_L = mean(L)
    variance = mean(L * L) - mean_L * mean_L + np.float32(EPSILON)
    return np.stack([mean((mean(L * c) - mean_L * mean(c)) / variance) for c in ab])


class Upsampled:
    """ab of a small copy at the photo's size, strip by strip.

    L (h, w), 0..100, and ab (2, h, w), ab units, are the small copy's; ``height`` and ``width`` the
    photo's.
    """

    def __init__(self, L: Plane, ab: NDArray[np.float32], height: int, width: int) -> None:
        import cv2

        planes = np.stack([L, *ab, *slopes(L, ab)])
        h, w = min(L.shape[0], height), min(L.shape[1], width)
        if (h, w) != L.shape:  # the photo is smaller than the network's copy
            planes = np.stack([cv2.resize(each, (w, h), interpolation=_SHRINK) for each in planes])
        # Wide now, high later: a strip of the photo needs few of these rows.
        wide = np.asarray(
            cv2.resize(planes.reshape(-1, w), (width, 5 * h), interpolation=cv2.INTER_CUBIC)
        ).reshape(5, h, width)
        wide[1:3] -= wide[3:] * wide[0]
        self._rows = wide[1:]
        self._taps, self._weights = _cubic(h, height)

    def strip(self, L: Plane, top: int) -> tuple[Plane, Plane]:
        """The a and b (rows, width) from row ``top`` on; the photo's own L is (rows, width)."""
        taps, weights = self._taps[top : top + len(L)], self._weights[top : top + len(L)]
        first = int(taps[0, 0])
        some = np.zeros((len(L), int(taps[-1, -1]) - first + 1), np.float32)
        np.add.at(some, (np.arange(len(L))[:, None], taps - first), weights)
        rows = self._rows[:, first : first + some.shape[1]]
        # One plane at a time: together they would not stay in a core's cache.
        a, b = some @ rows[2], some @ rows[3]
        a *= L
        a += some @ rows[0]
        b *= L
        b += some @ rows[1]
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
