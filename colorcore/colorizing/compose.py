"""The work per pixel of colourizing: a photo's own lightness, with colours of a small copy.

``compose`` does in one pass what conversions to CIELAB and back would do in several: lightness from
R, G and B, ab beside it, chroma that sRGB can show, and back to R, G and B. Strips are small enough
for a core's cache, so memory is little more than the photo and its result.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.color.gamut import fit_chroma
from colorcore.color.pixels import lightness, srgb
from colorcore.colorizing.upsampling import Upsampled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from colorcore.color.pixels import Pixels, Plane

STRIP_PIXELS = 1 << 16
"""Pixels per strip: its dozen planes of 256 kB stay in a core's cache."""


@contextmanager
def blas_on_one_thread() -> Iterator[None]:
    """Let no matrix product of this process use more than one thread; not to be nested in threads.

    A strip's product is so small that BLAS's other threads do more waiting than work: they tripled
    the CPU time of ``compose``.
    """
    with _blas().limit(limits=1, user_api="blas"):
        yield


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


def compose(pixels: Pixels, L: Plane, ab: NDArray[np.float32], *, threads: int = 1) -> Pixels:
    """A photo with the colours of its small copy, and its own lightness.

    pixels (H, W, 3) sRGB or (H, W) grey, uint8 or uint16; L (h, w), 0..100, and ab (2, h, w), in
    ab units, are those of the small copy. Strips are shared by ``threads``.
    Returns (H, W, 3) sRGB of the same type. L differs by rounding, and by at most .01 where chroma
    had to be reduced to what sRGB can show.
    """
    height, width = pixels.shape[:2]
    out = np.empty((height, width, 3), pixels.dtype)
    colors = Upsampled(L, ab, height, width)
    rows = max(1, STRIP_PIXELS // width)

    def strip(top: int) -> None:
        part = np.s_[top : top + rows]
        own_L = lightness(pixels[part])
        a, b = colors.strip(own_L, top)
        fit_chroma(own_L, a, b)
        srgb(own_L, a, b, out[part])

    tops = range(0, height, rows)
    if threads == 1:
        for top in tops:
            strip(top)
        return out
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(strip, top) for top in tops]:
            done.result()
    return out


def paint(
    pixels: Pixels,
    copy: NDArray[np.float32],
    ab: NDArray[np.float32],
    *,
    strength: float = 1.0,
    threads: int = 1,
) -> Pixels:
    """A photo in the colours of its small copy.

    pixels (H, W, 3) sRGB or (H, W) grey, uint8 or uint16; ``copy`` (3, h, w) CIELAB, what the
    network saw; ab (2, h, w) predicted for it. ``strength`` is the share of the predicted colours,
    0..1; the rest is the copy's own, which is none for a grey photo.
    Returns (H, W, 3) sRGB of the same type, whose L differs from the photo's only by rounding.
    """
    if strength < 1.0:
        ab = np.float32(strength) * ab + np.float32(1.0 - strength) * copy[1:]
    return compose(pixels, copy[0], np.ascontiguousarray(ab), threads=threads)
