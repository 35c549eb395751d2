"""The charts of the report of `cc eval`: inline SVG, without styles or scripts of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

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
