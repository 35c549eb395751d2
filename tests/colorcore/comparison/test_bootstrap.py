"""Intervals, against SciPy's bootstrap."""

import numpy as np
import pytest
from scipy import stats

from colorcore.comparison import bootstrap
from colorcore.comparison.bootstrap import Interval, interval_of, resampled_means


@pytest.fixture
def values() -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.gamma(2.0, 5.0, (37, 4)).astype(np.float32)


def scipys(*columns: np.ndarray, statistic=np.mean) -> Interval:
    found = stats.bootstrap(
        columns,
        statistic,
        n_resamples=2000,
        method="percentile",
        paired=len(columns) > 1,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return Interval(*found.confidence_interval)


def test_the_interval_of_each_mean_is_scipys(values: np.ndarray) -> None:
    means = resampled_means(values)
    assert means.shape == (2000, 4)
    for column in range(4):
        expected = scipys(values[:, column].astype(float))
        assert interval_of(means[:, column]) == pytest.approx(expected, rel=1e-6)


def test_columns_share_their_draws_so_differences_are_paired(values: np.ndarray) -> None:
    values[:, 1] = values[:, 0] + 0.5  # better by as much in every photo
    means = resampled_means(values)
    interval = interval_of(means[:, 1] - means[:, 0])
    assert interval == pytest.approx((0.5, 0.5), abs=1e-6)
    assert interval.is_beyond_zero

    def difference(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
        return one.mean(axis) - other.mean(axis)

    one, other = values[:, 2].astype(float), values[:, 3].astype(float)
    expected = scipys(one, other, statistic=difference)
    assert interval_of(means[:, 2] - means[:, 3]) == pytest.approx(expected, rel=1e-6)


def test_blocks_of_draws_change_nothing(values: np.ndarray, monkeypatch) -> None:
    whole = resampled_means(values)
    monkeypatch.setattr(bootstrap, "_AT_A_TIME", 7 * len(values))
    assert np.array_equal(resampled_means(values), whole)
    assert not np.array_equal(resampled_means(values, seed=1), whole)


@pytest.mark.parametrize(
    ("interval", "beyond"),
    [((0.1, 0.2), True), ((-0.2, -0.1), True), ((-0.1, 0.2), False), ((0.0, 0.0), False)],
)
def test_beyond_zero(interval: tuple[float, float], beyond: bool) -> None:
    assert Interval(*interval).is_beyond_zero is beyond


def test_no_photos() -> None:
    for shape in ((0, 3), (4,)):
        with pytest.raises(ValueError, match="at least one photo"):
            resampled_means(np.zeros(shape))
