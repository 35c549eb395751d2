"""What a study optimizes, why a trial ends, and what a trial reports after each validation.

The objective consists of validation metrics that do not depend on the loss weights: these are
searched, so a loss would only compare the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from colorcore.options import nearest
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

Outcome = Literal["finished", "stopped", "pruned", "failed"]
"""How a trial ended: it trained all epochs; ASHA stopped it; a sign of collapse pruned it; or an
error or a diverged loss ended it.
"""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trial ends, and why."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What rank 0 of a trial reports after a validation.

    number   the trial's number
    attempt  counts from 1; each retry after lost processes is a new attempt
    signs    names of the signs that the validation shows
    seconds  training and validation time since the previous report
    """

    number: int
    attempt: int
    epoch: int
    scores: dict[str, float]
    signs: tuple[str, ...]
    is_last: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Objective:
    """The metrics to optimize; the first one selects each trial's best checkpoint."""

    metrics: tuple[str, ...] = (DEFAULT_METRIC,)

    @property
    def is_single(self) -> bool:
        """Whether there is one metric, so that trials can be ranked."""
        return len(self.metrics) == 1

    @property
    def directions(self) -> list[Literal["maximize", "minimize"]]:
        """``maximize`` or ``minimize`` for each metric."""
        higher = _higher_is_better()
        return ["maximize" if higher[name] else "minimize" for name in self.metrics]

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


def objective_of(metrics: Sequence[str]) -> Objective:
    """The objective for the names of one or two metrics; without any, the default.

    Raises:
        WrongCallError: an unknown metric, the same one twice, or more than two.
    """
    names, known = tuple(metrics) or (DEFAULT_METRIC,), _higher_is_better()
    for name in names:
        if name not in known:
            raise WrongCallError(f"unknown metric {name!r}{nearest(name, known)}")
    if len(names) > MOST_METRICS or len(set(names)) < len(names):
        raise WrongCallError(f"expected one metric, or two different ones, got {', '.join(names)}")
    return Objective(names)


def _higher_is_better() -> dict[str, bool]:
    # Imported late: the mailbox's process unpickles this module's classes and must start at once,
    # and the metrics import torch.
    from colorcore.scores.metrics import HIGHER_IS_BETTER

    return HIGHER_IS_BETTER


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
