"""The measures of colour by which `cc shard` keeps or refuses a photo.

A colorizer learns its colours from its photos. Grey scans, sepia prints and dull pictures teach it
to predict brown, so they are refused before training, each with its reason:

``greyscale``      hardly any pixel has chroma (includes grey stored as RGB)
``single_hue``     all chroma lies on one ray from neutral: sepia, cyanotype, a flat tint
``not_colorful``   Hasler-Süsstrunk colourfulness below the threshold
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from colorcore.color.lab import AB_OFFSET

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Array = TypeVar("_Array", bound=Any)

GREY_CHROMA = 6.0
"""Chroma (ab units) up to which a pixel counts as grey; sensor and JPEG noise stay below."""
GREY_SHARE = 0.01
"""A photo is greyscale if at most this share of its pixels exceeds ``GREY_CHROMA``."""
TONED_RESIDUAL = 1.7
"""RMS residual (ab units) up to which colour is a function of lightness: a toned print.

Measured on sepia, cyanotype, duotone and tinted renderings of 150 photos at 256 x 256: median
0.3, 99% below 1.1; after JPEG at quality 75, median 0.8, 95% below 1.4 and all below 2.7. The
threshold refuses all of the former, and at least 97% of each kind of the latter. Two saturated,
distant inks (pure blue to pure yellow) have a residual of 2 to 8 and pass.
"""
SINGLE_HUE_RESIDUAL = 3.5
"""The same limit for pictures whose chroma also lies on one ray: worn prints, uneven toning."""
SINGLE_HUE_SPREAD = 2.2
"""RMS distance (ab units) from the hue ray up to which chroma lies on one ray.

The three limits were set by eye on 1,000 ImageNet and 200 BSDS photos, sorted by these measures:
they refuse 38 photos, among them every sepia print and about 25 that show only blue sea, brown fur
or snow. Photographs have a median residual of 9 and a median spread of 5.
"""
SINGLE_HUE_ONE_SIDED = 0.9
"""|mean ab| / mean chroma above which all chroma lies on one side of neutral.

Red and cyan also lie on a line through neutral, but are two hues; their ratio is far lower.
"""


def colorfulness(rgb: _Array) -> _Array:
    """Colourfulness CF of Hasler and Süsstrunk (2003, "Measuring colourfulness in natural images").

    rgb (..., 3, H, W), a floating NumPy array or torch tensor in 0..255 -> (...,), 0 for grey,
    about 15 "slightly", 33 "moderately", 109 "extremely colourful" (their table 2).

    CF = σ + 0.3 μ with rg = R − G, yb = (R + G)/2 − B, σ = √(σ²rg + σ²yb), μ = √(μ²rg + μ²yb):
    the signed form with population standard deviations.
    """
    red, green, blue = rgb[..., 0, :, :], rgb[..., 1, :, :], rgb[..., 2, :, :]
    variance, square_of_mean = 0.0, 0.0
    for opponent in (red - green, (red + green) * 0.5 - blue):
        mean = opponent.mean((-2, -1))
        spread = opponent - mean[..., None, None]
        variance = (spread * spread).mean((-2, -1)) + variance
        square_of_mean = mean * mean + square_of_mean
    result: _Array = variance**0.5 + 0.3 * square_of_mean**0.5
    return result


def colorfulness_u8(rgb: NDArray[np.uint8]) -> float:
    """:func:`colorfulness` of one photo, exact, in a fifth of the time. rgb (H, W, 3) uint8.

    Means and mean squares of rg and yb follow from the channels' sums and from the sums of their
    squared differences, which are integers: with x = R − B and y = G − B,
    4 yb² = (x + y)² = 2x² + 2y² − (x − y)², and x − y = rg.
    """
    import cv2

    red, green, blue = cv2.split(rgb)
    pixels = red.size
    xx, yy, rg2 = (
        cv2.norm(one, other, cv2.NORM_L2SQR) / pixels
        for one, other in ((red, blue), (green, blue), (red, green))
    )
    mean_red, mean_green, mean_blue, _ = cv2.mean(rgb)
    rg, yb = mean_red - mean_green, (mean_red + mean_green) / 2 - mean_blue
    variance = rg2 - rg**2 + (2 * xx + 2 * yy - rg2) / 4 - yb**2
    return math.sqrt(max(variance, 0.0)) + 0.3 * math.hypot(rg, yb)


@dataclass(frozen=True, slots=True)
class HueSpread:
    """The distribution of a photo's chroma in the ab plane.

    coloured   share of pixels, 0..1, with chroma above :data:`GREY_CHROMA`
    spread     RMS distance from the best line through neutral, ab units
    one_sided  |mean ab| / mean chroma, from 0 (hues cancel out) to 1 (one ray)
    residual   RMS distance from the mean ab of pixels of equal lightness, ab units
    """

    coloured: float
    spread: float
    one_sided: float
    residual: float

    @property
    def is_greyscale(self) -> bool:
        """Hardly any pixel has chroma."""
        return self.coloured <= GREY_SHARE

    @property
    def is_single_hue(self) -> bool:
        """Colour depends only on lightness (a toned print), or all chroma lies on one ray."""
        return self.residual < TONED_RESIDUAL or (
            self.residual < SINGLE_HUE_RESIDUAL
            and self.spread < SINGLE_HUE_SPREAD
            and self.one_sided > SINGLE_HUE_ONE_SIDED
        )


def hue_spread(lab_u8: NDArray[np.uint8]) -> HueSpread:
    """The ab plane's moments of one photo. lab_u8 (3, H, W) stored LAB.

    The best line through neutral is the first principal axis of the uncentred second moments
    [[E a², E ab], [E ab, E b²]]; the smaller eigenvalue is the mean squared distance from it.
    The residual is the within-group deviation of ab grouped by lightness; see
    :func:`_residual_given_L`.
    """
    import cv2

    step = max(1, min(lab_u8.shape[1:]) // _MOMENTS_SIDE)
    a, b = lab_u8[1:, ::step, ::step].reshape(2, -1).astype(np.float32) - AB_OFFSET
    pixels = a.size
    chroma = cv2.magnitude(a, b)
    aa, ab, bb = (float(one @ other) / pixels for one, other in ((a, a), (a, b), (b, b)))
    smaller = (aa + bb) / 2 - math.hypot((aa - bb) / 2, ab)
    mean_a, mean_b, mean_chroma = (cv2.mean(values)[0] for values in (a, b, chroma))
    return HueSpread(
        coloured=np.count_nonzero(chroma > GREY_CHROMA) / pixels,
        spread=max(smaller, 0.0) ** 0.5,
        one_sided=math.hypot(mean_a, mean_b) / mean_chroma if mean_chroma > 0 else 0.0,
        residual=_residual_given_L(lab_u8),
    )


_MOMENTS_SIDE = 128
"""Moments use a grid of about this many pixels per side: more would not change them."""
_CELLS = 32
"""The residual is measured on this many cells per side, for samples of any size."""
_NEAR_WHITE = 232
"""Stored L (91 of 100) above which toning clips: channels saturate one after the other."""


def _residual_given_L(lab_u8: NDArray[np.uint8]) -> float:
    """RMS distance of ab from the mean ab of equal lightness. lab_u8 (3, H, W) stored LAB.

    Measured on the means of ``_CELLS`` x ``_CELLS`` cells: JPEG stores chroma coarsely, which adds
    false colour around edges, and a cell averages it away. Near-white pixels are left out unless
    they are most of the photo. Groups are two stored levels of L wide. The sum of squares is
    divided by cells minus groups, so that a photo with few cells does not pass for a toned print.
    """
    import cv2

    dark = cv2.threshold(lab_u8[0], _NEAR_WHITE - 1, 255, cv2.THRESH_BINARY_INV)[1]
    pixels = _cell_sums(dark)[0] // 255
    area = _cell_grid(*dark.shape).area
    used = pixels > area / 4
    if np.count_nonzero(used) < used.size / 4:
        dark[:] = 255
        pixels, used = area, area > 0
    sums = _cell_sums(*(cv2.bitwise_and(plane, dark) for plane in lab_u8))
    L, a, b = sums.compress(used, axis=1) / pixels[used]
    group = np.rint(L / 2).astype(np.int64)
    count = np.bincount(group)
    within = 0.0
    for plane in (a - AB_OFFSET, b - AB_OFFSET):
        total = np.bincount(group, plane)
        within += float(plane @ plane - (total * total / np.maximum(count, 1)).sum())
    freedom = L.size - int(np.count_nonzero(count))
    return math.sqrt(max(within, 0.0) / max(freedom, 1))


class _CellGrid(NamedTuple):
    """Borders of the cells, (cells + 1,) per axis, and pixels per cell, (cells,)."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    area: NDArray[np.int64]


@cache
def _cell_grid(height: int, width: int) -> _CellGrid:
    """``_CELLS`` cells per side, of whole pixels; fewer if a side has fewer pixels."""
    rows, columns = (
        np.linspace(0, side, min(side, _CELLS) + 1).astype(np.int64) for side in (height, width)
    )
    return _CellGrid(rows, columns, np.multiply.outer(np.diff(rows), np.diff(columns)).ravel())


def _cell_sums(*planes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Sums of the pixels of each cell. P planes (H, W) uint8 -> (P, cells), row by row."""
    import cv2

    rows, columns, _ = _cell_grid(*planes[0].shape)
    corners = np.stack([cv2.integral(plane).take(rows, 0).take(columns, 1) for plane in planes])
    bands = corners[:, 1:] - corners[:, :-1]
    sums = bands[:, :, 1:] - bands[:, :, :-1]
    return np.asarray(sums, np.int32).reshape(len(planes), -1)
