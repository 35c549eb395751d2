"""A training in a thread that pauses after each validation until it may continue."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TypedDict

from colorcore.scores.signs import without_excused
from colorcore.training.events import Observer, ValidationEvent


class TrialResult(TypedDict, total=False):
    """What a trial reports to Ray Tune after a validation, and at its end.

    training_iteration  the epoch, by Ray Tune's name
    signs               names of the signs that the validation shows
    seconds             training and validation time since the previous report
    done                whether nothing follows
    failure             an error that a retry would repeat
    """

    epoch: int
    training_iteration: int
    scores: dict[str, float]
    signs: list[str]
    seconds: float
    done: bool
    failure: str


class StepwiseTraining(Observer):
    """Runs a training from one validation to the next; an observer of it.

    Args:
        train: called in the thread, with this observer. Returns the last result; whatever it
            raises, :meth:`result` raises.
    """

    waits_for_files = True  # a trial that is killed while it pauses continues from there

    def __init__(self, train: Callable[[Observer], TrialResult]) -> None:
        self._train = train
        self._results: queue.Queue[TrialResult | BaseException] = queue.Queue()
        self._may_continue = threading.Semaphore(0)
        self._leaving = False
        self._last: TrialResult | None = None
        self._since = time.perf_counter()
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Continue to the next validation or the end, whose result is :meth:`result`."""
        self._may_continue.release()

    def result(self, timeout: float | None = None) -> TrialResult:
        """What the training reports where it pauses or ends.

        Raises:
            TimeoutError: it has not got there within ``timeout`` seconds.
        """
        try:
            result = self._results.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(result, BaseException):
            raise result
        return result

    def leave(self) -> None:
        """Leave the training where it waits; returns once its thread has ended."""
        self._leaving = True
        self._may_continue.release()
        self._thread.join()

    # -- in the thread ----------------------------------------------------------------------------

    def on_start(self, total_steps: int, first_step: int) -> None:  # noqa: D102
        self._since = time.perf_counter()

    def on_saved(self, event: ValidationEvent) -> None:  # noqa: D102
        result = TrialResult(
            epoch=event.epoch,
            training_iteration=event.epoch,
            scores=event.scores,
            signs=[sign.name for sign in without_excused(event.signs, event.statistics)],
            seconds=time.perf_counter() - self._since,
            done=event.is_last,
        )
        if result["done"]:
            # Leave before a decoding is chosen, which only the best trial needs, and before the
            # report, so that the run's log is complete when the driver ends the run.
            self._last = result
            raise _LeftError
        self._results.put(result)
        self._wait()
        self._since = time.perf_counter()

    def _run(self) -> None:
        try:
            self._wait()
            self._results.put(self._train(self))
        except _LeftError:
            if self._last is not None:
                self._results.put(self._last)
        except BaseException as error:
            self._results.put(error)

    def _wait(self) -> None:
        self._may_continue.acquire()
        if self._leaving:
            raise _LeftError


class _LeftError(BaseException):
    """Raised in the thread to leave a training.

    Not an Exception: code on the way that handles those must not take this for a failure.
    """
