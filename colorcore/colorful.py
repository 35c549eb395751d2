"""What counts as colourful: the measures by which `cc shard` keeps or refuses a photo.

A colorizer learns its colours from its photos. Grey scans, sepia prints and dull pictures
teach it to answer "brown", so they are refused before training, each with its reason:

``greyscale``      hardly a pixel has any chroma (grey stored as RGB included)
``single_hue``     all chroma lies on one ray from neutral: sepia, cyanotype, a flat tint
``not_colorful``   Hasler-Süsstrunk colourfulness below the threshold
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from colorcore.lab import AB_OFFSET

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Array = TypeVar("_Array", bound=Any)

GREY_CHROMA = 6.0
"""Chroma (ab units) up to which a pixel passes for grey; sensor and JPEG noise stay below."""
GREY_SHARE = 0.01
"""A photo is greyscale when at most this share of its pixels has more chroma than that."""
TONED_RESIDUAL = 1.5
"""RMS residual (ab units) up to which colour is a function of lightness: a toned print.

Sepia, cyanotype and duotone renderings of real photos stay under 1 (rounding included).
"""
SINGLE_HUE_RESIDUAL = 3.5
"""The same, for a picture whose chroma lies on one ray as well: worn prints, uneven toning."""
SINGLE_HUE_SPREAD = 2.2
"""RMS distance (ab units) from the hue ray up to which that holds.

The three limits were set by eye on 1,000 ImageNet photos, sorted by these measures: they take
every sepia print among them and about ten photos that are nothing but blue sea or brown fur.
Photographs have a median residual of 10 and a median spread of 5.
"""
SINGLE_HUE_ONE_SIDED = 0.9
"""|mean ab| / mean chroma from which on the chroma lies on one side of neutral.

Red against cyan is a line through neutral too, but two hues; its ratio is far lower.
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


@dataclass(frozen=True, slots=True)
class HueSpread:
    """How a photo's chroma lies in the ab plane.

    coloured   share of pixels, 0..1, with chroma above :data:`GREY_CHROMA`
    spread     RMS distance from the best line through neutral, ab units
    one_sided  |mean ab| / mean chroma, 0 (hues cancel out) .. 1 (one ray)
    residual   RMS distance from the mean ab of the pixels of equal lightness, ab units
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
        """Colour only follows lightness (a toned print), or all chroma lies on one ray."""
        return self.residual < TONED_RESIDUAL or (
            self.residual < SINGLE_HUE_RESIDUAL
            and self.spread < SINGLE_HUE_SPREAD
            and self.one_sided > SINGLE_HUE_ONE_SIDED
        )


def hue_spread(lab_u8: NDArray[np.uint8]) -> HueSpread:
    """The ab plane's moments of one photo. lab_u8 (3, H, W) stored LAB.

    The best line through neutral is the first principal axis of the uncentred second moments
    [[E a², E ab], [E ab, E b²]]; the smaller eigenvalue is the mean squared distance from it.
    The residual is the within-group deviation of ab grouped by the 256 stored levels of L,
    from every fourth pixel.
    """
    import cv2

    ab = lab_u8[1:].astype(np.float32).reshape(2, -1) - AB_OFFSET
    pixels = ab.shape[1]
    chroma = cv2.magnitude(ab[0], ab[1])
    moments = (ab @ ab.T).astype(np.float64) / pixels
    smaller = float(np.linalg.eigvalsh(moments)[0])
    mean_chroma = float(chroma.mean())
    mean = ab.mean(axis=1)
    return HueSpread(
        coloured=cv2.countNonZero((chroma > GREY_CHROMA).view(np.uint8)) / pixels,
        spread=max(smaller, 0.0) ** 0.5,
        one_sided=float(np.hypot(mean[0], mean[1])) / mean_chroma if mean_chroma > 0 else 0.0,
        residual=_residual_given_L(lab_u8[:, ::2, ::2]),
    )


def _residual_given_L(lab_u8: NDArray[np.uint8]) -> float:
    """RMS distance of ab from the mean ab of the same stored L. lab_u8 (3, H, W)."""
    L = lab_u8[0].ravel()
    ab = lab_u8[1:].reshape(2, -1).astype(np.float64) - AB_OFFSET
    count = np.maximum(np.bincount(L, minlength=256), 1)
    explained = sum(float((np.bincount(L, plane, 256) ** 2 / count).sum()) for plane in ab)
    return math.sqrt(max(float((ab**2).sum()) - explained, 0.0) / L.size)
