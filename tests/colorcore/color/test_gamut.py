"""The table of the largest chroma, against a bisection in float64 of the formulas themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.color import lab2xyz, xyz2lab

from colorcore.color.gamut import _sure_chroma, fit_chroma

COLORS = 200_000
RGB_FROM_XYZ = np.linalg.inv(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
"""Linear sRGB, as scikit-image has it."""


def linear_rgb(L: NDArray, a: NDArray, b: NDArray) -> NDArray:
    """Not clipped, by scikit-image; negative light counts as black there, so ab is moderate."""
    f = (L + 16) / 116
    xyz = [_light(f + a / 500) * 0.95047, _light(f), _light(f - b / 200) * 1.08883]
    return np.einsum("ij,j...->i...", RGB_FROM_XYZ, np.stack(xyz))


def _light(f: NDArray) -> NDArray:
    return np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))


def edge(L: NDArray, hue: NDArray) -> NDArray:
    """The chroma at which the colours of a hue leave sRGB."""
    low, step = np.zeros_like(L), 140.0
    for _ in range(40):
        step /= 2
        rgb = linear_rgb(L, (low + step) * np.cos(hue), (low + step) * np.sin(hue))
        low += step * ((rgb >= 0) & (rgb <= 1)).all(0)
    return low


def fitted(L: NDArray, a: NDArray, b: NDArray) -> tuple[NDArray, NDArray]:
    L, a, b = (np.float32(each).reshape(-1, 100) for each in (L, a, b))
    fit_chroma(L, a, b)
    return a.reshape(-1), b.reshape(-1)


@pytest.fixture(scope="module")
def colors() -> tuple[NDArray, NDArray]:
    """L and hue of colours of every kind."""
    rng = np.random.default_rng(0)
    return rng.uniform(0, 100, COLORS), rng.uniform(0, 2 * np.pi, COLORS)


def test_the_formulas_are_those_of_scikit_image():
    lab = np.array([[50.0, 20.0, -30.0], [5.0, 3.0, 2.0], [90.0, -20.0, 60.0]])
    xyz = lab2xyz(lab[None])[0]
    ours = np.linalg.inv(RGB_FROM_XYZ) @ linear_rgb(*lab.T)
    np.testing.assert_allclose(ours.T, xyz, atol=1e-6)
    np.testing.assert_allclose(xyz2lab(xyz[None])[0], lab, atol=1e-6)


def test_chroma_ends_at_the_edge(colors: tuple[NDArray, NDArray]):
    L, hue = colors
    a, b = fitted(L, 200 * np.cos(hue), 200 * np.sin(hue))
    apart = np.hypot(a, b) - edge(L, hue)
    assert np.quantile(np.abs(apart), 0.999) < 0.3
    assert np.quantile(np.abs(apart), 0.5) < 0.01
    assert (np.abs(apart) > 1.0).mean() < 5e-4  # beside the cleft


def test_what_is_clipped_after_it_changes_no_lightness(colors: tuple[NDArray, NDArray]):
    L, hue = colors
    a, b = fitted(L, 200 * np.cos(hue), 200 * np.sin(hue))
    xyz = np.linalg.inv(RGB_FROM_XYZ) @ linear_rgb(L, a, b).clip(0, 1)
    assert np.abs(xyz2lab(xyz.T[None])[0, :, 0] - L).max() < 0.005


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.1, 300))
def test_the_hue_stays_and_chroma_never_grows(seed: int, scale: float):
    rng = np.random.default_rng(seed)
    L, a, b = rng.uniform(0, 100, 400), *rng.normal(0, scale, (2, 400))
    new_a, new_b = fitted(L, a, b)
    assert np.abs(np.float32(a) * new_b - np.float32(b) * new_a).max() <= 1e-4 * scale**2
    assert (np.hypot(new_a, new_b) <= np.hypot(a, b) * (1 + 1e-5) + 1e-5).all()
    assert (new_a * a + new_b * b >= 0).all()


def test_colours_of_srgb_stay(colors: tuple[NDArray, NDArray]):
    L, hue = colors
    chroma = 0.99 * edge(L, hue) - 0.3
    L, hue, chroma = (each[chroma > 0] for each in (L, hue, chroma))
    L, hue, chroma = (each[: len(L) // 100 * 100] for each in (L, hue, chroma))
    a, b = fitted(L, chroma * np.cos(hue), chroma * np.sin(hue))
    assert (np.abs(np.hypot(a, b) - chroma) < 1e-3).mean() > 0.999


def test_a_strip_may_be_wider_than_the_table_is_read_at_once():
    L = np.full((1, 70_000), 42.0, np.float32)
    a, b = np.full_like(L, 90.0), np.full_like(L, 90.0)
    fit_chroma(L, a, b)
    assert np.ptp(a) == np.ptp(b) == 0.0
    assert 0 < a[0, 0] < 90


@pytest.mark.parametrize("L", [0.0, 100.0])
def test_black_and_white_are_neutral(L: float):
    plane = np.full((1, 1), L, np.float32)
    a, b = np.full_like(plane, 60.0), np.full_like(plane, -60.0)
    fit_chroma(plane, a, b)
    assert np.hypot(a, b).item() < 0.05


def test_grey_stays_grey_at_black_and_white():
    L = np.float32([[0.0, 0.0, 50.0, 100.0]])
    a, b = np.float32([[0.0, 0.0, 60.0, 0.0]]), np.zeros((1, 4), np.float32)
    fit_chroma(L, a, b)
    np.testing.assert_array_equal(a[0, [0, 1, 3]], 0.0)
    np.testing.assert_array_equal(b, 0.0)


@pytest.mark.parametrize("vivid", [0.0, 0.01, 0.3, 0.6, 1.0])
def test_a_colour_is_fitted_alike_among_few_and_many_that_do_not_fit(vivid: float):
    """Few are picked out and looked up; many are looked up with the others."""
    rng = np.random.default_rng(3)
    L = np.float32(rng.uniform(20, 90, (37, 501)))
    scale = np.where(rng.random(L.shape) < vivid, 150.0, 5.0)
    angle = rng.uniform(0, 2 * np.pi, L.shape)
    a, b = np.float32(scale * np.cos(angle)), np.float32(scale * np.sin(angle))
    alone = a.copy(), b.copy()
    for y in range(len(L)):
        for x in range(0, L.shape[1], 100):
            part = np.s_[y : y + 1, x : x + 1]
            one = tuple(plane[part].copy() for plane in (L, *alone))
            fit_chroma(*one)
            alone[0][part], alone[1][part] = one[1:]
    fit_chroma(L, a, b)
    np.testing.assert_allclose(a[:, ::100], alone[0][:, ::100], atol=1e-4)
    np.testing.assert_allclose(b[:, ::100], alone[1][:, ::100], atol=1e-4)


@pytest.mark.slow
def test_chroma_that_is_not_looked_up_fits_for_every_hue():
    L, hue = np.meshgrid(np.linspace(0, 100, 2001), np.linspace(0, 2 * np.pi, 361))
    sure = _sure_chroma()[np.float32(L).astype(np.uint8)]
    assert (sure <= edge(L, hue) + 0.01).all()
    assert sure[:, 1400].min() > 37  # at L 70, the lightest that is far from white
