"""Measuring two implementations in turn, so that their ratio holds when the machine drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Side = Callable[[], float]
"""Does its work once and says what it cost: the less, the better."""


def cpu_ms(work: Callable[[], object], *, per: int = 1) -> Side:
    """CPU milliseconds (user and system, all threads of this process) of a call, over ``per``."""

    def side() -> float:
        started = time.process_time()
        work()
        return (time.process_time() - started) * 1e3 / per

    return side


def wall_ms(work: Callable[[], object], *, per: int = 1) -> Side:
    """Milliseconds that pass during a call, over ``per``."""

    def side() -> float:
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) * 1e3 / per

    return side


def head() -> None:
    """Print the table's head."""
    print(f"{'what':<54} {'ours':>9} {'other':>9} {'ratio':>7}  spread", flush=True)


def row(name: str, ours: Sequence[float], other: Sequence[float]) -> None:
    """Print one line: medians, and the median and the ends of the pairs' ratios other / ours."""
    ratios = sorted(theirs / mine for mine, theirs in zip(ours, other, strict=True))
    middle = statistics.median
    spread = f"{ratios[0]:.3g} to {ratios[-1]:.3g} in {len(ratios)}"
    print(
        f"{name:<54} {middle(ours):>9.4g} {middle(other):>9.4g} {middle(ratios):>7.3g}  {spread}",
        flush=True,
    )


def measure(sides: Mapping[str, Side], *, rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """Measure all sides in turn, ``rounds`` times, after one time to warm up."""
    if warm:
        for side in sides.values():
            side()
    pairs = [{who: side() for who, side in sides.items()} for _ in range(rounds)]
    return {who: [pair[who] for pair in pairs] for who in sides}


def compare(name: str, ours: Side, others: Mapping[str, Side], *, rounds: int = 5) -> None:
    """Measure ourselves and others in turn; a line for each other."""
    measured = measure({"ours": ours, **others}, rounds=rounds)
    for who in others:
        row(f"{name}: {who}", measured["ours"], measured[who])
