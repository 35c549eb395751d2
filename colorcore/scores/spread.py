"""Scores of several trainings that differ only in their seed: mean, spread, and what is level.

Two trainings of one recipe differ by chance, in initial weights, order and augmentation. A
difference between two recipes counts only if it is larger than that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = "level"
UNKNOWN = "one seed: no spread known"


@dataclass(frozen=True, slots=True)
class Spread:
    """Scores over seeds: their mean, and their sample standard deviation (n − 1), None for one."""

    mean: float
    deviation: float | None

    def show(self, digits: int) -> str:
        """Such as "22.50 ± 0.04", and "22.50" for one seed."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{digits}f}"


def spread_of(scores: Sequence[float]) -> Spread:
    """Mean and spread of the scores of one training per seed.

    Raises:
        ValueError: there are none, or one is not finite.
    """
    if not scores or not all(map(math.isfinite, scores)):
        raise ValueError(f"expected finite scores of at least one seed, got {list(scores)}")
    deviation = statistics.stdev(scores) if len(scores) > 1 else None
    return Spread(statistics.fmean(scores), deviation)


def compare(one: Sequence[float], other: Sequence[float], *, higher_is_better: bool) -> str:
    """Whether the first scores are ``better`` or ``worse`` than the other ones, or ``level``.

    They are level if their means differ by no more than the larger of the two standard deviations
    over seeds. That asks more of a difference than its standard error would, which three seeds
    estimate too poorly. A side with one seed has no spread of its own, so the other's counts; if
    both have one seed, the answer is :data:`UNKNOWN`.

    Raises:
        ValueError: a side has no scores, or one that is not finite.
    """
    mine, theirs = spread_of(one), spread_of(other)
    known = [each.deviation for each in (mine, theirs) if each.deviation is not None]
    if not known:
        return UNKNOWN
    difference = mine.mean - theirs.mean
    if abs(difference) <= max(known):
        return LEVEL
    return "better" if (difference > 0) == higher_is_better else "worse"
