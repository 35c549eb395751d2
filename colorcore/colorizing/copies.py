"""A photo and its small copy: what the network sees, and how its colours come back.

The network sees small copies, in batches. Their ab is upsampled beside the photo's own lightness,
so details stay as sharp as they were:

``small_copy`` -> ``Colorizer.predict`` (batches of copies of one shape) -> ``paint``
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.color.lab import lab_of_srgb
from colorcore.colorizing.compose import compose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from colorcore.color.pixels import Pixels

    Lab = NDArray[np.float32]
    """(3, h, w) CIELAB."""

MAX_ASPECT = 16
"""Longer photos get a smaller copy: networks pad its shorter side, and that of 1 x 20,000 pixels
would fill the memory."""
BATCH = 8
"""Copies per pass of the network."""


def small_copy(pixels: Pixels, size: int) -> Lab:
    """The copy of a photo that the network sees, in CIELAB: (3, h, w).

    pixels (H, W, 3) sRGB or (H, W) grey, uint8 or uint16. ``size`` is the shorter side of the copy
    in pixels (that of the network's training samples); the copy of a photo longer than 16:1 is no
    longer than that of one of 16:1.
    """
    import cv2

    height, width = pixels.shape[:2]
    scale = size * min(1.0 / min(height, width), MAX_ASPECT / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    copy: NDArray[Any] = pixels
    # By halves as long as they are whole: the same means of areas, for an eighth of the time.
    while height % 2 == width % 2 == 0 and min(height, width) >= 4 * min(small):
        height, width = height // 2, width // 2
        copy = np.asarray(cv2.resize(copy, (width, height), interpolation=cv2.INTER_AREA))
    how = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_CUBIC
    copy = np.asarray(cv2.resize(copy, small, interpolation=how))
    if copy.ndim == 2:
        copy = np.repeat(copy[..., None], 3, axis=2)
    return lab_of_srgb(copy.astype(np.float32) / np.iinfo(pixels.dtype).max)


def batches_of(copies: Sequence[Lab]) -> Iterator[list[int]]:
    """Which copies go through the network together: of one shape, at most ``BATCH``, in order."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, copy in enumerate(copies):
        alike.setdefault(copy.shape, []).append(number)
    for shape in sorted(alike):
        numbers = alike[shape]
        yield from (numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH))


def paint(
    pixels: Pixels,
    copy: Lab,
    ab: NDArray[np.float32],
    *,
    strength: float = 1.0,
    threads: int = 1,
) -> Pixels:
    """A photo in the colours of its small copy.

    pixels (H, W, 3) sRGB or (H, W) grey, uint8 or uint16; ``copy`` (3, h, w) as from
    :func:`small_copy`; ab (2, h, w) predicted for it. ``strength`` is the share of the predicted
    colours, 0..1; the rest is the copy's own, which is none for a grey photo.
    Returns (H, W, 3) sRGB of the same type, whose L differs from the photo's only by rounding.
    """
    if strength < 1.0:
        ab = np.float32(strength) * ab + np.float32(1.0 - strength) * copy[1:]
    return compose(pixels, copy[0], np.ascontiguousarray(ab), threads=threads)
