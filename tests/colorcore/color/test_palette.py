"""The palette against hand-computed cases, brute force, scikit-image and scikit-learn."""

import copy
import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from colorcore.color.bins import NEIGHBORS, SoftEncoder, decode_ab, nearest_bins, soft_table
from colorcore.color.fit_palette import fit_palette, gamut_lightness, hue_order
from colorcore.color.palette import (
    UNIFORM_SHARE,
    Palette,
    bin_priors,
    bin_weights,
    check_centroids,
    load_palette,
    mean_ab,
    save_palette,
)

ZHANG_LIKE = [(-50.0, 0.0), (0.0, 0.0), (50.0, 0.0), (0.0, 50.0), (0.0, -50.0), (40.0, 40.0)]


def histogram_of(cells):
    """{(a, b): count} in ab units -> histogram."""
    histogram = np.zeros((256, 256), np.int64)
    for (a, b), count in cells.items():
        histogram[a + 128, b + 128] = count
    return histogram


def scattered(seed=0, photos=8, size=96):
    """Stored ab pixels (N, 2) of made-up photos, each with a few patches of colour."""
    rng = np.random.default_rng(seed)
    pixels = []
    for _ in range(photos):
        hues = rng.normal(0, 25, (4, 2))
        which = rng.integers(0, 4, size * size)
        pixels.append(hues[which] + rng.normal(0, 6, (size * size, 2)))
    return np.clip(np.rint(np.concatenate(pixels)) + 128, 0, 255).astype(np.uint8)


def histogram_of_pixels(ab_u8):
    flat = ab_u8[:, 0].astype(np.int64) * 256 + ab_u8[:, 1]
    return np.bincount(flat, minlength=65536).reshape(256, 256)


def sum_of_squares(points, weights, centroids):
    distance = ((points[:, None, :] - centroids[None]) ** 2).sum(-1).min(1)
    return float(weights @ distance)


sparse_histograms = st.dictionaries(
    st.tuples(st.integers(-128, 127), st.integers(-128, 127)),
    st.integers(1, 10**12),
    min_size=1,
    max_size=60,
).map(histogram_of)


# Weights (eq. 4)


def test_weights_of_two_bins_by_hand():
    # 0.5·(0.75, 0.25) + 0.25 = (5/8, 3/8); inverse (8/5, 8/3); mean under p = 28/15.
    np.testing.assert_allclose(bin_weights(np.array([0.75, 0.25])), [6 / 7, 10 / 7])


def test_weights_of_three_bins_by_hand():
    p = np.array([0.5, 0.3, 0.2])
    # λ = 0 is 1/p = (2, 10/3, 5), whose mean under p is Q = 3; λ = 1 is uniform.
    np.testing.assert_allclose(bin_weights(p, lam=0.0), [2 / 3, 10 / 9, 5 / 3])
    np.testing.assert_allclose(bin_weights(p, lam=1.0), [1, 1, 1])


@given(
    hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(1e-7, 1.0)), st.floats(0.0, 1.0)
)
def test_weights_have_mean_one_and_favour_the_rare(raw, lam):
    p = raw / raw.sum()
    w = bin_weights(p, lam=lam)
    assert p @ w == pytest.approx(1.0)
    order = np.argsort(p)
    assert (np.diff(w[order]) <= 1e-9 * w.max()).all()


@pytest.mark.parametrize("lam", [-0.1, 1.1, math.nan])
def test_lam_out_of_range(lam):
    with pytest.raises(ValueError, match=r"lam must be in 0\.\.1"):
        bin_weights(np.array([0.5, 0.5]), lam=lam)


# Priors


def test_priors_of_far_apart_colours_are_their_counts():
    histogram = histogram_of({(-50, 0): 3, (50, 0): 1})
    palette = fit_palette(histogram, centroids=[(-50, 0), (50, 0)])
    half = UNIFORM_SHARE / 2
    expected = [(1 - UNIFORM_SHARE) * 0.75 + half, (1 - UNIFORM_SHARE) * 0.25 + half]
    np.testing.assert_allclose(palette.priors, expected, rtol=1e-6)
    np.testing.assert_allclose(palette.weights, [6 / 7, 10 / 7], rtol=1e-3)


def test_priors_are_smoothed_by_sigma_5():
    # One colour at a = 4, the border between the two bins at a = -0.5: what lies beyond it is
    # the tail of a Gaussian of σ 5 from 5 units on.
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


# Nearest bins and balance


def test_nearest_bins_agree_with_brute_force():
    rng = np.random.default_rng(3)
    centroids = rng.uniform(-110, 110, (50, 2))
    bins = nearest_bins(centroids)
    assert bins.shape == (256, 256)
    assert bins.dtype == np.int32
    cells = rng.integers(0, 256, (2000, 2))
    distance = np.linalg.norm((cells - 128.0)[:, None] - centroids[None], axis=-1)
    np.testing.assert_array_equal(bins[cells[:, 0], cells[:, 1]], distance.argmin(1))


def test_balance_is_the_weight_of_each_cells_bin():
    palette = fit_palette(histogram_of({(-50, 0): 3, (50, 0): 1}), centroids=[(-50, 0), (50, 0)])
    balance = palette.balance()
    assert balance.shape == (256, 256)
    assert balance.dtype == np.float32
    assert (balance[:128] == palette.weights[0]).all()
    assert (balance[129:] == palette.weights[1]).all()


def test_mean_ab_by_hand():
    np.testing.assert_allclose(mean_ab(histogram_of({(-50, 10): 3, (30, -10): 1})), [-30.0, 5.0])


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
        ({"sigma": -1.0}, "sigma must be in"),
        ({"lam": 2.0}, "lam must be in"),
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
    # Whatever sRGB reaches is in the gamut, and so is all that is paler.
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
    # A hair wider, the point that touches the outline is out; none but it was there to add.
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


# Soft encoding


def test_soft_encoding_by_hand():
    centroids = np.array([(10.0, 0.0), (0.0, 0.0), (0.0, 30.0)])
    indices, shares = soft_table(centroids)
    assert indices.shape == shares.shape == (65536, 3)
    neutral = 128 * 256 + 128
    np.testing.assert_array_equal(indices[neutral], [1, 0, 2])
    # Distances 0, 10, 30 at σ = 5: exp(0), exp(-2), exp(-18).
    raw = np.array([1.0, math.exp(-2), math.exp(-18)])
    np.testing.assert_allclose(shares[neutral], raw / raw.sum(), rtol=1e-6)
    cell = (128 + 6) * 256 + 128 - 3  # (6, -3): squared distances 25, 45, 1125
    np.testing.assert_array_equal(indices[cell], [0, 1, 2])
    raw = np.exp(-np.array([25.0, 45.0, 1125.0]) / 50)
    np.testing.assert_allclose(shares[cell], raw / raw.sum(), rtol=1e-6)


def soft_by_brute_force(a, b, centroids, sigma):
    """Dense soft code (Q,) of one colour, the slow way."""
    squared = [(a - x) ** 2 + (b - y) ** 2 for x, y in centroids]
    nearest = sorted(range(len(squared)), key=squared.__getitem__)[:NEIGHBORS]
    mass = {q: math.exp(-(squared[q] - min(squared)) / (2 * sigma**2)) for q in nearest}
    code = np.zeros(len(centroids))
    for q in nearest:
        code[q] = mass[q] / sum(mass.values())
    return code


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.5, 20.0))
def test_soft_encoding_agrees_with_brute_force(seed, bins, sigma):
    rng = np.random.default_rng(seed)
    centroids = rng.uniform(-110, 110, (bins, 2))
    indices, shares = soft_table(centroids, sigma=sigma)
    assert indices.shape == (65536, min(bins, NEIGHBORS))
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    for cell in rng.integers(0, 65536, 20):
        code = np.zeros(bins)
        code[indices[cell]] = shares[cell]
        expected = soft_by_brute_force(cell // 256 - 128, cell % 256 - 128, centroids, sigma)
        np.testing.assert_allclose(code, expected, atol=1e-6)


def test_soft_encoding_far_from_every_bin_stays_finite():
    _, shares = soft_table(np.array([(100.0, 100.0), (100.0, 90.0)]), sigma=0.1)
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(1), 1)


def test_encode_looks_each_pixel_up():
    rng = np.random.default_rng(7)
    encoder = SoftEncoder(np.array(ZHANG_LIKE))
    ab_u8 = torch.from_numpy(rng.integers(0, 256, (3, 2, 4, 5), dtype=np.uint8))
    indices, shares = encoder.encode(ab_u8)
    assert indices.shape == shares.shape == (3, 5, 4, 5)
    assert indices.dtype == torch.int64
    assert shares.dtype == torch.float32
    for n, y, x in np.ndindex(3, 4, 5):
        a, b = ab_u8[n, :, y, x].tolist()
        np.testing.assert_array_equal(indices[n, :, y, x], encoder.indices[a * 256 + b])
        np.testing.assert_array_equal(shares[n, :, y, x], encoder.shares[a * 256 + b])


def test_encode_and_decode_are_nearly_inverse_on_a_fine_grid():
    axis = np.arange(-120, 121, 6.0)
    centroids = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    encoder = SoftEncoder(centroids)
    ab = torch.randint(-110, 111, (1, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    indices, shares = encoder.encode((ab + 128).to(torch.uint8))
    target = torch.zeros(1, len(centroids), 8, 8).scatter_(1, indices, shares)
    decoded = decode_ab(
        target.clamp_min(1e-30).log(), torch.from_numpy(centroids).float(), temperature=1.0
    )
    assert (decoded - ab).abs().max() < 2.5


def test_an_encoder_can_be_copied_with_the_loss_that_holds_it():
    encoder = SoftEncoder(np.array(ZHANG_LIKE))
    ab_u8 = torch.full((1, 2, 1, 1), 200, dtype=torch.uint8)
    encoder.encode(ab_u8)
    again = copy.deepcopy(encoder)
    assert torch.equal(again.encode(ab_u8)[0], encoder.encode(ab_u8)[0])


@pytest.mark.parametrize(
    "ab_u8",
    [
        torch.zeros(1, 2, 4, 4),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(2, 4, 4, dtype=torch.uint8),
    ],
)
def test_encode_takes_stored_ab_only(ab_u8):
    with pytest.raises(ValueError, match=r"expected stored ab \(B, 2, H, W\) uint8, got"):
        SoftEncoder(np.array(ZHANG_LIKE)).encode(ab_u8)


@pytest.mark.parametrize("change", [{"neighbors": 0}, {"sigma": 0.0}])
def test_soft_table_options(change):
    with pytest.raises(ValueError, match="must be positive"):
        soft_table(np.array(ZHANG_LIKE), **change)


@pytest.mark.gpu
def test_encode_and_decode_on_the_gpu_agree_with_the_cpu():
    if not torch.cuda.is_available():  # there is no emulating one: it needs the machine
        pytest.skip("needs an NVIDIA GPU")
    encoder = SoftEncoder(np.array(ZHANG_LIKE))
    generator = torch.Generator().manual_seed(0)
    ab_u8 = torch.randint(0, 256, (2, 2, 16, 16), generator=generator, dtype=torch.uint8)
    on_gpu, on_cpu = encoder.encode(ab_u8.cuda()), encoder.encode(ab_u8)
    assert torch.equal(on_gpu[0].cpu(), on_cpu[0])
    assert torch.equal(on_gpu[1].cpu(), on_cpu[1])
    logits = torch.randn(2, 6, 16, 16, generator=generator)
    centroids = torch.tensor(ZHANG_LIKE)
    with torch.autocast("cuda", torch.bfloat16):
        ab = decode_ab(logits.cuda(), centroids.cuda())
    assert (ab.cpu() - decode_ab(logits, centroids)).abs().max() < 0.1


# Annealed mean (eq. 5)

TWO_BINS = torch.tensor([(-20.0, 10.0), (60.0, -30.0)])


def two_bin_logits(first, second):
    return torch.tensor([first, second]).reshape(1, 2, 1, 1)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, (40.0, -20.0)),  # probabilities 1/4 and 3/4: the mean
        (0.5, (52.0, -26.0)),  # squared: 1/10 and 9/10
        (1e-4, (60.0, -30.0)),  # the mode
    ],
)
def test_annealed_mean_of_two_bins_by_hand(temperature, expected):
    ab = decode_ab(two_bin_logits(0.0, math.log(3)), TWO_BINS, temperature=temperature)
    assert ab.shape == (1, 2, 1, 1)
    np.testing.assert_allclose(ab.flatten(), expected, rtol=1e-5)


def test_annealed_mean_of_equals_is_the_middle_at_any_temperature():
    for temperature in (1e-3, 0.38, 5.0):
        ab = decode_ab(two_bin_logits(7.0, 7.0), TWO_BINS, temperature=temperature)
        np.testing.assert_allclose(ab.flatten(), (20.0, -10.0), rtol=1e-5)


def test_annealed_mean_has_the_right_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 2, 3, dtype=torch.float64, generator=generator).requires_grad_()
    centroids = torch.randn(4, 2, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda z: decode_ab(z, centroids), (logits,))


def test_annealed_mean_is_exact_under_autocast():
    logits = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    centroids = torch.tensor(ZHANG_LIKE)
    with torch.autocast("cpu", torch.bfloat16):
        low = decode_ab(logits, centroids)
    torch.testing.assert_close(low, decode_ab(logits, centroids))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_above_zero(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        decode_ab(two_bin_logits(0.0, 1.0), TWO_BINS, temperature=temperature)


def test_logits_and_centroids_must_match():
    with pytest.raises(ValueError, match=r"got \(1, 2, 1, 1\) and \(3, 2\)"):
        decode_ab(two_bin_logits(0.0, 1.0), torch.zeros(3, 2))


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
    with pytest.raises(ValueError, match=r"is damaged: its files are not of one palette.*cc prio"):
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
