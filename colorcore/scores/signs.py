"""Signs: measured symptoms of bad colour, and of a training that goes wrong.

Scores measure how far predictions are from the photos, but not in which way. A sign names the way:
:class:`ColorStatistics` compares the colours a model uses with those of the photos,
:class:`LossHistory` keeps the course of the loss, and :func:`find_signs` compares both with
thresholds. :mod:`colorcore.recipes.advice` gives the remedy for a sign.

Symbols, over all pixels of the validation photos: C = √(a² + b²) is the chroma of a pixel, θ its
hue, index p the prediction and t the truth. Means are over pixels. In mean hues a pixel is weighted
by its chroma, because a grey one has no hue, but only up to ``VIVID``: a few glaring specks don't
make a brown picture colourful.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from colorcore.scores.color_statistics import PURPLE

GREY = 0.15
WASHED_OUT = 0.5
OVER_SATURATED = 1.5
"""Bounds of ``chroma_ratio``."""
FOCUSED = 0.9
"""Bound of ``hue_focus`` and ``axis_focus`` above which a picture seems to have one hue, or two,"""
NARROWER = 4.0
"""... provided that the photos' own hues are spread at least this many times as much."""
WELL = 0.005
"""``gain`` from which two hues are no collapse. Of twelve models, those that paint everything in
one hue gain at most .003, those with many hues at least .011 (tests/experiments/pretrained.py, in
docs/guides.md).
"""
PURPLE_CAST = 6.0
"""Bound of ``purple``, in ab units."""
WRONG_BRIGHTNESS = 10.0
"""Bound of ``lightness_error``, in units of L."""
OSCILLATING = 0.1
"""Bound of ``loss_swing``."""
FLAT = 0.02
"""``loss_fall`` below which a loss counts as flat."""
DIVERGED = 2.5
"""Bound of ``loss_rise``."""
COLORLESS = 3.0
"""Mean chroma of photos, ab units, below which a model's colours cannot be judged by them."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A symptom that was measured; see :func:`find_signs`.

    name       of the sign
    value      of the statistic that shows it
    threshold  the bound that the value passed
    meaning    description in words
    hue        in degrees, of signs that have one: the hue of ``sepia`` and ``purple_cast``, one of
               the two opposite hues of ``two_tone``
    """

    name: str
    value: float
    threshold: float
    meaning: str
    hue: float | None = None


NOT_FINITE = Sign("diverged", math.nan, math.inf, "the loss or its gradient is not finite")
"""The sign of a training that :class:`colorcore.training.events.TrainingDivergedError` ended."""


def find_signs(statistics: Mapping[str, float], *, young: bool = False) -> tuple[Sign, ...]:
    """The signs that statistics show, the most serious first.

    ================ ==========================================================================
    diverged         loss_rise > 2.5, or a statistic that is not finite
    grey             chroma_ratio < .15; hues are not judged then
    washed_out       chroma_ratio .15 to .5
    over_saturated   chroma_ratio > 1.5
    sepia            hue_focus > max(.9, 1 - (1 - hue_focus_true) / 4): one hue, and the photos'
                     hues are spread four times as much
    two_tone         the same for axis_focus, and no sepia: a hue and its opposite
    purple_cast      purple > 6
    wrong_brightness lightness_error > 10
    oscillating      loss_swing > .1
    plateaued        loss_fall < .02 (flat) with gain <= 0 (no better than one colour for all)
    ================ ==========================================================================

    Args:
        statistics: of :meth:`ColorStatistics.compute` and :meth:`LossHistory.compute` combined.
            Signs whose statistics are missing are not checked.
        young: check only ``diverged``: every training starts grey, and its loss goes up and down
            before it settles.
    """
    if young:
        return tuple(_divergence(statistics))
    return (*_divergence(statistics), *_colors(statistics), *_course(statistics))


def without_excused(signs: Sequence[Sign], statistics: Mapping[str, float]) -> list[Sign]:
    """The signs, without ``two_tone`` if the model does well all the same.

    Few photos may have hardly more than two hues worth learning, and a model of them is no
    collapse if its ``gain`` is at least .005.
    """
    does_well = statistics.get("gain", 0.0) >= WELL
    return [sign for sign in signs if not (does_well and sign.name == "two_tone")]


def _divergence(statistics: Mapping[str, float]) -> Iterator[Sign]:
    broken = [name for name, value in statistics.items() if not math.isfinite(value)]
    rise = statistics.get("loss_rise", 0.0)
    if broken:
        yield Sign("diverged", math.nan, math.inf, f"{broken[0]} is not finite")
    elif rise > DIVERGED:
        yield Sign("diverged", rise, DIVERGED, f"the loss is {rise:.2g} times that at the start")


def _colors(statistics: Mapping[str, float]) -> Iterator[Sign]:
    if statistics.get("chroma_true", 0.0) >= COLORLESS:
        ratio = statistics["chroma_ratio"]
        share = f"chroma is {ratio:.0%} of the photos'"
        if ratio < GREY:
            yield Sign("grey", ratio, GREY, f"hardly any colour: {share}")
        elif ratio < WASHED_OUT:
            yield Sign("washed_out", ratio, WASHED_OUT, f"pale colours: {share}")
        elif ratio > OVER_SATURATED:
            yield Sign("over_saturated", ratio, OVER_SATURATED, f"glaring colours: {share}")
        if ratio >= GREY:
            yield from _hue_signs(statistics)
    if (purple := statistics.get("purple", 0.0)) > PURPLE_CAST:
        meaning = f"everything has a purple tinge of {purple:.0f} ab units"
        yield Sign("purple_cast", purple, PURPLE_CAST, meaning, statistics["cast_hue"])
    if (error := statistics.get("lightness_error", 0.0)) > WRONG_BRIGHTNESS:
        bias = statistics["lightness_bias"]
        way = "too bright" if bias > error / 2 else "too dark" if bias < -error / 2 else "uneven"
        meaning = f"the RGB head's lightness is off by {error:.0f}: {way}"
        yield Sign("wrong_brightness", error, WRONG_BRIGHTNESS, meaning)


def _hue_signs(statistics: Mapping[str, float]) -> Iterator[Sign]:
    hue, axis = statistics["hue"], statistics["axis"]
    focus, bound = statistics["hue_focus"], _focused(statistics["hue_focus_true"])
    if focus > bound:
        meaning = f"nearly all colour is one hue, {_name_of(hue)} ({hue:.0f}°)"
        yield Sign("sepia", focus, bound, meaning, hue)
        return
    focus, bound = statistics["axis_focus"], _focused(statistics["axis_focus_true"])
    if focus > bound:
        names = "red and green" if is_red_green(axis) else "blue and yellow"
        meaning = f"nearly all colour is two opposite hues, {names} ({axis:.0f}°)"
        yield Sign("two_tone", focus, bound, meaning, axis)


def _course(statistics: Mapping[str, float]) -> Iterator[Sign]:
    if (swing := statistics.get("loss_swing", 0.0)) > OSCILLATING:
        meaning = f"the loss goes up and down by {swing:.0%} of its level"
        yield Sign("oscillating", swing, OSCILLATING, meaning)
    gain = statistics.get("gain", math.inf)
    if gain <= 0.0 and statistics.get("loss_fall", math.inf) < FLAT:
        meaning = f"the loss is flat, and balanced AuC is {-gain:.4f} below one colour for all"
        yield Sign("plateaued", gain, 0.0, meaning)


def _focused(truth: float) -> float:
    """The bound of a focus; the spread is the circular variance, 1 minus the focus."""
    return max(FOCUSED, 1.0 - (1.0 - truth) / NARROWER)


def is_red_green(axis: float) -> bool:
    """Whether an axis, in degrees, is nearer to a (red and green) than to b (blue and yellow)."""
    return abs(math.cos(math.radians(axis))) > math.sqrt(0.5)


def _name_of(hue: float) -> str:
    for end, name in _HUES:
        if hue < end:
            return name
    return _HUES[0][1]


_HUES = (
    (20.0, "pink"),
    (45.0, "red"),
    (85.0, "orange to brown"),
    (110.0, "yellow"),
    (175.0, "green"),
    (225.0, "blue-green"),
    (PURPLE[0], "blue"),
    (PURPLE[1], "purple"),
)
"""Upper ends of named hues in degrees of CIELAB; the first name continues after the last end."""
