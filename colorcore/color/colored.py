"""Whether a photo has colours already: `cc colorize` leaves such photos alone.

The measure and its thresholds are those by which `cc shard` refuses grey and toned photos
(:mod:`colorcore.color.colorfulness`), applied to the whole photo instead of its centre square.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.color.colorfulness import SINGLE_HUE_ONE_SIDED, HueSpread, hue_spread
from colorcore.color.lab import encode_lab
from colorcore.color.pixels import require_photo

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 256
"""Longer side in pixels of the copy that is measured: the size for which the thresholds were set.
A smaller photo is measured as it is."""
PAPER_SPREAD = 1.2
"""RMS distance (ab units) from the hue ray below which a tint of the whole photo is one hue.

Paper that has yellowed more at its edges than in its middle has one hue, but its chroma does not
follow from lightness. Of such renderings of 1,200 photos 114 would be called coloured without this
rule, 9 are with it; of the photos themselves it changes none.
"""
PAPER_SHARE = 0.5
"""Share of pixels with chroma above which a tint is one of the whole photo, unlike a red rose."""
_SAMPLES = 2
"""Pixels of the photo per pixel of the copy and axis. The mean over all pixels costs 30 ms more at
12 megapixels and decided one of 200 enlarged photos differently, one on the threshold: the residual
averages noise and JPEG's coarse chroma over cells of 8 x 8 pixels of the copy anyway."""


def is_colored(rgb: NDArray[Any]) -> bool:
    """Whether a photo has more than one hue axis. rgb (H, W) or (H, W, 3), uint8 or uint16 sRGB.

    False for grey scans stored as RGB, for sepia, selenium, cyanotypes and other toned prints,
    yellowed paper and a scanner's colour cast, also after JPEG compression. Area decides: a stamp,
    a date or a coloured pencil mark on a grey photo counts as colour if more than 1% of the pixels
    have chroma; on a toned one, if it raises the residual above ``TONED_RESIDUAL``, which a date
    in the corner does not.

    The measure cannot tell a sepia print from a colour photo of one hue, such as one of the open
    sea or of brown fur, and calls both not coloured. So it does photos of a few pixels. Of 1,200
    photos of ImageNet and BSDS (about 500 pixels) it calls 62 not coloured: 26 are grey, about 12
    toned and about 24 of one hue, 2% of the colour photos. Of prints made from these photos, as
    JPEG of quality 60, it calls coloured none that are grey, with or without noise or a date, or
    have a scanner's cast; 0.3% of the yellowed and 0.8% of the unevenly yellowed ones; 0 to 2% of
    the cyanotypes; 0, 2 and 7% of sepia of half, three quarters and full strength; 3 to 5% of
    vivid duotones. ``python -m tests.experiments.colored`` counts them.

    Raises:
        ValueError: the array has another shape or type.
    """
    hue = photo_hues(rgb)
    is_old_paper = (
        hue.coloured > PAPER_SHARE
        and hue.spread < PAPER_SPREAD
        and hue.one_sided > SINGLE_HUE_ONE_SIDED
    )
    return not (hue.is_greyscale or hue.is_single_hue or is_old_paper)


def photo_hues(rgb: NDArray[Any]) -> HueSpread:
    """The measure behind :func:`is_colored`; 1 to 2 ms for 12 megapixels.

    rgb as there; (H, W) has no chroma.

    Raises:
        ValueError: the array has another shape or type.
    """
    require_photo(rgb)
    if rgb.ndim == 2:
        return HueSpread(coloured=0.0, spread=0.0, one_sided=0.0, residual=0.0)
    return hue_spread(encode_lab(_small_copy(rgb)))


def _small_copy(rgb: NDArray[Any]) -> NDArray[np.uint8]:
    """The photo with ``SIDE`` pixels on its longer side, in 8 bits. -> (h, w, 3) uint8."""
    import cv2

    height, width = rgb.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = rgb
    if scale * _SAMPLES < 1:
        sampled = min(width, size[0] * _SAMPLES), min(height, size[1] * _SAMPLES)
        small = cv2.resize(small, sampled, interpolation=cv2.INTER_NEAREST)
    if scale < 1:
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    eight = cv2.convertScaleAbs(small, alpha=1 / 257) if small.dtype == np.uint16 else small
    return np.asarray(eight, np.uint8)
