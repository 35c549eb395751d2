"""Statistics of a model's weights: one row per tensor with a histogram, and one for all weights.

The CSV has one row per tensor, largest first, below the row ``(all)``::

    layer, shape, count, mean, std, min, max, zeros, near_zero, non_finite, low, high, bin_00 …

``zeros`` is the share of exact zeros, ``near_zero`` the share of weights within ``NEAR_ZERO`` of
zero, and ``non_finite`` the number of NaN and infinite weights; all other columns leave these out.
``bin_i`` counts the weights from low + i·(high − low)/64 up to the next bin; the last bin includes
``high``.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

BINS = 64
NEAR_ZERO = 1e-3
WHOLE = "(all)"
_FACTS = ("mean", "std", "min", "max", "zeros", "near_zero", "non_finite", "low", "high")


@dataclass(frozen=True, slots=True, eq=False)
class WeightStats:
    """One tensor's statistics; all but ``count`` and ``non_finite`` cover finite weights only.

    std           population standard deviation
    zeros, near_zero  shares, 0..1
    low, high     range of the histogram
    histogram     (BINS,) counts, bins of equal width
    """

    layer: str
    shape: tuple[int, ...]
    count: int
    mean: float
    std: float
    min: float
    max: float
    zeros: float
    near_zero: float
    non_finite: int
    low: float
    high: float
    histogram: NDArray[np.int64]

    def edges(self) -> NDArray[np.float64]:
        """The histogram's (BINS + 1,) edges."""
        return np.linspace(self.low, self.high, BINS + 1)


def weight_stats(layer: str, weights: NDArray[np.floating], shape: tuple[int, ...]) -> WeightStats:
    """The statistics of one tensor; NaN and 0 if it has no finite weight."""
    finite = weights[np.isfinite(weights)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    bounds = (low - 0.5, high + 0.5) if low == high else (low, high)  # as NumPy does
    nothing = not finite.size
    return WeightStats(
        layer=layer,
        shape=shape,
        count=weights.size,
        mean=float("nan") if nothing else float(finite.mean(dtype=np.float64)),
        std=float("nan") if nothing else float(finite.std(dtype=np.float64)),
        min=float("nan") if nothing else low,
        max=float("nan") if nothing else high,
        zeros=0.0 if nothing else float((finite == 0).mean()),
        near_zero=0.0 if nothing else float((np.abs(finite) <= NEAR_ZERO).mean()),
        non_finite=weights.size - finite.size,
        low=bounds[0],
        high=bounds[1],
        histogram=np.histogram(finite, BINS, bounds)[0].astype(np.int64),
    )


def model_stats(parameters: Iterable[tuple[str, Tensor]]) -> list[WeightStats]:
    """The whole model first, then each tensor, largest first.

    Raises:
        ValueError: the model has no parameters.
    """
    arrays = {name: value.detach().float().cpu().numpy() for name, value in parameters}
    if not arrays:
        raise ValueError("expected a model with parameters, got none")
    ordered = sorted(arrays.items(), key=lambda item: -item[1].size)
    everything = np.concatenate([array.ravel() for _, array in ordered])
    return [
        weight_stats(WHOLE, everything, everything.shape),
        *(weight_stats(name, array.ravel(), array.shape) for name, array in ordered),
    ]


def stats_facts(stats: WeightStats) -> Mapping[str, object]:
    """A row without its histogram, as plain values; None for NaN and infinity."""
    facts = {"layer": stats.layer, "shape": list(stats.shape), "count": stats.count}
    values = {name: getattr(stats, name) for name in _FACTS}
    return facts | {k: v if math.isfinite(v) else None for k, v in values.items()}


def stats_csv(rows: Iterable[WeightStats]) -> bytes:
    """All rows as CSV; see the module's docstring."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["layer", "shape", "count", *_FACTS, *(f"bin_{i:02d}" for i in range(BINS))])
    for row in rows:
        facts = [getattr(row, name) for name in _FACTS]
        shape = "x".join(map(str, row.shape))
        writer.writerow(
            [row.layer, shape, row.count, *(f"{v:.8g}" for v in facts), *row.histogram.tolist()]
        )
    return out.getvalue().encode()
