"""Timing two implementations in turn, so that their ratio holds when the machine's speed drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def cpu_ms(work: Callable[[], object]) -> float:
    """CPU milliseconds (user and system, all threads) of one call."""
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1e3


def compare(
    name: str,
    ours: Callable[[], object],
    other: Callable[[], object],
    *,
    per: int,
    unit: str,
    rounds: int = 5,
    before: Callable[[], object] = lambda: None,
) -> float:
    """Run both once to warm up, then in turn; print medians and the median ratio, return it.

    per     what a call's time is divided by: the photos, samples or pixels it handles
    before  run untimed before each call, to clear away the last one's files
    """

    def timed(work: Callable[[], object]) -> float:
        before()
        return cpu_ms(work) / per

    timed(ours), timed(other)
    pairs = [(timed(ours), timed(other)) for _ in range(rounds)]
    ratios = sorted(theirs / mine for mine, theirs in pairs)
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{name}: {mine:.4g} {unit}, the other {theirs:.4g}; "
        f"{statistics.median(ratios):.2f} times as fast "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {rounds} pairs)",
        flush=True,
    )
    return statistics.median(ratios)
