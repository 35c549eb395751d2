"""A photo before and after, as one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Depth = TypeVar("_Depth", np.uint8, np.uint16)

STACKED_FROM = 2.0
"""Width / height from which the two are stacked. At 2:1 that gives 1:1, side by side 4:1."""
GAP_SHARE = 0.008
"""Width of the gap, as a share of the photo's shorter side."""
THINNEST_GAP = 2
"""Pixels of the gap between small photos."""
_MIDDLE_GREY = 0.5
"""The gap's level, a share of white: visible next to black and next to white borders."""


def side_by_side(before: NDArray[_Depth], after: NDArray[_Depth]) -> NDArray[_Depth]:
    """``before`` left of ``after``, or above it if they are at least twice as wide as tall.

    before, after (H, W, 3) of one size, uint8 or uint16 -> (H, 2W + gap, 3), or (2H + gap, W, 3),
    of the same type. No pixel is changed.

    Raises:
        ValueError: the shapes or types differ, or are others.
    """
    if (
        before.shape != after.shape
        or before.dtype != after.dtype
        or before.ndim != 3
        or before.shape[2] != 3
        or not before.size
        or before.dtype not in (np.uint8, np.uint16)
    ):
        raise ValueError(
            "expected two pictures (H, W, 3) of one size, both uint8 or both uint16, got "
            f"{before.shape} {before.dtype} and {after.shape} {after.dtype}"
        )
    height, width = before.shape[:2]
    gap = max(THINNEST_GAP, round(GAP_SHARE * min(height, width)))
    axis = 0 if width >= STACKED_FROM * height else 1
    shape = list(before.shape)
    shape[axis] = 2 * shape[axis] + gap
    # Written in place: two photos of 100 megapixels must not be held three times.
    grey = round(_MIDDLE_GREY * np.iinfo(before.dtype).max)
    joined = np.empty(shape, before.dtype)
    along = np.moveaxis(joined, axis, 0)
    side = before.shape[axis]
    along[:side] = np.moveaxis(before, axis, 0)
    along[side : side + gap] = grey
    along[side + gap :] = np.moveaxis(after, axis, 0)
    return joined
