"""The plot of a decoding sweep: the Pareto front between fidelity and colourfulness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from colorcore.drawing.style import INK, QUIET, plot_png
from colorcore.inference.decoding_search import COLOR, FIDELITY, undominated
from colorcore.photos.write import DRAWN
from colorcore.scores.metrics import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from colorcore.decoding import Decoding

_TITLES = {
    "psnr": "PSNR, dB",
    "delta_e2000": "ΔE2000 (inverted axis)",
    "auc_balanced": "AuC balanced, 0..1",
}
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":")
_RING = "#b5121b"

Scores = dict[str, float]


def draw_front(
    scores: Mapping[Decoding, Scores],
    baselines: Mapping[str, Scores],
    marked: Mapping[str, Decoding],
    title: str,
) -> bytes:
    """Draw the settings of a sweep in three panels: the bytes of a PNG, 1800 px wide.

    The panels show PSNR, ΔE2000 and balanced AuC against the colourfulness gap; better is up and to
    the right. Each temperature has a line with its own marker and dashes that joins its chroma
    scales; filled markers are Pareto-optimal in that panel. ``baselines`` (grey, constant) are
    crosses, and ``marked`` settings, such as the stored one, have a ring and their name.
    """
    return plot_png(
        (18, 7.2),
        lambda figure: _draw(figure, scores, baselines, marked, title),
        software=DRAWN,
    )


def _draw(
    figure: Figure,
    scores: Mapping[Decoding, Scores],
    baselines: Mapping[str, Scores],
    marked: Mapping[str, Decoding],
    title: str,
) -> None:
    chromas = sorted({decoding.chroma for decoding in scores})
    figure.text(0.045, 0.94, title, fontsize=16, weight="bold")
    figure.text(
        0.045,
        0.9,
        f"Lines: chroma from ×{chromas[0]:g} to ×{chromas[-1]:g}.  Filled markers: no other "
        "setting is better in both scores.  +: baselines.  Better is up and to the right.",
        color=QUIET,
    )
    panels = figure.subplots(1, len(FIDELITY))
    figure.subplots_adjust(left=0.045, right=0.99, top=0.83, bottom=0.1, wspace=0.15)
    for axes, fidelity in zip(panels, FIDELITY, strict=True):
        _panel(axes, scores, baselines, marked, fidelity)
    if any(decoding.temperature is not None for decoding in scores):
        panels[0].legend(loc="lower left", frameon=False)


def draw_fronts(
    fronts: Mapping[str, Mapping[Decoding, Mapping[str, float]]],
    points: Mapping[str, Mapping[str, float]],
    title: str,
) -> bytes:
    """Draw several models' fronts on one axis, their mean CF: the bytes of a PNG, 1800 px wide.

    The panels show PSNR, ΔE2000 and balanced AuC against CF; better is up. Each model has a colour,
    and a line per temperature, which joins its chroma scales. ``points`` are crosses: baselines,
    and other tools' outputs. A vertical line is the photos' own mean CF.
    """
    return plot_png(
        (18, 7.2), lambda figure: _draw_all(figure, fronts, points, title), software=DRAWN
    )


def _draw_all(
    figure: Figure,
    fronts: Mapping[str, Mapping[Decoding, Mapping[str, float]]],
    points: Mapping[str, Mapping[str, float]],
    title: str,
) -> None:
    figure.text(0.045, 0.94, title, fontsize=16, weight="bold")
    figure.text(
        0.045,
        0.9,
        "Lines: one per model and temperature, over chroma.  +: baselines and outputs.  Better is "
        "up; compare models at the same CF.  Vertical line: the photos' own CF.",
        color=QUIET,
    )
    panels = figure.subplots(1, len(FIDELITY))
    figure.subplots_adjust(left=0.045, right=0.99, top=0.83, bottom=0.1, wspace=0.15)
    for axes, fidelity in zip(panels, FIDELITY, strict=True):
        for number, (name, front) in enumerate(fronts.items()):
            temperatures = sorted({d.temperature for d in front}, key=lambda t: t or 0.0)
            for temperature in temperatures:
                rows = [row for d, row in front.items() if d.temperature == temperature]
                axes.plot(
                    [row["cf"] for row in rows],
                    [row[fidelity] for row in rows],
                    color=f"C{number}",
                    lw=1.3,
                    ls=_DASHES[number % len(_DASHES)],
                    marker=_MARKERS[number % len(_MARKERS)],
                    ms=4,
                    label=name if temperature == temperatures[0] else None,
                )
        for name, row in points.items():
            axes.plot(row["cf"], row[fidelity], marker="+", ms=11, mew=1.6, color=INK)
            _label(axes, (row["cf"], row[fidelity]), name, (9, -4), 10, INK)
        for row in points.values():
            axes.axvline(row["cf_true"], color=QUIET, lw=0.8)
            break
        axes.set_title(_TITLES[fidelity])
        axes.set_xlabel("mean CF of the predictions")
        axes.margins(0.1, 0.13)
        axes.grid(color="#ececec", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        if not HIGHER_IS_BETTER[fidelity]:
            axes.invert_yaxis()
    panels[0].legend(loc="lower left", frameon=False)


def _panel(
    axes: Axes,
    scores: Mapping[Decoding, Scores],
    baselines: Mapping[str, Scores],
    marked: Mapping[str, Decoding],
    fidelity: str,
) -> None:
    def at(row: Scores) -> tuple[float, float]:
        return row[COLOR], row[fidelity]

    front = set(undominated(scores, (COLOR, fidelity)))
    temperatures = sorted({d.temperature for d in scores}, key=lambda t: t or 0.0)
    for number, temperature in enumerate(temperatures):
        line = [d for d in scores if d.temperature == temperature]
        label = None if temperature is None else f"T {temperature:g}"
        _line(axes, number / len(temperatures), number, [at(scores[d]) for d in line], label)
        for d in front.intersection(line):
            axes.plot(*at(scores[d]), marker=_MARKERS[number % len(_MARKERS)], ms=6, color=INK)
        for d in line:
            if d in front or d is line[-1]:
                _label(axes, at(scores[d]), f"×{d.chroma:g}", (6, 4), 8.5, QUIET)
    for name, row in baselines.items():
        axes.plot(*at(row), marker="+", ms=11, mew=1.6, color=INK)
        _label(axes, at(row), name, (-9, -4), 10, INK, "right")
    for setting, names in _by_setting(marked).items():
        point = at(scores[setting])
        axes.plot(*point, marker="o", ms=15, mfc="none", mec=_RING, mew=1.8)
        axes.annotate(
            ", ".join(names),
            point,
            xytext=(44, 22),
            textcoords="offset points",
            fontsize=10.5,
            color=_RING,
            arrowprops={"arrowstyle": "-", "color": _RING, "lw": 0.8, "shrinkB": 7},
        )
    axes.set_title(_TITLES[fidelity])
    axes.set_xlabel("CF gap, units of CF (inverted axis)")
    axes.margins(0.1, 0.13)
    axes.grid(color="#ececec", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.invert_xaxis()
    if not HIGHER_IS_BETTER[fidelity]:
        axes.invert_yaxis()


def _line(
    axes: Axes, share: float, number: int, points: list[tuple[float, float]], label: str | None
) -> None:
    """The line of one temperature; higher temperatures are lighter."""
    x, y = zip(*points, strict=True)
    axes.plot(
        x,
        y,
        color=f"{0.7 * share:.2f}",
        lw=1.1,
        ls=_DASHES[number % len(_DASHES)],
        marker=_MARKERS[number % len(_MARKERS)],
        ms=6,
        mfc="white",
        label=label,
    )


def _by_setting(marked: Mapping[str, Decoding]) -> dict[Decoding, list[str]]:
    """Settings with their names; a setting may have several."""
    names: dict[Decoding, list[str]] = {}
    for name, decoding in marked.items():
        names.setdefault(decoding, []).append(name)
    return names


def _label(
    axes: Axes,
    point: tuple[float, float],
    text: str,
    offset: tuple[int, int],
    size: float,
    color: str,
    side: Literal["left", "right"] = "left",
) -> None:
    axes.annotate(
        text, point, xytext=offset, textcoords="offset points", fontsize=size, color=color, ha=side
    )
