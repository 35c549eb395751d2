"""The tables and charts of the report of `cc eval`: HTML and inline SVG, without scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

METRICS = {
    "psnr": ("PSNR, dB", True),
    "ssim": ("SSIM", True),
    "delta_e2000": ("ΔE2000", False),
    "ab_l1": ("ab L1", False),
    "auc": ("AuC", True),
    "auc_balanced": ("AuC balanced", True),
    "cf": ("CF", None),
    "cf_gap": ("CF gap", False),
    "lightness_error": ("mean |ΔL|", False),
    "kid_lite0": ("KID Lite0 ×10³", False),
    "perceptual_lite0": ("perceptual Lite0", False),
    "lpips_alex": ("LPIPS Alex", False),
    "lpips_vgg": ("LPIPS VGG", False),
    "fid": ("FID", False),
}
"""Titles of scores, and whether more is better; None: neither."""
SIDE = 400
"""Units per side of a square chart."""
_LEFT, _BOTTOM, _MARGIN = 44, 40, 10


def text_of(text: object) -> str:
    """Text for HTML; bytes of names that are not UTF-8 are replaced."""
    plain = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return escape(plain)


def bar(share: float, color: str, label: str, *, mark: float | None = None) -> str:
    """A horizontal bar of ``share`` 0..1 of the width, its label, and perhaps a mark."""
    width = 100.0 * min(max(share, 0.0), 1.0)
    line = ""
    if mark is not None:
        x = f"{100.0 * mark:.2f}"
        line = f'<line class="mark" x1="{x}" x2="{x}" y1="0" y2="8"/>'
    return (
        '<div class="bar"><svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="8"/>'
        f'<rect class="{color}" width="{width:.2f}" height="8"/>{line}</svg>'
        f"<span>{text_of(label)}</span></div>"
    )


def scatter(points: Sequence[tuple[float, float]], color: str, title: str, top: float) -> str:
    """Predicted over true colourfulness, 0..``top`` on both axes, with the line of equal values."""
    inner = SIDE - _LEFT - _MARGIN
    height = SIDE - _BOTTOM - _MARGIN

    def x(value: float) -> float:
        return _LEFT + inner * min(value / top, 1.0)

    def y(value: float) -> float:
        return _MARGIN + height * (1.0 - min(value / top, 1.0))

    marks = "".join(
        f'<text x="{x(tick):.1f}" y="{SIDE - _BOTTOM + 18}" text-anchor="middle">{tick:g}</text>'
        f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        f'<path class="axis" d="M{_LEFT} {y(tick):.1f}H{SIDE - _MARGIN}'
        f'M{x(tick):.1f} {_MARGIN}V{SIDE - _BOTTOM}"/>'
        for tick in ticks(top)
    )
    dots = "".join(
        f'<circle class="{color}" cx="{x(true):.1f}" cy="{y(predicted):.1f}" r="4"/>'
        for true, predicted in points
        if math.isfinite(true) and math.isfinite(predicted)
    )
    return (
        f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{text_of(title)}">{marks}'
        f'<path class="ideal" d="M{x(0):.1f} {y(0):.1f}L{x(top):.1f} {y(top):.1f}"/>{dots}'
        f'<text x="{(SIDE + _LEFT) / 2}" y="{SIDE - 4}" text-anchor="middle">true CF</text>'
        f'<text x="12" y="{SIDE / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {SIDE / 2})">predicted CF</text></svg>'
    )


def ticks(top: float) -> list[float]:
    """Four to six round values from 0 to ``top``, for a top from :func:`round_top`."""
    step = _step(top)
    return [step * i for i in range(round(top / step) + 1)]


def round_top(largest: float) -> float:
    """The end of an axis that holds ``largest``: a multiple of a round step."""
    if not (math.isfinite(largest) and largest > 0):
        return 1.0
    step = _step(largest)
    return step * math.ceil(largest / step)


def _step(top: float) -> float:
    """1, 2 or 5 times a power of ten, such that ``top`` has about five steps."""
    rough = top / 5.0
    power = 10.0 ** math.floor(math.log10(rough) + 1e-9)
    return power * next(each for each in (1, 2, 5, 10) if each * power >= rough * (1 - 1e-9))


# -- tables ---------------------------------------------------------------------------------------


def score_table(
    metrics: Sequence[str],
    rows: Mapping[str, tuple[Mapping[str, float], Mapping[str, Sequence[float]]]],
    colors: Mapping[str, str],
    compared: Sequence[str],
    last: Mapping[str, str] | None = None,
) -> str:
    """A row per side, with its intervals; ``last`` is a column of text."""
    head = "".join(f"<th>{text_of(METRICS[name][0])}</th>" for name in metrics)
    best = {name: _best(name, {s: rows[s][0] for s in compared if s in rows}) for name in metrics}
    body = ""
    for side, (scores, intervals) in rows.items():
        cells = ""
        for name in metrics:
            interval = intervals.get(name)
            small = (
                f"<small>{number(interval[0])} to {number(interval[1])}</small>"
                if interval and name in scores and interval[0] != interval[1]
                else ""
            )
            mark = ' class="best"' if side in best[name] else ""
            cells += f"<td{mark}>{number(scores.get(name))}{small}</td>"
        if last is not None:
            cells += f"<td>{text_of(last.get(side, ''))}</td>"
        body += f'<tr><th scope="row">{color_key(colors[side])}{text_of(side)}</th>{cells}</tr>'
    more = "<th>decoding</th>" if last is not None else ""
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr><th></th>{head}{more}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _best(metric: str, rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The sides with the best value of a metric; none if there is no choice."""
    higher = METRICS[metric][1]
    values = {side: row[metric] for side, row in rows.items() if row.get(metric) is not None}
    if higher is None or len(values) < 2:
        return []
    top = max(values.values()) if higher else min(values.values())
    return [side for side, value in values.items() if value == top]


def difference_table(differences: Sequence[Mapping[str, Any]]) -> str:
    """A row per pair of sides, a column per metric; nothing if there is no pair."""
    pairs: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for each in differences:
        pairs.setdefault((each["one"], each["other"]), {})[each["metric"]] = each
    if not pairs:
        return ""
    metrics = list(next(iter(pairs.values())))
    head = "".join(f"<th>{text_of(METRICS[name][0])}</th>" for name in metrics)
    body = ""
    for (one, other), found in pairs.items():
        cells = ""
        for name in metrics:
            each = found[name]
            low, high = each["interval"]
            said = f"<b>{text_of(each['better'])}</b>" if each["better"] else "level"
            size = f"{signed(each['difference'])}; {signed(low)} to {signed(high)}"
            cells += f"<td>{said}<small>{size}</small></td>"
        body += f'<tr><th scope="row">{text_of(one)} vs. {text_of(other)}</th>{cells}</tr>'
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def legend(names: Iterable[str], colors: Mapping[str, str]) -> str:
    """The names of sides, each with its colour."""
    each = "".join(f"<span>{color_key(colors[name])}{text_of(name)}</span>" for name in names)
    return f'<div class="legend">{each}</div>'


def color_key(color: str) -> str:
    """A small square in a side's colour."""
    return f'<span class="key {color}"></span>'


def number(value: float | None) -> str:
    """A score with two digits, or three below 1; nothing for None."""
    if value is None:
        return ""
    return f"{value:.{3 if abs(value) < 1 else 2}f}".replace("-", "−")


def signed(value: float) -> str:
    """A number with its sign."""
    return f"{'+' if value >= 0 else ''}{number(value)}"


def counted(count: int, what: str) -> str:
    """A number and what it counts, such as "1 photo" and "2 photos"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
