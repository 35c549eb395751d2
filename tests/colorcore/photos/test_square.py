"""The centre square: cropped, shrunk and enlarged."""

import cv2
import numpy as np
import pytest
from PIL import Image

from colorcore.photos.square import square
from tests.colorcore.photos.photo_files import (
    SCENE,
    three,
)

# ------------------------------------------------------------------------------------ square


def test_square_crops_the_centre():
    assert np.array_equal(square(SCENE, 96), SCENE[:, 16:112])
    tall = np.ascontiguousarray(SCENE.transpose(1, 0, 2))
    assert np.array_equal(square(tall, 96), tall[16:112])
    assert square(SCENE, 96).flags["C_CONTIGUOUS"]


def test_square_shrinks_by_the_mean_of_the_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (96, 130, 3), np.uint8)
    means = noise[:, 17:113].reshape(32, 3, 32, 3, 3).mean((1, 3))
    assert np.abs(square(noise, 32) - means).max() <= 1.0


@pytest.mark.parametrize(("side", "size"), [(257, 256), (375, 256), (512, 256), (1000, 64)])
def test_square_is_the_exact_mean_of_the_area_rounded(side: int, size: int):
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    edges = np.arange(size + 1)[:, None] * side / size
    covered = np.clip(edges - np.arange(side), 0, 1)  # of each pixel, left of each edge
    share = np.diff(covered, axis=0) * size / side
    exact = np.einsum("ij,jkc,lk->ilc", share, noise, share, optimize=True)
    assert np.abs(square(noise, size) - exact).max() <= 0.5 + 1e-3


def test_square_leaves_opencv_as_it_was():
    assert not cv2.ipp.useIPP_NotExact()
    square(SCENE, 32)
    assert not cv2.ipp.useIPP_NotExact()


def test_square_is_antialiased_at_any_ratio():
    checkers = three(255 * (np.indices((200, 200)).sum(0) % 2))
    assert np.abs(square(checkers, 77).astype(int) - 127.5).max() < 45
    assert abs(square(checkers, 77).mean() - 127.5) < 1


def test_square_enlarges_smoothly():
    large = square(SCENE, 192)
    assert large.shape == (192, 192, 3)
    expected = Image.fromarray(SCENE[:, 16:112]).resize((192, 192), Image.Resampling.BICUBIC)
    assert np.abs(large.astype(int) - np.asarray(expected)).mean() < 1.0
