"""All ranks of a trial: the first one in this process, the others in actors of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipelines.training.job import describe_error
from tune.trials.rank import LostError, Rank, Task
from tune.trials.stepwise import TrialResult

SETTLE_S = 5.0
"""Seconds that ranks have to answer once one of them has failed."""
POLL_S = 0.2
"""Seconds between two looks at the other ranks while the first one trains."""


class Ranks:
    """Trains one trial after another in the same processes.

    Args:
        first: rank 0.
        others: the actors of ranks 1, 2, …
        start_others: starts them again when they are of no use.
    """

    def __init__(
        self, first: Rank, others: list[Any], start_others: Callable[[], list[Any]]
    ) -> None:
        self._first, self._others, self._start_others = first, others, start_others
        self._first_hangs = self._others_hang = False

    def begin(self, task: Task) -> None:
        """Leave the previous trial, and be ready to train the next one.

        Raises:
            LostError: the first rank hangs in the previous trial, so this process is of no use.
            RayError: another rank was lost.
        """
        if self._first_hangs:
            raise LostError("the process still hangs in the previous trial")
        if self._others_hang:
            self.kill_others()
            self._others, self._others_hang = self._start_others(), False
        meeting = self._first.meet() if self._others else None
        futures = [rank.begin.remote(task, meeting) for rank in self._others]
        self._first.begin(task, meeting)
        ray.get(futures)

    def advance(self) -> TrialResult:
        """Train to the next validation; returns the first rank's report.

        A rank that fails breaks the connections of the others, so its report is returned, and not
        theirs. Ranks that hang are given up.

        Raises:
            LostError: a rank was lost, and none has failed by itself.
        """
        waiting = [rank.advance.remote() for rank in self._others]
        self._first.resume()
        own: TrialResult | BaseException | None = None
        others: list[TrialResult | BaseException] = []
        until = math.inf
        while (own is None or waiting) and time.monotonic() < until:
            if own is None:
                own = _result_of(self._first, POLL_S if self._others else None)
            if waiting:
                ready, waiting = ray.wait(
                    waiting, num_returns=len(waiting), timeout=0 if own is None else POLL_S
                )
                others += [_result_of_actor(future) for future in ready]
            if until == math.inf and any(map(_is_failure, (own, *others))):
                until = time.monotonic() + SETTLE_S
        self._first_hangs = own is None
        self._others_hang = bool(waiting) or any(isinstance(e, RayActorError) for e in others)
        reports = [each for each in (own, *others) if each is not None]
        for each in reports:
            if isinstance(each, dict) and "failure" in each:
                return each
        for each in reports:
            if isinstance(each, BaseException):
                raise each if isinstance(each, LostError) else LostError(describe_error(each))
        return reports[0]  # type: ignore[return-value]  # a dict: no report is an exception

    def leave(self) -> None:
        """Leave the training in all ranks; returns once the run's log is complete."""
        if self._first_hangs or self._others_hang:
            return
        futures = [rank.leave.remote() for rank in self._others]
        self._first.leave()
        ray.get(futures)

    def kill_others(self) -> None:
        """End the processes of the other ranks."""
        for rank in self._others:
            ray.kill(rank)


def _result_of(first: Rank, timeout: float | None) -> TrialResult | BaseException | None:
    """The first rank's report, or how it was lost; None if it still trains."""
    try:
        return first.result(timeout)
    except TimeoutError:
        return None
    except LostError as error:
        return error


def _result_of_actor(future: Any) -> TrialResult | BaseException:
    """The report of a rank whose future is ready, or how it was lost."""
    try:
        result: TrialResult = ray.get(future)
    except RayTaskError as error:
        cause: BaseException = error.cause  # what the rank itself raised
        return cause
    except RayError as error:
        return error
    return result


def _is_failure(report: TrialResult | BaseException | None) -> bool:
    return isinstance(report, BaseException) or (report is not None and "failure" in report)
