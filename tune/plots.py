"""Plots of a study: parallel coordinates, shares of importance, the front of two metrics."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colorcore.drawing.style import INK, plot_png
from colorcore.scores.metrics import HIGHER_IS_BETTER
from tune.space import Axis, Space, shown_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tune.objective import Objective
    from tune.search import TrialRecord

MOST_LINES = 1000
"""Trials that parallel coordinates show; of more of them the best."""
_BEST = "#b5121b"
_EARLY = "#b9c4cf"
_FINISHED = "#2d5f8a"


@dataclass(frozen=True, slots=True)
class _Scale:
    """One upright axis: where values lie, 0 at its foot and 1 at its top."""

    title: str
    low: float
    high: float
    log: bool = False
    choices: tuple[str, ...] = ()

    def at(self, value: object) -> float:
        if self.choices:
            place = self.choices.index(str(value))
            return 0.5 if len(self.choices) == 1 else place / (len(self.choices) - 1)
        number = float(value)  # type: ignore[arg-type]
        if self.high == self.low:
            return 0.5
        if self.log:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        if self.choices:
            return [(self.at(choice), choice) for choice in self.choices]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [(self.at(value), f"{value:.4g}") for value in (self.low, middle, self.high)]


def _scale_of(axis: Axis) -> _Scale:
    if axis.kind == "choices":
        return _Scale(axis.path, 0, 0, choices=tuple(map(str, axis.values)))
    low, high = map(float, axis.values)
    return _Scale(axis.path, low, high, log=axis.kind == "log")


def _scales(records: Sequence[TrialRecord], space: Space, objective: Objective) -> list[_Scale]:
    scales = [_scale_of(axis) for axis in space.axes]
    for metric in objective.metrics:
        values = [record.scores[metric] for record in records if metric in record.scores]
        scales.append(_Scale(metric, min(values, default=0.0), max(values, default=1.0)))
    return scales


def _lines(
    records: Sequence[TrialRecord], space: Space, objective: Objective
) -> list[tuple[TrialRecord, list[float], bool]]:
    """Trials that have a score, the best last: record, height on each axis, whether it is best."""
    scored = [record for record in records if objective.metrics[0] in record.scores]
    scales = _scales(scored, space, objective)
    sign = 1.0 if HIGHER_IS_BETTER[objective.metrics[0]] else -1.0
    scored.sort(
        key=lambda record: (
            record.outcome == "finished",
            sign * record.scores[objective.metrics[0]],
        )
    )
    lines = []
    for record in scored[-MOST_LINES:]:
        values = [record.values[axis.path] for axis in space.axes]
        values += [record.scores[metric] for metric in objective.metrics]
        heights = [scale.at(value) for scale, value in zip(scales, values, strict=True)]
        is_best = record is scored[-1] and record.outcome == "finished"
        lines.append((record, heights, is_best))
    return lines


def _style(record: TrialRecord, *, is_best: bool) -> tuple[str, float]:
    if is_best:
        return _BEST, 2.6
    return (_FINISHED, 1.2) if record.outcome == "finished" else (_EARLY, 0.8)


def draw_parallel(records: Sequence[TrialRecord], space: Space, objective: Objective) -> bytes:
    """Every trial a line over the searched values and its score: the bytes of a PNG."""
    scales = _scales(records, space, objective)
    lines = _lines(records, space, objective)

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.04, 0.1, 0.92, 0.76))
        figure.text(0.04, 0.93, _title(lines), fontsize=13, weight="bold")
        for record, heights, is_best in lines:
            color, width = _style(record, is_best=is_best)
            axes.plot(range(len(heights)), heights, color=color, lw=width)
        for place, scale in enumerate(scales):
            axes.axvline(place, color=INK, lw=0.8)
            for height, text in scale.ticks():
                axes.text(place + 0.02, height, text, fontsize=9, color=INK, va="center")
        axes.set_xticks(range(len(scales)), [scale.title for scale in scales], color=INK)
        axes.set_xlim(-0.05, len(scales) - 1 + 0.25)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)

    return plot_png((max(10.0, 2.2 * len(scales)), 6.0), draw)


def _title(lines: Sequence[tuple[TrialRecord, list[float], bool]]) -> str:
    best = next((record.number for record, _, is_best in lines if is_best), None)
    told = "" if best is None else f", trial {best} the best (red)"
    return f"{len(lines)} trials{told}; pale ones ended early"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px system-ui, sans-serif; color: #2b2b2b; margin: 16px; }}
polyline {{ fill: none; cursor: pointer; }}
polyline:hover {{ stroke: #e08a00; stroke-width: 4; }}
text {{ font-size: 12px; }} .name {{ font-weight: 600; }}
</style></head><body><p>{title}. Point at a line to see its trial.</p>
<svg viewBox="0 0 {width} {height}" width="100%" role="img">
{body}
</svg></body></html>
"""
_STEP, _TOP, _DEPTH = 170, 40, 380


def parallel_page(records: Sequence[TrialRecord], space: Space, objective: Objective) -> str:
    """The same as a page by itself, without scripts: each line says its trial when pointed at."""
    scales = _scales(records, space, objective)
    lines = _lines(records, space, objective)
    body = []
    for record, heights, is_best in lines:
        color, width = _style(record, is_best=is_best)
        points = " ".join(
            f"{40 + _STEP * place},{_TOP + _DEPTH * (1 - height):.1f}"
            for place, height in enumerate(heights)
        )
        body.append(
            f'<polyline points="{points}" stroke="{color}" stroke-width="{width}">'
            f"<title>{html.escape(_told(record, objective))}</title></polyline>"
        )
    for place, scale in enumerate(scales):
        x = 40 + _STEP * place
        body.append(
            f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{_TOP + _DEPTH}" stroke="#2b2b2b"/>'
            f'<text class="name" x="{x - 30}" y="{_TOP - 16}">{html.escape(scale.title)}</text>'
        )
        body += [
            f'<text x="{x + 5}" y="{_TOP + _DEPTH * (1 - height) + 4:.1f}">'
            f"{html.escape(text)}</text>"
            for height, text in scale.ticks()
        ]
    return _PAGE.format(
        title=html.escape(_title(lines)),
        width=80 + _STEP * len(scales),
        height=_TOP + _DEPTH + 30,
        body="\n".join(body),
    )


def _told(record: TrialRecord, objective: Objective) -> str:
    scores = ", ".join(f"{name} {record.scores[name]:.4f}" for name in objective.metrics)
    why = f" ({record.reason})" if record.reason else ""
    return f"trial {record.number}, {record.outcome}{why}: {scores}; {shown_values(record.values)}"


def draw_importances(
    importances: Mapping[str, Mapping[str, float]], epochs: int | None = None
) -> bytes:
    """Bars of each path's share, a panel a metric: the bytes of a PNG.

    epochs  after which the scores were taken; None at the end
    """
    when = "" if epochs is None else f" after {epochs} {'epoch' if epochs == 1 else 'epochs'}"
    paths = max((len(shares) for shares in importances.values()), default=1)

    def draw(figure: Figure) -> None:
        if not importances:
            figure.text(0.05, 0.5, "too few trials, or trials too much alike, to tell", fontsize=13)
            return
        panels = figure.subplots(1, len(importances), squeeze=False)[0]
        for axes, (metric, shares) in zip(panels, importances.items(), strict=True):
            _bars(axes, metric, shares, when)
        figure.tight_layout()

    return plot_png((7.5 * max(1, len(importances)), 1.4 + 0.45 * paths), draw)


def _bars(axes: Axes, metric: str, shares: Mapping[str, float], when: str) -> None:
    ordered = sorted(shares.items(), key=lambda item: item[1])
    axes.barh([path for path, _ in ordered], [share for _, share in ordered], color=_FINISHED)
    for place, (_, share) in enumerate(ordered):
        axes.text(share, place, f" {share:.0%}", va="center", fontsize=10)
    axes.set_title(f"share in the spread of {metric}{when}")
    axes.set_xlim(0, 1.12 * max(shares.values()))
    axes.set_xticks([])
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.spines[:].set_visible(False)


def draw_front(
    records: Sequence[TrialRecord], front: Sequence[TrialRecord], objective: Objective
) -> bytes:
    """All finished trials by two metrics, the front joined: the bytes of a PNG."""
    x, y = objective.metrics

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.1, 0.12, 0.86, 0.78))
        finished = [record for record in records if record.outcome == "finished"]
        axes.plot(
            [record.scores[x] for record in finished],
            [record.scores[y] for record in finished],
            "o",
            color=_EARLY,
        )
        ordered = sorted(front, key=lambda record: record.scores[x])
        axes.plot(
            [record.scores[x] for record in ordered],
            [record.scores[y] for record in ordered],
            "o-",
            color=_BEST,
        )
        for record in ordered:
            at = (record.scores[x], record.scores[y])
            axes.annotate(str(record.number), at, xytext=(6, 5), textcoords="offset points")
        axes.set_title(f"{len(finished)} finished trials; red: no other is better in both")
        for name, label, invert in (
            (x, axes.set_xlabel, axes.invert_xaxis),
            (y, axes.set_ylabel, axes.invert_yaxis),
        ):
            turned = "" if HIGHER_IS_BETTER[name] else " (axis turned round)"
            label(f"{name}{turned}")
            if turned:
                invert()
        axes.grid(color="#ececec", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)

    return plot_png((9.0, 6.5), draw)
