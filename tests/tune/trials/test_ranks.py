"""What a trial reports, from the reports of its ranks: the first in process, others real actors."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

from tune.trials.rank import LostError
from tune.trials.ranks import Ranks

VALIDATION = {"epoch": 1, "scores": {"psnr": 20.0}, "done": False}
FAILURE = {"failure": "no such file", "done": True}
CLOSED = LostError("RuntimeError: Connection closed by peer")


class FakeRank:
    """Reports what it is told: an exception is raised, "hangs" never reports, "dies" exits."""

    def __init__(self, report: Any) -> None:
        self._report = report
        self._hangs = threading.Event()

    def meet(self) -> None:
        """No rendezvous: nothing trains."""

    def begin(self, task: Any, meeting: Any) -> None:
        self._report = task or self._report

    def resume(self) -> None:
        """It reports at once."""

    def result(self, timeout: float | None = None) -> Any:
        if self._report == "hangs":
            self._hangs.wait(timeout)
            raise TimeoutError
        if self._report == "dies":
            os._exit(1)
        if isinstance(self._report, BaseException):
            raise self._report
        return self._report

    def advance(self) -> Any:
        return self.result()

    def leave(self) -> None:
        """It holds nothing."""


@pytest.fixture
def ranks(local_ray: None, monkeypatch: pytest.MonkeyPatch):
    """Makes the ranks of a trial from the reports of each."""
    import ray

    monkeypatch.setattr("tune.trials.ranks.SETTLE_S", 1.0)
    actor: Any = ray.remote(num_cpus=0)(FakeRank)
    made: list[Ranks] = []

    def call(first: Any, *others: Any) -> Ranks:
        def start() -> list[Any]:
            actors = [actor.remote(report) for report in others]
            ray.get([each.leave.remote() for each in actors])  # they are up
            return actors

        found = Ranks(FakeRank(first), start(), start)  # type: ignore[arg-type]
        made.append(found)
        return found

    yield call
    for each in made:
        each.kill_others()


def test_the_first_ranks_report_counts_once_all_have_reported(ranks) -> None:
    assert ranks(VALIDATION).advance() == VALIDATION
    assert ranks(VALIDATION, {"epoch": 1}, {"epoch": 1}).advance() == VALIDATION


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (CLOSED, FAILURE),
        (FAILURE, CLOSED),
        (FAILURE, FAILURE),
        (VALIDATION, FAILURE),
        ("hangs", FAILURE),
        (FAILURE, "hangs"),
        (FAILURE, "dies"),
    ],
)
def test_the_failing_ranks_reason_counts_not_the_broken_connections_of_the_others(
    ranks, first: Any, other: Any
) -> None:
    assert ranks(first, other).advance() == FAILURE


@pytest.mark.parametrize(
    ("first", "other"),
    [(CLOSED, VALIDATION), (CLOSED, "hangs"), ("hangs", CLOSED), (VALIDATION, CLOSED)],
)
def test_a_lost_connection_loses_the_trial(ranks, first: Any, other: Any) -> None:
    with pytest.raises(LostError, match="RuntimeError: Connection closed by peer"):
        ranks(first, other).advance()


def test_a_dead_rank_loses_the_trial_and_is_replaced_for_the_next_one(ranks) -> None:
    found = ranks(VALIDATION, "dies")
    with pytest.raises(LostError, match="ActorDiedError"):
        found.advance()
    found.leave()  # nothing to wait for
    found.begin(VALIDATION)
    assert found.advance() == VALIDATION


def test_a_process_that_hangs_takes_no_other_trial(ranks) -> None:
    found = ranks("hangs", FAILURE)
    since = time.monotonic()
    assert found.advance() == FAILURE
    assert time.monotonic() - since < 30
    found.leave()
    with pytest.raises(LostError, match="still hangs in the previous trial"):
        found.begin(VALIDATION)
