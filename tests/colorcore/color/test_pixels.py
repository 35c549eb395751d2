"""Lightness of pixels and back, against scikit-image, for all values of a channel."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import lab2rgb, rgb2lab

from colorcore.color.pixels import lightness, srgb

KINDS = (np.uint8, np.uint16)


def noise(kind: type, *shape: int) -> NDArray:
    """Random pixels, half of them dark: there the steps of a table are the largest."""
    rng = np.random.default_rng(0)
    top = np.iinfo(kind).max
    light = rng.integers(0, top + 1, shape)
    light[rng.random(shape[:2]) < 0.5] //= 8
    return light.astype(kind)


@pytest.mark.parametrize(("kind", "L_error"), [(np.uint8, 0.008), (np.uint16, 0.002)])
@pytest.mark.parametrize("shape", [(300, 200, 3), (300, 200)], ids=["colour", "grey"])
def test_lightness_is_that_of_scikit_image(kind: type, L_error: float, shape: tuple[int, ...]):
    pixels = noise(kind, *shape)
    found = lightness(pixels)
    assert found.shape == shape[:2]
    assert found.dtype == np.float32
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    L = rgb2lab(rgb / np.iinfo(kind).max)[..., 0]
    assert np.abs(found - L).max() < L_error


@pytest.mark.parametrize("kind", KINDS)
def test_all_greys_are_exact(kind: type):
    grey = np.arange(np.iinfo(kind).max + 1).astype(kind).reshape(16, -1)
    L = lightness(grey)
    out = np.empty((*grey.shape, 3), kind)
    srgb(L, np.zeros_like(L), np.zeros_like(L), out)
    off = np.abs(out.astype(int) - grey[..., None])
    # White is (0.95047, 1, 1.08883) to five digits, so grey is off by a step of 16 bits or two.
    assert off.max() <= (0 if kind == np.uint8 else 2)


@pytest.mark.parametrize(("kind", "off"), [(np.uint8, 0.6), (np.uint16, 3.0)])
def test_colours_there_and_back_are_those_of_scikit_image(kind: type, off: float):
    """Moderate colours, which sRGB can show; in steps of the type, of which rounding is half."""
    pixels, top = noise(kind, 200, 300, 3), np.iinfo(kind).max
    lab = rgb2lab(pixels / top)
    L = lightness(pixels)
    out = np.empty_like(pixels)
    srgb(L, *(np.float32(0.3 * lab[..., channel]) for channel in (1, 2)), out)
    expected = lab2rgb(lab * [1, 0.3, 0.3]) * top
    assert np.abs(out - expected).max() < off


@pytest.mark.parametrize("kind", KINDS)
def test_what_srgb_cannot_show_is_clipped(kind: type):
    pixels = np.full((2, 2, 3), np.iinfo(kind).max // 2, kind)
    L = lightness(pixels)
    out = np.empty_like(pixels)
    srgb(L, np.full_like(L, 120.0), np.full_like(L, 120.0), out)
    assert (out[..., 0] == np.iinfo(kind).max).all()
    assert (out[..., 2] == 0).all()
