"""Every side's scores of every photo, kept for intervals, rankings and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from colorcore.comparison.bootstrap import Interval, interval_of, resampled_means
from colorcore.scores.metrics import HIGHER_IS_BETTER, PER_PHOTO

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIMIT = 100_000
"""Photos whose scores are kept: 4 MB per side. Of more, a random sample of this size."""
LIGHTNESS = "lightness_error"
"""Mean |ΔL| of a photo, units of L: 0 for models, whose answers get the photo's own L."""
COLUMNS = (*PER_PHOTO, LIGHTNESS)
COMPARED = ("psnr", "delta_e2000", "cf_gap", "auc_balanced")
"""Metrics in which two sides are compared by their paired difference."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the mean of ``one`` is from that of ``other`` in a metric, over the same photos.

    difference  mean of one minus mean of other
    interval    its 95% interval, from paired resamples
    better      name of the better side; "" if the interval holds 0: chance may have made it
    """

    one: str
    other: str
    metric: str
    difference: float
    interval: Interval
    better: str


class PerPhoto:
    """A table of photos, sides and metrics; a uniform random sample if there are too many photos.

    The sample is Algorithm R's (Vitter 1985), and the same in every run. An interval from it is
    that of a mean over ``limit`` photos: wider than that of all.

    Args:
        sides: names of what is compared, in the order of :meth:`add`.
        limit: photos kept.
        columns: names of the values of a photo.
    """

    def __init__(
        self, sides: Sequence[str], limit: int = LIMIT, columns: Sequence[str] = COLUMNS
    ) -> None:
        self.sides, self.columns = tuple(sides), tuple(columns)
        self._limit = limit
        self._random = Random(0)  # noqa: S311 - a sample, not a secret
        self._rows: list[NDArray[np.float32]] = []
        self.names: list[str] = []
        self.seen = 0

    def add(self, names: Sequence[str], values: NDArray[np.float32]) -> None:
        """Add photos: their names, and values (B, sides, columns)."""
        for name, row in zip(names, values, strict=True):
            self.seen += 1
            if len(self._rows) < self._limit:
                self._rows.append(row.copy())  # a view would keep the whole batch alive
                self.names.append(name)
            elif (place := self._random.randrange(self.seen)) < self._limit:
                self._rows[place], self.names[place] = row.copy(), name

    def __len__(self) -> int:
        return len(self._rows)

    def table(self) -> NDArray[np.float32]:
        """(N, sides, columns)."""
        shape = (len(self._rows), len(self.sides), len(self.columns))
        return np.stack(self._rows) if self._rows else np.empty(shape, np.float32)

    def of(self, side: str, column: str) -> NDArray[np.float32]:
        """(N,) values of a side."""
        return self.table()[:, self.sides.index(side), self.columns.index(column)]

    def compare(
        self, pairs: Sequence[tuple[str, str]] | None = None
    ) -> tuple[dict[str, dict[str, Interval]], list[Difference]]:
        """The intervals of all means by side and column, and the differences of pairs of sides.

        ``pairs`` are all pairs unless given. Fewer than two photos have neither.
        """
        if len(self) < 2:
            return {}, []
        table = self.table()
        means = resampled_means(table.reshape(len(table), -1)).reshape(-1, *table.shape[1:])
        intervals = {
            side: {name: interval_of(means[:, i, j]) for j, name in enumerate(self.columns)}
            for i, side in enumerate(self.sides)
        }
        return intervals, [
            self._difference(table, means, one, other, metric)
            for one, other in (combinations(self.sides, 2) if pairs is None else pairs)
            for metric in COMPARED
            if metric in self.columns
        ]

    def _difference(
        self,
        table: NDArray[np.float32],
        means: NDArray[np.float64],
        one: str,
        other: str,
        metric: str,
    ) -> Difference:
        i, j, k = self.sides.index(one), self.sides.index(other), self.columns.index(metric)
        interval = interval_of(means[:, i, k] - means[:, j, k])
        difference = float((table[:, i, k].astype(float) - table[:, j, k]).mean())
        better = ""
        if interval.is_beyond_zero:
            better = one if (difference > 0) == HIGHER_IS_BETTER[metric] else other
        return Difference(one, other, metric, difference, interval, better)


def means_of(table: NDArray[np.float32], columns: Sequence[str]) -> Mapping[str, float]:
    """Means over photos of one side's values (N, columns), by column."""
    return dict(zip(columns, table.astype(np.float64).mean(0).tolist(), strict=True))
