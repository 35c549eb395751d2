"""What a study goes by: validation metrics that no loss weight changes, and signs of collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from colorcore.options import nearest
from colorcore.scores.metrics import HIGHER_IS_BETTER
from pipelines.errors import WrongCallError

DEFAULT_METRIC = "auc_balanced"
MOST_METRICS = 2
COLLAPSE = ("diverged", "grey", "sepia", "two_tone")
"""Signs (:mod:`colorcore.scores.signs`) that mean: this training's colours are lost.

The others are matters of degree, and ones that trainings recover from: pale and glaring colours,
a cast, a loss that goes up and down.
"""
SIGN_PATIENCE = 3
"""Validations running that show such a sign before a trial is ended for it.

Young trainings (:attr:`colorcore.scores.loss_history.LossHistory.young`: the warm-up, and the
first two epochs of 1,000 photos) show no signs but a diverged loss, so these come after that.
"""


@dataclass(frozen=True, slots=True)
class Objective:
    """The metrics to better, the first of which chooses each trial's best checkpoint."""

    metrics: tuple[str, ...] = (DEFAULT_METRIC,)

    @property
    def is_single(self) -> bool:
        """Whether trials can be put into one order."""
        return len(self.metrics) == 1

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """``maximize`` or ``minimize`` of each metric."""
        return ["maximize" if HIGHER_IS_BETTER[name] else "minimize" for name in self.metrics]

    def values(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """The metrics' scores.

        Raises:
            ValueError: one is no finite number.
        """
        values = tuple(float(scores[name]) for name in self.metrics)
        for name, value in zip(self.metrics, values, strict=True):
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value} on the validation photos")
        return values

    def better(self, one: float, other: float | None) -> bool:
        """Whether a score of the first metric is above another, or the other is none."""
        sign = 1.0 if HIGHER_IS_BETTER[self.metrics[0]] else -1.0
        return other is None or sign * one > sign * other


def objective_of(metrics: Sequence[str]) -> Objective:
    """The objective of one metric's name or of two.

    Raises:
        WrongCallError: an unknown metric, the same one twice, or more than two.
    """
    names = tuple(metrics) or (DEFAULT_METRIC,)
    for name in names:
        if name not in HIGHER_IS_BETTER:
            raise WrongCallError(f"unknown metric {name!r}{nearest(name, HIGHER_IS_BETTER)}")
    if len(names) > MOST_METRICS or len(set(names)) < len(names):
        raise WrongCallError(f"expected one metric, or two different ones, got {', '.join(names)}")
    return Objective(names)


def collapsed(shown: Sequence[Sequence[str]]) -> str | None:
    """The sign of collapse that the last :data:`SIGN_PATIENCE` validations all show, if any.

    shown  the names of the signs of each validation so far, in order
    """
    if len(shown) < SIGN_PATIENCE:
        return None
    for name in COLLAPSE:
        if all(name in signs for signs in shown[-SIGN_PATIENCE:]):
            return name
    return None
