"""Confidence intervals of means over photos, by the bootstrap.

Which photos happen to be in a set is chance, and a score is a mean over them. The percentile
bootstrap (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3) draws as
many photos from the set again, with replacement, many times: the middle 95% of the means that come
out are the interval. All columns of a table are resampled with the same photos, so the means of two
models in one resample belong to the same photos, and their differences can be judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 2_000
"""Efron and Tibshirani's figure for percentiles is 1,000 or more (section 13.3 and 14.2)."""
CONFIDENCE = 0.95
SEED = 0
_AT_A_TIME = 4_000_000
"""Draws in memory at a time: 64 MB."""


class Interval(NamedTuple):
    """The ends of a confidence interval; NaN where fewer than two photos leave none."""

    low: float
    high: float

    @property
    def is_beyond_zero(self) -> bool:
        """Whether 0 lies outside, as it does where a difference is more than chance."""
        return self.low > 0.0 or self.high < 0.0


def resampled_means(
    values: NDArray[np.floating], *, resamples: int = RESAMPLES, seed: int = SEED
) -> NDArray[np.float64]:
    """Means of the columns over resampled rows.

    values (N, K): a row per photo -> (resamples, K). The draws are those of
    ``numpy.random.default_rng(seed).integers(0, N, (resamples, N))``, and all columns share them.

    Raises:
        ValueError: ``values`` is no table, or has no rows.
    """
    if values.ndim != 2 or not len(values):
        raise ValueError(f"expected a table (N, K) of at least one photo, got {values.shape}")
    photos = len(values)
    rng = np.random.default_rng(seed)
    table = values.astype(np.float64)
    means = np.empty((resamples, values.shape[1]))
    at_a_time = max(1, _AT_A_TIME // photos)
    for start in range(0, resamples, at_a_time):
        rows = min(at_a_time, resamples - start)
        drawn = rng.integers(0, photos, (rows, photos))
        # How often each photo was drawn: a product with these counts is far quicker than
        # gathering all columns, and the mean of each column is the same.
        drawn += np.arange(rows)[:, None] * photos
        counts = np.bincount(drawn.ravel(), minlength=rows * photos).reshape(rows, photos)
        means[start : start + rows] = counts @ table / photos
    return means


def interval_of(means: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """The percentile interval of resampled means (R,) of one column."""
    rest = 50.0 * (1.0 - confidence)
    low, high = np.percentile(means, [rest, 100.0 - rest])
    return Interval(float(low), float(high))
