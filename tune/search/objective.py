"""What a study optimizes, and why a trial ends.

The objective consists of validation metrics that do not depend on the loss weights: these are
searched, so a loss would only compare the weights.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from colorcore.options import nearest
from colorcore.scores.metrics import HIGHER_IS_BETTER
from pipelines.errors import WrongCallError

DEFAULT_METRIC = "auc_balanced"
MOST_METRICS = 2
COLLAPSE = ("diverged", "grey", "sepia", "two_tone")
"""Signs (:mod:`colorcore.scores.signs`) of a collapse from which trainings rarely recover.

The other signs (pale or glaring colours, a colour cast, an oscillating loss) are matters of
degree, and trainings do recover from them.
"""
SIGN_PATIENCE = 3
"""Consecutive validations with the same sign of collapse after which a trial is pruned.

Young trainings (:attr:`colorcore.scores.loss_history.LossHistory.young`: the warm-up, and the
first two epochs of 1,000 photos) only show the sign ``diverged``, so counting starts after that.
"""

RELATIONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
Outcome = Literal["finished", "stopped", "pruned", "failed"]
"""How a trial ended: it trained all epochs; the scheduler stopped it; a sign of collapse pruned it;
or an error or a diverged loss ended it.
"""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trial ends, and why."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Requirement:
    """A bound on a metric that the best trial must keep, such as ``cf_gap<20``.

    relation  one of :data:`RELATIONS`
    """

    metric: str
    relation: str
    bound: float

    def is_met(self, scores: Mapping[str, float]) -> bool:
        """Whether the scores keep the bound; a metric without a score does not."""
        score = scores.get(self.metric, math.nan)
        return bool(RELATIONS[self.relation](score, self.bound))

    def violation(self, scores: Mapping[str, float]) -> float:
        """How far the score is on the wrong side, in units of the bound; ≤ 0 if it is met."""
        beyond = scores[self.metric] - self.bound
        scale = abs(self.bound) or 1.0
        return (beyond if self.relation.startswith("<") else -beyond) / scale

    def __str__(self) -> str:
        return f"{self.metric}{self.relation}{self.bound:g}"


@dataclass(frozen=True, slots=True)
class Objective:
    """The metrics to optimize; the first one selects each trial's best checkpoint.

    requirements  what the best trial must keep, too
    """

    metrics: tuple[str, ...] = (DEFAULT_METRIC,)
    requirements: tuple[Requirement, ...] = ()

    @property
    def is_single(self) -> bool:
        """Whether there is one metric, so that trials can be ranked."""
        return len(self.metrics) == 1

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """``maximize`` or ``minimize`` for each metric."""
        return ["maximize" if HIGHER_IS_BETTER[name] else "minimize" for name in self.metrics]

    def values(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """The metrics' scores.

        Raises:
            ValueError: a score is NaN or infinite.
        """
        values = tuple(float(scores[name]) for name in self.metrics)
        for name, value in zip(self.metrics, values, strict=True):
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value} on the validation photos")
        return values

    def missed(self, scores: Mapping[str, float]) -> float:
        """By how much the scores miss the requirements, in units of their bounds; 0: not at all."""
        return sum(
            max(0.0, each.violation(scores))
            for each in self.requirements
            if not each.is_met(scores)
        )


def objective_of(metrics: Sequence[str], requirements: Sequence[str] = ()) -> Objective:
    """The objective for the names of one or two metrics; without any, the default.

    requirements  as on the command line: ``cf_gap<20``

    Raises:
        WrongCallError: an unknown metric, the same one twice, more than two, or a requirement that
            cannot be read.
    """
    names, known = tuple(metrics) or (DEFAULT_METRIC,), HIGHER_IS_BETTER.keys()
    for name in names:
        if name not in known:
            raise WrongCallError(f"unknown metric {name!r}{nearest(name, known)}")
    if len(names) > MOST_METRICS or len(set(names)) < len(names):
        raise WrongCallError(f"expected one metric, or two different ones, got {', '.join(names)}")
    return Objective(names, tuple(_requirement_of(text, known) for text in requirements))


def _requirement_of(text: str, known: Collection[str]) -> Requirement:
    parts = re.fullmatch(r"\s*(\w+)\s*(<=|>=|<|>)\s*(\S+)\s*", text)
    try:
        if parts is None:
            raise ValueError
        metric, relation, bound = parts[1], parts[2], float(parts[3])
        if not math.isfinite(bound):
            raise ValueError
    except ValueError:
        raise WrongCallError(
            f"expected a metric and a bound such as 'cf_gap<20', got {text!r}"
        ) from None
    if metric not in known:
        raise WrongCallError(f"{text!r}: unknown metric {metric!r}{nearest(metric, known)}")
    return Requirement(metric, relation, bound)


def collapsed(signs: Sequence[Sequence[str]]) -> str | None:
    """The sign of collapse that the last :data:`SIGN_PATIENCE` validations all show, if any.

    signs  the names of the signs of each validation so far, in order
    """
    if len(signs) < SIGN_PATIENCE:
        return None
    for name in COLLAPSE:
        if all(name in shown for shown in signs[-SIGN_PATIENCE:]):
            return name
    return None
