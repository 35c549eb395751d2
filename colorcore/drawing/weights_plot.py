"""Histograms of the weights of a model."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from colorcore.drawing.style import INK, QUIET, STYLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from colorcore.drawing.weight_stats import WeightStats

_WEIGHT_ROWS, _WEIGHT_COLUMNS = 3, 4


def draw_weights(stats: Sequence[WeightStats], title: str) -> bytes:
    """Histograms of the whole model and of its largest tensors: the bytes of a PNG, 1600 px wide.

    stats as :func:`colorcore.drawing.weight_stats.model_stats` gives them. Weights are across,
    from the
    smallest to the largest; the height is the share of weights on a log scale, for a few large
    ones matter. What is no finite number is counted in red.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = stats[: _WEIGHT_ROWS * _WEIGHT_COLUMNS]
    rows = -(-len(shown) // _WEIGHT_COLUMNS)
    with style.context(["default", STYLE]):
        height = 1.3 + 2.7 * rows
        figure = Figure(figsize=(16, height), dpi=100, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        figure.text(0.045, 1 - 0.42 / height, "Weights", fontsize=19, weight="bold")
        figure.text(0.045, 1 - 0.72 / height, title, fontsize=11.5, color=QUIET)
        grid = figure.add_gridspec(
            rows, _WEIGHT_COLUMNS, left=0.045, right=0.985, top=1 - 1.35 / height,
            bottom=0.42 / height, hspace=0.62, wspace=0.2,
        )  # fmt: skip
        for place, row in enumerate(shown):
            axes = figure.add_subplot(grid[divmod(place, _WEIGHT_COLUMNS)])
            _draw_weight_histogram(axes, row, whole=place == 0)
        buffer = io.BytesIO()
        canvas.print_figure(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_weight_histogram(axes: Axes, row: WeightStats, *, whole: bool) -> None:
    shape = "" if whole else f"   {'×'.join(map(str, row.shape))}"
    axes.set_title(f"{row.layer}{shape}", fontsize=9, pad=19)
    facts = f"{row.count:,} weights   σ {row.std:.3g}   {row.near_zero:.0%} near zero"
    axes.text(0, 1.035, facts, transform=axes.transAxes, fontsize=9, color=QUIET)
    if row.non_finite:
        note = f"{row.non_finite:,} not finite"
        axes.text(
            0.98, 0.9, note, transform=axes.transAxes, ha="right", color="#c0392b", weight="bold"
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
    if not row.histogram.any():
        axes.set(xticks=[], yticks=[])
        return
    share = row.histogram / row.histogram.sum()
    color = INK if whole else "#4a7fb5"
    axes.stairs(share, row.edges(), fill=True, color=color, baseline=share[share > 0].min() / 2)
    axes.set_yscale("log")
    axes.set_ylim(bottom=share[share > 0].min() / 2)
    axes.axvline(0, color="#c8c8c8", lw=0.8, zorder=0)
    axes.locator_params(axis="x", nbins=5)
