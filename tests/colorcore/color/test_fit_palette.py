"""Fitting a palette, against hand-computed cases, scikit-image and scikit-learn."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colorcore.color.fit_palette import fit_palette, gamut_lightness, hue_order
from colorcore.color.palette import (
    check_centroids,
    load_palette,
    save_palette,
)
from tests.colorcore.color.histograms import (
    ZHANG_LIKE,
    histogram_of,
    histogram_of_pixels,
    scattered,
    sparse_histograms,
)


def sum_of_squares(points, weights, centroids):
    distance = ((points[:, None, :] - centroids[None]) ** 2).sum(-1).min(1)
    return float(weights @ distance)


# K-means


def test_kmeans_of_the_histogram_is_as_good_as_kmeans_of_the_pixels():
    import sklearn.cluster

    ab_u8 = scattered()
    histogram = histogram_of_pixels(ab_u8)
    pixels = ab_u8.astype(np.float64) - 128
    palette = fit_palette(histogram, bins=48)
    raw = sklearn.cluster.KMeans(48, n_init=3, random_state=0).fit(pixels)
    cells, count = np.unique(pixels, axis=0, return_counts=True)
    ours = sum_of_squares(cells, count, palette.centroids)
    theirs = sum_of_squares(cells, count, raw.cluster_centers_)
    assert ours <= 1.01 * theirs
    assert palette.about["rms_error"] == pytest.approx(math.sqrt(ours / len(pixels)), abs=1e-3)


@pytest.mark.slow
def test_the_densest_histogram_is_fitted_in_seconds_and_as_well_as_without_limits():
    import sklearn.cluster
    from threadpoolctl import threadpool_limits

    axis = np.arange(256) - 128
    radius = np.hypot(axis[:, None], axis[None])
    histogram = (1e9 * np.exp(-radius / 10)).astype(np.int64) + 1
    cpu = time.process_time()
    palette = fit_palette(histogram, bins=313)
    assert time.process_time() - cpu < 3.0
    cells = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2).astype(float)
    full = sklearn.cluster.KMeans(313, n_init=1, max_iter=1000, tol=0, random_state=0)
    with threadpool_limits(limits=1):
        full.fit(cells, sample_weight=histogram.ravel() / histogram.sum())
    assert palette.about["rms_error"] ** 2 <= 1.01 * full.inertia_


def test_as_many_bins_as_colours_are_these_colours():
    colours = {(0, 0): 10**9, (1, 0): 1, (50, 20): 5, (-30, 4): 2}
    palette = fit_palette(histogram_of(colours), bins=4)
    assert {tuple(map(round, c)) for c in palette.centroids.tolist()} == set(colours)
    assert palette.about["rms_error"] == pytest.approx(0, abs=1e-3)


def test_power_spends_bins_on_rare_colours():
    axis = np.arange(256) - 128
    radius = np.hypot(axis[:, None], axis[None])
    histogram = (1e7 * np.exp(-radius / 8)).astype(np.int64)
    chroma = [
        np.hypot(*fit_palette(histogram, bins=30, power=power).centroids.T).mean()
        for power in (1.0, 0.5, 0.0)
    ]
    assert chroma[0] < chroma[1] < chroma[2]


def test_too_few_colours_say_how_many_and_what_to_do():
    with pytest.raises(ValueError, match=r"only 2 distinct.*ask for fewer bins.*'grid'"):
        fit_palette(histogram_of({(0, 0): 1, (5, 5): 1}), bins=3)


@settings(max_examples=25, deadline=None)
@given(sparse_histograms, st.integers(1, 60), st.sampled_from([1.0, 0.5, 0.0]))
def test_any_histogram_makes_a_palette_that_keeps_its_promises(histogram, bins, power):
    bins = min(bins, int((histogram > 0).sum()))
    palette = fit_palette(histogram, bins=bins, power=power)  # Palette checks itself
    assert len(palette) == bins == palette.about["bins"]
    assert palette.priors.sum() == pytest.approx(1, abs=1e-5)
    assert palette.priors @ palette.weights == pytest.approx(1, abs=1e-5)


@settings(max_examples=8, deadline=None)
@given(sparse_histograms, st.sampled_from([1.0, 0.5]))
def test_only_the_proportions_of_the_histogram_matter(histogram, power):
    bins = min(8, int((histogram > 0).sum()))
    small = fit_palette(histogram, bins=bins, power=power)
    large = fit_palette(histogram * 1000, bins=bins, power=power)
    assert small.fingerprint == large.fingerprint


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    histogram = histogram_of_pixels(scattered(seed=1))
    for name in ("one", "two"):
        save_palette(fit_palette(histogram, bins=64, dataset="abc"), tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["centroids.npy", "palette.json", "priors.npy", "weights.npy"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    other = fit_palette(histogram, bins=64, seed=1)
    assert other.fingerprint != load_palette(tmp_path / "one").fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": 0}, "bins must be 1 or more"),
        ({"power": -1.0}, "power must be in"),
        ({"power": math.nan}, "power must be in"),
        ({"method": "median-cut"}, "method must be 'kmeans' or 'grid', got 'median-cut'"),
    ],
)
def test_options_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        fit_palette(histogram_of({(0, 0): 1, (9, 9): 1}), **{"bins": 2, **change})


@pytest.mark.parametrize(
    "histogram",
    [
        np.zeros((256, 256), np.int64),
        np.full((256, 256), -1, np.int64),
        np.ones((256, 256), np.float32),
        np.ones((128, 256), np.int64),
    ],
)
def test_no_histogram(histogram):
    with pytest.raises(ValueError, match="expected a histogram"):
        fit_palette(histogram)


# Grid and gamut


def test_gamut_agrees_with_scikit_image():
    from skimage.color import lab2rgb, rgb2lab

    rng = np.random.default_rng(5)
    lab = rgb2lab(rng.random((1, 1000, 3)))[0]
    lab = lab[(lab[:, 0] > 5) & (lab[:, 0] < 95)]
    # Every sRGB colour is in the gamut, and so is every paler colour of the same hue.
    assert not np.isnan(gamut_lightness(lab[:, 1:] * 0.97)).any()
    L = gamut_lightness(lab[:, 1:] * 0.97)
    again = rgb2lab(lab2rgb(np.column_stack([L, lab[:, 1:] * 0.97])[None]))[0]
    np.testing.assert_allclose(again[:, 1:], lab[:, 1:] * 0.97, atol=0.1)
    assert np.isnan(gamut_lightness(np.array([(120.0, -20.0), (-100.0, 0.0), (0.0, 100.0)]))).all()
    assert gamut_lightness(np.zeros((1, 2))) == [65.0]


@pytest.mark.parametrize("bins", [1, 2, 7, 60, 313])
def test_grid_is_the_whole_lattice_inside_the_gamut(bins):
    palette = fit_palette(histogram_of({(0, 0): 1}), bins=bins, method="grid")
    spacing = palette.about["spacing"]
    assert len(palette) == bins
    assert not np.isnan(gamut_lightness(palette.centroids)).any()
    steps = palette.centroids / spacing
    np.testing.assert_allclose(steps, np.rint(steps), atol=2e-3)
    axis = np.arange(-20, 21)
    lattice = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2) * (spacing * 1.002)
    # At a slightly wider spacing, the point on the outline is outside and no other point is inside.
    if bins > 1:
        inside = int((~np.isnan(gamut_lightness(lattice))).sum())
        assert bins - 3 <= inside < bins


def test_spacing_of_313_points():
    palette = fit_palette(histogram_of({(0, 0): 1}), method="grid")
    assert palette.about["spacing"] == pytest.approx(8.40, abs=0.01)


# Order and given centroids


def test_hue_order_by_hand():
    red_pale, red, yellow, blue = (20.0, 1.0), (60.0, 5.0), (1.0, 50.0), (5.0, -60.0)
    grey, greyish = (0.5, 0.0), (-3.0, 3.0)
    points = np.array([blue, red, greyish, yellow, red_pale, grey])
    expected = [grey, greyish, red_pale, red, yellow, blue]
    np.testing.assert_array_equal(hue_order(points), expected)
    np.testing.assert_array_equal(hue_order(points[::-1]), expected)


def test_given_centroids_are_used_as_they_are():
    palette = fit_palette(histogram_of({(0, 0): 1}), bins=313, centroids=ZHANG_LIKE)
    np.testing.assert_array_equal(palette.centroids, np.array(ZHANG_LIKE, np.float32))
    assert palette.about["method"] == "given"
    assert palette.about["bins"] == 6


@pytest.mark.parametrize(
    ("centroids", "message"),
    [
        (np.zeros((3, 3)), r"\(Q, 2\)"),
        (np.zeros((0, 2)), r"\(Q, 2\)"),
        ([(0.0, math.nan)], "finite and within"),
        ([(0.0, math.inf)], "finite and within"),
        ([(0.0, 129.0)], "finite and within"),
        ([(1.0, 2.0), (3.0, 4.0), (1.0, 2.0)], "only 2 differ"),
    ],
)
def test_centroids_that_will_not_do(centroids, message):
    with pytest.raises(ValueError, match=message):
        check_centroids(centroids)
    with pytest.raises(ValueError, match=message):
        fit_palette(histogram_of({(0, 0): 1}), centroids=centroids)
