"""The plot of a model's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colorcore.drawing.style import INK, QUIET, plot_png
from colorcore.photos.write import DRAWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from colorcore.drawing.weight_stats import WeightStats

_WEIGHT_ROWS, _WEIGHT_COLUMNS = 3, 4


def draw_weights(stats: Sequence[WeightStats], title: str) -> bytes:
    """Histograms of the whole model and of its largest tensors: the bytes of a PNG, 1600 px wide.

    ``stats`` come from :func:`colorcore.drawing.weight_stats.model_stats`. The x axis spans the
    weights from the smallest to the largest; the y axis is the share of weights on a log scale,
    because a few large ones matter. The number of NaN and infinite weights is printed in red.
    """
    shown = stats[: _WEIGHT_ROWS * _WEIGHT_COLUMNS]
    rows = -(-len(shown) // _WEIGHT_COLUMNS)
    height = 1.3 + 2.7 * rows

    def draw(figure: Figure) -> None:
        figure.text(0.045, 1 - 0.42 / height, "Weights", fontsize=19, weight="bold")
        figure.text(0.045, 1 - 0.72 / height, title, fontsize=11.5, color=QUIET)
        grid = figure.add_gridspec(
            rows, _WEIGHT_COLUMNS, left=0.045, right=0.985, top=1 - 1.35 / height,
            bottom=0.42 / height, hspace=0.62, wspace=0.2,
        )  # fmt: skip
        for place, row in enumerate(shown):
            axes = figure.add_subplot(grid[divmod(place, _WEIGHT_COLUMNS)])
            _draw_weight_histogram(axes, row, whole=place == 0)

    return plot_png((16, height), draw, software=DRAWN)


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
