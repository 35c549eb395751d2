"""Plots of a study: parameter importances, and the Pareto front of two metrics.

`optuna.visualization` draws both, but cuts off long names, numbers no trials, and draws with
pyplot, whose state all threads share. Parallel coordinates are left to MLflow: `cc ui STUDY`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from colorcore.drawing.style import INK, plot_png
from colorcore.scores.metrics import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tune.search.objective import Objective
    from tune.search.search import TrialRecord

_FRONT = "#b5121b"
_OTHERS = "#b9c4cf"
_BAR = "#2d5f8a"


def draw_importances(
    importances: Mapping[str, Mapping[str, float]], epochs: int | None = None
) -> bytes:
    """Bars of each setting's importance, one panel per metric: the bytes of a PNG.

    epochs  epochs after which the scores were taken; None: at the end
    """
    when = "" if epochs is None else f" after {epochs} {'epoch' if epochs == 1 else 'epochs'}"
    paths = max((len(shares) for shares in importances.values()), default=1)

    def draw(figure: Figure) -> None:
        if not importances:
            text = "importances need at least ten trials with different scores"
            figure.text(0.05, 0.5, text, fontsize=13)
            return
        panels = figure.subplots(1, len(importances), squeeze=False)[0]
        for axes, (metric, shares) in zip(panels, importances.items(), strict=True):
            _bars(axes, metric, shares, when)
        figure.tight_layout()

    return plot_png((7.5 * max(1, len(importances)), 1.4 + 0.45 * paths), draw)


def _bars(axes: Axes, metric: str, shares: Mapping[str, float], when: str) -> None:
    ordered = sorted(shares.items(), key=lambda item: item[1])
    axes.barh([path for path, _ in ordered], [share for _, share in ordered], color=_BAR)
    for place, (_, share) in enumerate(ordered):
        axes.text(share, place, f" {share:.0%}", va="center", fontsize=10)
    axes.set_title(f"share of the variance in {metric}{when}")
    axes.set_xlim(0, 1.12 * max(shares.values()))
    axes.set_xticks([])
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.spines[:].set_visible(False)


def draw_front(
    records: Sequence[TrialRecord], front: Sequence[TrialRecord], objective: Objective
) -> bytes:
    """All finished trials by two metrics, with a line along the front: the bytes of a PNG."""
    x, y = objective.metrics

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.1, 0.12, 0.86, 0.78))
        finished = [record for record in records if record.outcome == "finished"]
        ordered = sorted(front, key=lambda record: record.scores[x])
        for shown, style, color in ((finished, "o", _OTHERS), (ordered, "o-", _FRONT)):
            axes.plot(
                [record.scores[x] for record in shown],
                [record.scores[y] for record in shown],
                style,
                color=color,
            )
        for record in ordered:
            at = (record.scores[x], record.scores[y])
            axes.annotate(str(record.number), at, xytext=(6, 5), textcoords="offset points")
        axes.set_title(f"{len(finished)} finished trials; red: the Pareto front")
        for name, label, invert in (
            (x, axes.set_xlabel, axes.invert_xaxis),
            (y, axes.set_ylabel, axes.invert_yaxis),
        ):
            inverted = not HIGHER_IS_BETTER[name]
            label(f"{name}{' (inverted axis)' if inverted else ''}")
            if inverted:
                invert()
        axes.grid(color="#ececec", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)

    return plot_png((9.0, 6.5), draw)
