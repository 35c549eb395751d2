"""Signs: measured symptoms of bad colour, and of a training that goes wrong.

Scores say how far the answers are from the photos, not in which way. A sign names the way:
:class:`ColorStatistics` sums up what colours a model uses beside those of the photos,
:class:`LossHistory` keeps the course of the loss, and :func:`find_signs` compares both with
thresholds. What to do about a sign says :mod:`colorcore.recipes.advice`.

Symbols, over all pixels of the validation photos: C = √(a² + b²) the chroma of a pixel, θ its
hue, an index p the prediction and t the truth. Means are over pixels. Where hues are averaged a
pixel counts by its chroma, as a grey one has no hue, but only up to :data:`VIVID`: a few glaring
specks do not make a brown picture colourful.
"""

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from colorcore.color.lab import rgb_to_lab
from colorcore.scores.metrics import auc, constant_baseline, stored_cells

if TYPE_CHECKING:
    from torch import Tensor

GREY = 0.15
WASHED_OUT = 0.5
OVER_SATURATED = 1.5
"""Bounds of ``chroma_ratio``."""
FOCUSED = 0.9
"""``hue_focus`` and ``axis_focus`` from which on a picture seems to have one hue, or two."""
NARROWER = 4.0
"""... if the photos' own hues are spread by at least this many times as much."""
VIVID = 25.0
"""Chroma, ab units, from which on more does not count: that of skin or of a pale sky."""
PURPLE = (290.0, 345.0)
"""Hues in degrees that are seen as purple: bluer below, pinker above."""
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
"""Mean chroma of photos, ab units, below which they say nothing about a model's colours."""

BLOCK = 512
"""Photos whose losses are averaged before they are compared."""
EPOCHS = 4
"""... or so many epochs, where these are fewer photos."""
RECENT = 32
"""Blocks in which oscillation is looked for."""
COURSE = 64
"""Parts of the whole course are half as many to as many as this; an even number."""
FEW = 8
"""Blocks from which on a loss has a course."""
_NO_LOSS = 1e-12
"""Below this a loss counts as 0."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A symptom that was measured; see :func:`find_signs`.

    name       of the sign
    value      of the statistic that shows it
    threshold  the bound that the value passed
    meaning    what is seen, in words
    hue        in degrees, of the signs that have one: of ``sepia`` and ``purple_cast`` the hue,
               of ``two_tone`` one of the axis's two (the other is opposite)
    """

    name: str
    value: float
    threshold: float
    meaning: str
    hue: float | None = None


class ColorStatistics:
    """What colours a model uses, beside those of the photos; added up batch by batch.

    All that is kept is one vector of sums, so sums of states are states, as those of
    :class:`~colorcore.scores.metrics.Evaluation`.

    Args:
        mean_ab: (a, b) of the training photos, ab units: the constant answer.
        balance: (256, 256), the palette weight of each stored (a, b) cell.
    """

    def __init__(self, mean_ab: tuple[float, float], balance: Tensor) -> None:
        self._mean_ab = torch.tensor(mean_ab)
        self._balance = balance.float()
        self._state = torch.zeros(len(_SUMS), dtype=torch.float64)

    @torch.no_grad()
    def update(self, lab_pred: Tensor, lab_true: Tensor, rgb: Tensor | None = None) -> None:
        """Add a batch.

        lab_pred, lab_true (B, 3, H, W) CIELAB float on one device, lab_pred with the truth's L;
        rgb (B, 3, H, W) sRGB in 0..1, the answer of an RGB head before it was given that L.
        """
        self._balance = self._balance.to(lab_true.device)
        lab_pred, lab_true = lab_pred.float(), lab_true.float()
        weights = self._balance[stored_cells(lab_true[:, 1:])]
        constant = constant_baseline(lab_true, self._mean_ab)
        sums = {
            "pixels": weights.new_tensor(float(weights.numel())),
            "photos": weights.new_tensor(float(len(lab_true))),
            "auc": auc(lab_pred[:, 1:], lab_true[:, 1:], weights).sum(),
            "auc_constant": auc(constant[:, 1:], lab_true[:, 1:], weights).sum(),
            **{f"{name}_pred": value for name, value in _color_sums(lab_pred[:, 1:]).items()},
            **{f"{name}_true": value for name, value in _color_sums(lab_true[:, 1:]).items()},
        }
        if rgb is not None:
            error = rgb_to_lab(rgb.float())[:, :1] - lab_true[:, :1]
            sums["L_pixels"] = sums["pixels"]
            sums["L_error"], sums["L_bias"] = error.abs().sum(), error.sum()
        known = [name for name in _SUMS if name in sums]
        added = torch.stack([sums[name] for name in known]).cpu().double()
        self._state[[_SUMS.index(name) for name in known]] += added

    def state(self) -> Tensor:
        """All that was added, as a float64 vector on the CPU; sums of states are states."""
        return self._state.clone()

    def add_state(self, state: Tensor) -> None:
        """Add what other statistics, of other photos, have seen.

        Raises:
            ValueError: the vector has another length.
        """
        if state.shape != self._state.shape:
            raise ValueError(f"expected {len(_SUMS)} sums, got shape {tuple(state.shape)}")
        self._state += state.to(self._state)

    def compute(self) -> dict[str, float]:
        """The statistics; empty when no photo was added.

        ========================= ==========================================================
        chroma_ratio, chroma_true mean C_p / mean C_t, 1 being as vivid as the photos; mean C_t
        hue_focus, hue_focus_true |Σ w e^(iθ)| / Σ w with w = min(C, 25): 1 when all colour has
                                  one hue, 0 when hues balance. The mean resultant length of
                                  directional statistics (Mardia and Jupp 2000, section 2.3),
                                  of weighted hues
        axis_focus, ..._true      |Σ w e^(2iθ)| / Σ w: the same of doubled angles, as is done
                                  with axes: 1 when all colour has one hue or its opposite
        hue, axis                 their directions in degrees: 0..360, and 0..180
        cast, cast_hue            length and hue of mean ab_p - mean ab_t, ab units
        purple                    min(|mean ab_p|, cast), ab units, where both have a hue in
                                  :data:`PURPLE`, else 0: how purple the answers are beyond
                                  what the photos are
        gain                      balanced AuC less that of the constant mean ab
        lightness_error, ..._bias mean |L_p - L_t| and mean (L_p - L_t), units of L; of
                                  models with an RGB head only
        ========================= ==========================================================
        """
        sums = dict(zip(_SUMS, self._state.tolist(), strict=True))
        if not sums["pixels"]:
            return {}
        pred, true = _colors_of(sums, "pred"), _colors_of(sums, "true")
        cast = pred.mean - true.mean
        is_purple = _is_purple(pred.mean) and _is_purple(cast)
        result = {
            "chroma_ratio": pred.chroma / max(true.chroma, _NO_CHROMA),
            "chroma_true": true.chroma,
            "hue_focus": abs(pred.hue),
            "hue_focus_true": abs(true.hue),
            "hue": _degrees(pred.hue),
            "axis_focus": abs(pred.axis),
            "axis_focus_true": abs(true.axis),
            "axis": _degrees(pred.axis) / 2,
            "cast": abs(cast),
            "cast_hue": _degrees(cast),
            "purple": min(abs(pred.mean), abs(cast)) if is_purple else 0.0,
            "gain": (sums["auc"] - sums["auc_constant"]) / sums["photos"],
        }
        if sums["L_pixels"]:
            result["lightness_error"] = sums["L_error"] / sums["L_pixels"]
            result["lightness_bias"] = sums["L_bias"] / sums["L_pixels"]
        return result


_COLOR_SUMS = ("a", "b", "chroma", "weight", "cos", "sin", "cos2", "sin2")
_SUMS = (
    "pixels",
    "photos",
    "auc",
    "auc_constant",
    "L_pixels",
    "L_error",
    "L_bias",
    *(f"{name}_pred" for name in _COLOR_SUMS),
    *(f"{name}_true" for name in _COLOR_SUMS),
)
"""What is kept sums of, in the order of the state."""
_NO_CHROMA = 1e-6
"""ab units: photos without any colour, or a pixel without a hue."""


def _color_sums(ab: Tensor) -> dict[str, Tensor]:
    """Sums over the pixels of ab (B, 2, H, W): a, b, C, w, w cos θ, w sin θ, w cos 2θ, w sin 2θ."""
    a, b = ab.unbind(1)
    chroma = torch.hypot(a, b)
    weight = chroma.clamp(max=VIVID)
    length = chroma.clamp(min=_NO_CHROMA)
    cos, sin = a / length, b / length
    return {
        "a": a.sum(),
        "b": b.sum(),
        "chroma": chroma.sum(),
        "weight": weight.sum(),
        "cos": (weight * cos).sum(),
        "sin": (weight * sin).sum(),
        "cos2": (weight * (cos * cos - sin * sin)).sum(),
        "sin2": (weight * 2.0 * cos * sin).sum(),
    }


@dataclass(frozen=True, slots=True)
class _Colors:
    """Mean (a, b) as a complex number, mean C, and the mean resultants of θ and of 2θ."""

    mean: complex
    chroma: float
    hue: complex
    axis: complex


def _colors_of(sums: Mapping[str, float], side: str) -> _Colors:
    a, b, chroma, weight, *resultants = (sums[f"{name}_{side}"] for name in _COLOR_SUMS)
    cos, sin, cos2, sin2 = (each / max(weight, _NO_CHROMA) for each in resultants)
    pixels = sums["pixels"]
    return _Colors(complex(a, b) / pixels, chroma / pixels, complex(cos, sin), complex(cos2, sin2))


def _degrees(vector: complex) -> float:
    return math.degrees(cmath.phase(vector)) % 360.0


def _is_purple(ab: complex) -> bool:
    return PURPLE[0] <= _degrees(ab) <= PURPLE[1]


NOT_FINITE = Sign("diverged", math.nan, math.inf, "the loss or its gradient is no finite number")
"""The sign of a training that :class:`colorcore.training.fit.TrainingDivergedError` ended."""


def find_signs(statistics: Mapping[str, float], *, young: bool = False) -> tuple[Sign, ...]:
    """The signs that statistics show, the gravest first.

    ================ ==========================================================================
    diverged         loss_rise > 2.5, or an answer that is no finite number
    grey             chroma_ratio < .15; then colours say nothing about hues
    washed_out       chroma_ratio .15 to .5
    over_saturated   chroma_ratio > 1.5
    sepia            hue_focus > max(.9, 1 - (1 - hue_focus_true) / 4): one hue, and the photos'
                     hues are spread four times as much
    two_tone         the same of axis_focus, and no sepia: a hue and its opposite
    purple_cast      purple > 6
    wrong_brightness lightness_error > 10
    oscillating      loss_swing > .1
    plateaued        loss_fall < .02 (flat) with gain <= 0 (no better than one colour for all)
    ================ ==========================================================================

    Args:
        statistics: those of :meth:`ColorStatistics.compute` and :meth:`LossHistory.compute` in
            one. A sign whose statistics are not there is not looked for.
        young: of a model that has hardly been trained only ``diverged`` is looked for: every
            training starts grey, and goes up and down before it settles.
    """
    if young:
        return tuple(_divergence(statistics))
    return (*_divergence(statistics), *_colors(statistics), *_course(statistics))


def _divergence(statistics: Mapping[str, float]) -> Iterator[Sign]:
    broken = [name for name, value in statistics.items() if not math.isfinite(value)]
    rise = statistics.get("loss_rise", 0.0)
    if broken:
        yield Sign("diverged", math.nan, math.inf, f"{broken[0]} is no finite number")
    elif rise > DIVERGED:
        yield Sign("diverged", rise, DIVERGED, f"the loss is {rise:.2g} times that of the start")


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
        meaning = f"everything is tinged with purple, by {purple:.0f} ab units"
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
        meaning = f"two opposite hues are nearly all there is, {names} ({axis:.0f}°)"
        yield Sign("two_tone", focus, bound, meaning, axis)


def _course(statistics: Mapping[str, float]) -> Iterator[Sign]:
    if (swing := statistics.get("loss_swing", 0.0)) > OSCILLATING:
        meaning = f"the loss goes up and down by {swing:.0%} of its level"
        yield Sign("oscillating", swing, OSCILLATING, meaning)
    gain = statistics.get("gain", math.inf)
    if gain <= 0.0 and statistics.get("loss_fall", math.inf) < FLAT:
        meaning = f"the loss is flat, and balanced AuC {-gain:.4f} below one colour for all"
        yield Sign("plateaued", gain, 0.0, meaning)


def _focused(truth: float) -> float:
    """The bound of a focus: spreads are 1 less it, the circular variance."""
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
"""Where the names of hues end, in degrees of CIELAB; the first begins where the last ends."""


ADVERSARIAL = frozenset({"adversarial", "feature_matching"})
"""Terms whose level is the judge's as much as the model's: they go up and down by nature."""


def steady_loss(terms: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The loss without its :data:`ADVERSARIAL` terms: what a :class:`LossHistory` is given.

    terms and weights by name.
    """
    return math.fsum(
        weights[name] * value
        for name, value in terms.items()
        if name in weights and name not in ADVERSARIAL
    )


class LossHistory:
    """The course of a training's loss, in a fixed and small number of numbers.

    Losses are averaged over blocks of at least :data:`BLOCK` photos, so that what one batch
    happens to hold counts little, whatever the batch size.
    Kept are the latest :data:`RECENT` blocks, and the whole course in :data:`COURSE` / 2 to
    :data:`COURSE` equal parts: when these are full, neighbours are merged.

    Args:
        batch: photos a step, over all ranks.
        steps_an_epoch: a block has no more than :data:`EPOCHS` epochs.
    """

    def __init__(self, batch: int = 1, steps_an_epoch: int = BLOCK) -> None:
        self.steps = 0
        self.warming_up = False
        self._lr = 0.0
        self._first = 0.0
        self._steps_a_block = min(-(-BLOCK // batch), EPOCHS * steps_an_epoch)
        self._block = _Mean()
        self._recent: list[float] = []
        self._part = _Mean()
        self._blocks_a_part = 1
        self._course: list[float] = []

    def add(self, loss: float, lr: float) -> None:
        """Add a step, with its learning rate: a rate above the last step's is warm-up."""
        self.steps += 1
        if self.steps == 1:
            self._first = loss
        self.warming_up, self._lr = lr > self._lr and self.steps > 1, lr
        self._block.add(loss)
        if self._block.count < self._steps_a_block:
            return
        mean = self._block.take()
        self._recent = [*self._recent, mean][-RECENT:]
        self._part.add(mean)
        if self._part.count < self._blocks_a_part:
            return
        self._course.append(self._part.take())
        if len(self._course) == COURSE:
            pairs = zip(self._course[::2], self._course[1::2], strict=True)
            self._course = [(one + other) / 2 for one, other in pairs]
            self._blocks_a_part *= 2

    @property
    def young(self) -> bool:
        """Whether the learning rate still rises, or fewer than half of :data:`FEW` blocks are in.

        With 1,000 photos these are the first two epochs.
        """
        return self.warming_up or 2 * self.blocks < FEW

    @property
    def blocks(self) -> int:
        """Complete blocks so far."""
        return self.steps // self._steps_a_block

    def compute(self) -> dict[str, float]:
        """The statistics; those of which there are too few blocks are left out.

        With r_1 … r_n the means of the latest blocks (n at most :data:`RECENT`), and c_1 … c_m
        those of the parts of the whole course:

        ========== ===========================================================================
        loss_swing 2 · min(Σ rises, Σ falls) / ((n - 1) · mean r), of the differences between
                   neighbouring blocks: how far the loss goes up and down again at each block,
                   as a share of its level. 0 for one that only falls or only rises; from
                   :data:`FEW` blocks on
        loss_rise  the mean of r_{n-1} and r_n, divided by the smaller of c_1 and the first
                   step's loss, which is about that of a grey answer
        loss_fall  1 - (mean of the last quarter of c) / (mean of the quarter before it): the
                   share by which the loss has fallen lately; from 2 · :data:`FEW` blocks on
        ========== ===========================================================================
        """
        if self.blocks < FEW:
            return {}
        recent, course = self._recent, self._course
        steps = [after - before for before, after in itertools.pairwise(recent)]
        rises = math.fsum(step for step in steps if step > 0)
        falls = -math.fsum(step for step in steps if step < 0)
        level = abs(math.fsum(recent)) / len(recent)
        result = {
            "loss_swing": 2.0 * min(rises, falls) / max(len(steps) * level, _NO_LOSS),
            "loss_rise": (recent[-1] + recent[-2])
            / 2.0
            / max(min(course[0], self._first), _NO_LOSS),
        }
        if self.blocks >= 2 * FEW:
            quarter = len(course) // 4
            before = math.fsum(course[-2 * quarter : -quarter])
            lately = math.fsum(course[-quarter:])
            result["loss_fall"] = 1.0 - lately / max(before, _NO_LOSS)
        return result

    def state(self) -> list[float]:
        """All of it, as numbers; equally many each time, so that the ranks' can be averaged."""
        return [
            float(self.steps),
            float(self.warming_up),
            self._lr,
            self._first,
            float(self._block.count),
            self._block.total,
            float(self._part.count),
            self._part.total,
            float(self._blocks_a_part),
            float(self._steps_a_block),
            float(len(self._recent)),
            float(len(self._course)),
            *self._recent,
            *[0.0] * (RECENT - len(self._recent)),
            *self._course,
            *[0.0] * (COURSE - len(self._course)),
        ]

    def load_state(self, state: Sequence[float]) -> None:
        """Go on as the history whose state it is; one of another length, or none, is left out."""
        if len(state) != len(self.state()):
            return
        steps, warming_up, lr, self._first, count, total, parts, of_parts, *rest = state[:12]
        self.steps, self.warming_up, self._lr = round(steps), round(warming_up) == 1, lr
        self._block, self._part = _Mean(round(count), total), _Mean(round(parts), of_parts)
        self._blocks_a_part, self._steps_a_block, recent, course = map(round, rest)
        self._recent = list(state[12 : 12 + recent])
        self._course = list(state[12 + RECENT : 12 + RECENT + course])


@dataclass(slots=True)
class _Mean:
    """A mean in the making."""

    count: int = 0
    total: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value

    def take(self) -> float:
        mean = self.total / self.count
        self.count, self.total = 0, 0.0
        return mean
