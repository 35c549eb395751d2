"""Two pictures as one: where each pixel goes, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from colorcore.drawing.side_by_side import side_by_side


def pictures(height: int, width: int, dtype):
    rng = np.random.default_rng(0)
    return rng.integers(0, np.iinfo(dtype).max, (2, height, width, 3), dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("height", "width"), [(60, 40), (40, 60), (40, 79), (1, 1)])
def test_next_to_each_other(dtype, height: int, width: int):
    before, after = pictures(height, width, dtype)
    joined = side_by_side(before, after)
    assert joined.dtype == dtype
    assert joined.shape == (height, 2 * width + 2, 3)
    assert np.array_equal(joined[:, :width], before)
    assert np.array_equal(joined[:, -width:], after)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_stacked_if_far_wider_than_tall(dtype):
    before, after = pictures(40, 80, dtype)
    joined = side_by_side(before, after)
    assert joined.dtype == dtype
    assert joined.shape == (82, 80, 3)
    assert np.array_equal(joined[:40], before)
    assert np.array_equal(joined[-40:], after)


@pytest.mark.parametrize(("dtype", "grey"), [(np.uint8, 128), (np.uint16, 32768)])
def test_the_gap_is_middle_grey_and_grows_with_the_photo(dtype, grey: int):
    before, after = np.zeros((2, 1000, 1500, 3), dtype)
    after += np.iinfo(dtype).max
    joined = side_by_side(before, after)
    gap = joined[:, 1500:-1500]
    assert gap.shape == (1000, 8, 3)  # 0.8% of the shorter side
    assert (gap == grey).all()


def test_views_are_read_as_they_look():
    """Mirrored and transposed arrays have other strides."""
    before, after = pictures(30, 20, np.uint8)
    joined = side_by_side(before[:, ::-1], after.transpose(1, 0, 2)[:20, :30].transpose(1, 0, 2))
    assert np.array_equal(joined[:, :20], before[:, ::-1])
    assert np.array_equal(joined[:, -20:], after)
    assert joined.flags.c_contiguous


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint16)),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)),
        (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)),
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 3), np.float32)),
        (np.zeros((0, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8)),
    ],
)
def test_wrong_calls(before, after):
    with pytest.raises(ValueError, match=r"expected two pictures \(H, W, 3\) of one size"):
        side_by_side(before, after)
