"""Upsampling of ab, against OpenCV's bicubic, and at edges of photos that are made here."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from colorcore.colorizing.upsampling import Upsampled, slopes

LARGE = [(64, 96), (31, 45), (200, 7), (9, 300)]
SMALL = [(1, 1), (1, 8), (5, 8), (9, 7)]


def colors(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-100, 100, (2, *shape)).astype(np.float32)


def whole(colors: Upsampled, L: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """Strip by strip."""
    strips = [colors.strip(L[top : top + rows], top) for top in range(0, len(L), rows)]
    return np.stack([np.concatenate(planes) for planes in zip(*strips, strict=True)])


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("large", LARGE, ids=str)
@pytest.mark.parametrize("small", SMALL, ids=str)
def test_without_detail_it_is_bicubic(small: tuple[int, int], large: tuple[int, int], rows: int):
    ab, flat = colors(*small), np.full(large, 42.0, np.float32)
    made = whole(Upsampled(np.full(small, 42.0, np.float32), ab, *large), flat, rows)
    expected = [cv2.resize(plane, large[::-1], interpolation=cv2.INTER_CUBIC) for plane in ab]
    if small[0] > large[0] or small[1] > large[1]:
        return  # shrunk by areas first, which is the next test
    np.testing.assert_allclose(made, expected, atol=2e-2)


def test_a_photo_smaller_than_the_copy_gets_means():
    ab, flat = colors(40, 60), np.full((20, 30), 42.0, np.float32)
    made = whole(Upsampled(np.full((40, 60), 42.0, np.float32), ab, 20, 30), flat, 3)
    expected = ab.reshape(2, 20, 2, 30, 2).mean((2, 4))
    np.testing.assert_allclose(made, expected, atol=1e-3)


def test_slopes_are_those_of_a_regression():
    """Where ab is a line of L, up to what the ridge holds back."""
    rng = np.random.default_rng(1)
    L = rng.uniform(7, 88, (30, 40)).astype(np.float32)
    a, b = 0.6 * L - 3, -0.2 * L + 9
    found = slopes(L, np.stack([a, b]))
    assert 0.35 < found[0].mean() < 0.6
    np.testing.assert_allclose(found[1], found[0] * (-0.2 / 0.6), atol=5e-4)
    np.testing.assert_allclose(slopes(np.full_like(L, 42.0), colors(30, 40)), 0, atol=1e-4)


@pytest.mark.parametrize("factor", [4, 10, 20])
def test_colours_end_where_the_lightness_does(factor: int):
    """A red disc on green, lighter by half: at its edge bilinear colours are wrong for a pixel."""
    y, x = np.mgrid[:240, :320]
    disc = np.hypot(x - 163, y - 117) < 70
    L = np.where(disc, 77.0, 42.0).astype(np.float32)
    ab = np.stack([np.where(disc, 50, -40), np.where(disc, 30, 35)]).astype(np.float32)
    size = (320 // factor, 240 // factor)
    small_L, *small_ab = (cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in (L, *ab))
    made = whole(Upsampled(small_L, np.stack(small_ab), 240, 320), L, 16)
    linear = np.stack([cv2.resize(p, (320, 240), interpolation=cv2.INTER_LINEAR) for p in small_ab])
    near = cv2.dilate(disc.astype(np.uint8), np.ones((9, 9))) != cv2.erode(
        disc.astype(np.uint8), np.ones((9, 9))
    )
    error, before = (np.hypot(*(each - ab))[near].mean() for each in (made, linear))
    assert error < 0.7 * before


def test_one_colour_stays_one_colour():
    rng = np.random.default_rng(2)
    L = rng.uniform(7, 88, (100, 150)).astype(np.float32)
    small = cv2.resize(L, (15, 10), interpolation=cv2.INTER_AREA)
    ab = np.broadcast_to(np.float32([12, -9])[:, None, None], (2, 10, 15)).copy()
    made = whole(Upsampled(small, ab, 100, 150), L, 9)
    np.testing.assert_allclose(made[0], 12, atol=1e-3)
    np.testing.assert_allclose(made[1], -9, atol=1e-3)
