"""The Fréchet distance of Gaussians, against closed forms and pytorch-fid's own function."""

from __future__ import annotations

import numpy as np
import pytest

from colorcore.scores.frechet import FeatureSums, Gaussian, frechet_distance

PYTORCH_FID = {3: 8.045981, 20: 234.966775, 100: 5929.185903}
"""By features: printed by ``python -m tests.experiments.published``."""


def gaussian(rows: np.ndarray) -> Gaussian:
    return Gaussian(rows.mean(0), np.cov(rows, rowvar=False))


def test_equal_gaussians_are_not_apart():
    one = gaussian(np.random.default_rng(0).normal(size=(50, 20)))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_a_shifted_mean_counts_squared():
    covariance = np.diag([1.0, 4.0, 9.0])
    one = Gaussian(np.zeros(3), covariance)
    other = Gaussian(np.array([1.0, -2.0, 2.0]), covariance)
    assert frechet_distance(one, other) == pytest.approx(9)


def test_of_independent_features_the_standard_deviations_count():
    """|σ₁ - σ₂|², and in one dimension (μ₁ - μ₂)² + (σ₁ - σ₂)²."""
    one = Gaussian(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    other = Gaussian(np.zeros(3), np.diag([4.0, 4.0, 0.0]))
    assert frechet_distance(one, other) == pytest.approx(1 + 0 + 9)
    single = Gaussian(np.array([3.0]), np.array([[25.0]]))
    assert frechet_distance(single, Gaussian(np.zeros(1), np.eye(1))) == pytest.approx(9 + 16)


def test_covariances_that_commute_are_like_independent_features():
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    one, other = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 1.0, 0.5])
    found = frechet_distance(
        Gaussian(np.zeros(4), turn @ np.diag(one**2) @ turn.T),
        Gaussian(np.zeros(4), turn @ np.diag(other**2) @ turn.T),
    )
    assert found == pytest.approx(((one - other) ** 2).sum())


def test_it_is_that_of_pytorch_fid_both_ways():
    rng = np.random.default_rng(0)
    for width, expected in PYTORCH_FID.items():
        one, other = (rng.normal(size=(300, width)) @ rng.normal(size=(width, width)) for _ in "12")
        pair = gaussian(one), gaussian(other + 1)
        assert frechet_distance(*pair) == pytest.approx(expected, rel=1e-6)
        assert frechet_distance(*pair[::-1]) == pytest.approx(expected, rel=1e-6)


def test_singular_covariances_of_few_photos():
    """Of N rows there is a second way: with centred X and Y, tr is the nuclear norm of X Yᵀ."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(7, 64)), rng.normal(size=(7, 64)) + 0.5
    centred = [(rows - rows.mean(0)) / np.sqrt(6) for rows in (x, y)]
    shared = np.linalg.norm(centred[0] @ centred[1].T, ord="nuc")
    apart = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected = apart + sum((each**2).sum() for each in centred) - 2 * shared
    assert frechet_distance(gaussian(x), gaussian(y)) == pytest.approx(expected, rel=1e-6)


def test_sums_are_means_and_covariances_of_all_rows():
    rows = np.random.default_rng(3).normal(5, 0.1, (40, 6)).astype(np.float32)
    sums = FeatureSums(6)
    for part in np.split(rows, [1, 9, 30]):
        sums.add(part)
    found, expected = sums.gaussian(), gaussian(rows.astype(float))
    assert sums.count == 40
    np.testing.assert_allclose(found.mean, expected.mean)
    np.testing.assert_allclose(found.covariance, expected.covariance, atol=1e-12)
    one = FeatureSums(6)
    one.add(rows[:1])
    with pytest.raises(ValueError, match="expected features of two photos or more, got 1"):
        one.gaussian()
