"""A palette's priors and weights by hand, and the palette on disk."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from colorcore.color.bins import nearest_bins
from colorcore.color.fit_palette import fit_palette
from colorcore.color.palette import (
    UNIFORM_SHARE,
    Palette,
    bin_priors,
    bin_weights,
    load_palette,
    mean_ab,
    save_palette,
)
from tests.colorcore.color.histograms import histogram_of

# Weights (eq. 4)


def test_weights_of_two_bins_by_hand():
    # 0.5·(0.75, 0.25) + 0.25 = (5/8, 3/8); inverse (8/5, 8/3); mean under p = 28/15.
    np.testing.assert_allclose(bin_weights(np.array([0.75, 0.25])), [6 / 7, 10 / 7])


@given(hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(1e-7, 1.0)))
def test_weights_have_mean_one_and_favour_the_rare(raw):
    p = raw / raw.sum()
    w = bin_weights(p)
    assert p @ w == pytest.approx(1.0)
    order = np.argsort(p)
    assert (np.diff(w[order]) <= 1e-9 * w.max()).all()


# Priors


def test_priors_of_far_apart_colours_are_their_counts():
    histogram = histogram_of({(-50, 0): 3, (50, 0): 1})
    palette = fit_palette(histogram, centroids=[(-50, 0), (50, 0)])
    half = UNIFORM_SHARE / 2
    expected = [(1 - UNIFORM_SHARE) * 0.75 + half, (1 - UNIFORM_SHARE) * 0.25 + half]
    np.testing.assert_allclose(palette.priors, expected, rtol=1e-6)
    np.testing.assert_allclose(palette.weights, [6 / 7, 10 / 7], rtol=1e-3)


def test_priors_are_smoothed_by_sigma_5():
    # One colour at a = 4, and the border between the two bins at a = -0.5: the first bin gets the
    # tail of a Gaussian with σ = 5 from 5 units on.
    histogram = histogram_of({(4, 0): 7})
    palette = fit_palette(histogram, centroids=[(-10.5, 0), (9.5, 0)])
    gauss = {k: math.exp(-(k**2) / 50) for k in range(-20, 21)}
    beyond = sum(gauss[k] for k in range(-20, -4)) / sum(gauss.values())
    expected = (1 - UNIFORM_SHARE) * beyond + UNIFORM_SHARE / 2
    assert palette.priors[0] == pytest.approx(expected, rel=1e-4)


def test_priors_are_never_zero_and_keep_what_smoothing_would_push_over_the_border():
    bin_of_cell = nearest_bins(np.array([(-128.0, -128.0), (120.0, 120.0)]))
    priors = bin_priors(histogram_of({(-128, -128): 1}), bin_of_cell, 2)
    np.testing.assert_allclose(priors, [1 - UNIFORM_SHARE / 2, UNIFORM_SHARE / 2])


def test_balance_is_the_weight_of_each_cells_bin():
    palette = fit_palette(histogram_of({(-50, 0): 3, (50, 0): 1}), centroids=[(-50, 0), (50, 0)])
    balance = palette.balance()
    assert balance.shape == (256, 256)
    assert balance.dtype == np.float32
    assert (balance[:128] == palette.weights[0]).all()
    assert (balance[129:] == palette.weights[1]).all()


def test_mean_ab_by_hand():
    np.testing.assert_allclose(mean_ab(histogram_of({(-50, 10): 3, (30, -10): 1})), [-30.0, 5.0])


# On disk


@pytest.fixture
def saved(tmp_path):
    palette = fit_palette(histogram_of({(-50, 0): 3, (50, 0): 1}), bins=2, dataset="f00d")
    save_palette(palette, tmp_path / "palette")
    return palette, tmp_path / "palette"


def test_a_palette_survives_the_disk(saved):
    palette, folder = saved
    again = load_palette(folder)
    for name in ("centroids", "priors", "weights"):
        array = getattr(again, name)
        np.testing.assert_array_equal(array, getattr(palette, name))
        assert array.dtype == np.float32
    assert again.about == palette.about
    assert again.about["dataset"] == "f00d"
    assert again.fingerprint == palette.fingerprint
    assert json.loads((folder / "palette.json").read_text())["fingerprint"] == palette.fingerprint


def test_saving_again_leaves_nothing_else_behind(saved):
    palette, folder = saved
    save_palette(palette, folder)
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("name", ["palette.json", "priors.npy"])
def test_no_palette_says_how_to_make_one(saved, name):
    _, folder = saved
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_palette(folder)
    assert str(caught.value) == f"no palette in {folder}; make one with `cc priors DATASET`"


def test_a_file_of_another_palette_is_noticed(saved):
    _, folder = saved
    np.save(folder / "priors.npy", np.array([0.4, 0.6], np.float32))
    np.save(folder / "weights.npy", np.array([1.0, 1.0], np.float32))
    with pytest.raises(ValueError, match=r"files belong to different palettes.*cc prio"):
        load_palette(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("priors.npy", b""),
        ("priors.npy", b"\x93NUMPY\x01\x00"),
        ("palette.json", b"{"),
        ("palette.json", b"[]"),
        ("palette.json", b"{}"),
        ("palette.json", b'{"format": 99}'),
        ("palette.json", b"\xff\xfe"),
    ],
)
def test_damage_is_noticed(saved, name, content):
    _, folder = saved
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        load_palette(folder)


def test_pickles_are_not_opened(saved):
    _, folder = saved
    np.save(folder / "priors.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="is damaged"):
        load_palette(folder)


def test_a_palette_checks_itself():
    centroids = np.array([(0, 0), (9, 9)], np.float32)
    half, ones = np.full(2, 0.5, np.float32), np.ones(2, np.float32)
    Palette(centroids, half, ones)
    with pytest.raises(ValueError, match=r"expected priors \(2,\) float32, got \(2,\) float64"):
        Palette(centroids, half.astype(np.float64), ones)
    with pytest.raises(ValueError, match=r"expected weights \(2,\) float32, got \(1,\) float32"):
        Palette(centroids, half, ones[:1])
    with pytest.raises(ValueError, match="expected finite priors above 0"):
        Palette(centroids, np.array([0, 1], np.float32), ones)
    with pytest.raises(ValueError, match="got 2 and 2"):
        Palette(centroids, ones, ones)
    with pytest.raises(ValueError, match="only 1 differ"):
        Palette(centroids * 0, half, ones)


def test_importing_the_palette_loads_no_heavy_library():
    code = (
        "import sys, colorcore.color.palette; print([m for m in sys.argv[1:] if m in sys.modules])"
    )
    heavy = ["torch", "sklearn", "scipy", "kornia", "cv2", "matplotlib"]
    command = [sys.executable, "-c", code, *heavy]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
