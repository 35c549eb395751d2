"""The result of a trial from the results of its ranks, with futures of real Ray tasks."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tune.objective import Ending
from tune.slots import result_of

BEHIND = Ending("stopped", "behind")


def rank(outcome: Any) -> Any:
    """A rank's task: returns or raises its outcome, or hangs."""
    if outcome == "hangs":
        time.sleep(60)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


@pytest.fixture
def start(local_ray: None, monkeypatch: pytest.MonkeyPatch):
    """Starts one rank per outcome; returns their futures."""
    import ray

    monkeypatch.setattr("tune.slots.SETTLE_S", 1.0)
    task = ray.remote(num_cpus=0)(rank)
    started = []

    def call(*outcomes: Any) -> list[Any]:
        futures = [task.remote(outcome) for outcome in outcomes]
        started.extend(futures)
        return futures

    yield call
    for future in started:
        ray.cancel(future, force=True)


def wait(*futures: Any) -> None:
    import ray

    ray.wait(list(futures), num_returns=len(futures), timeout=60)


def test_a_trial_ends_when_all_of_its_ranks_have_ended(start) -> None:
    first, second = start((BEHIND, None), "hangs")
    wait(first)
    assert result_of([first, second], first) is None
    first, second = start((BEHIND, None), (BEHIND, None))
    wait(first, second)
    result = result_of([first, second], second)
    assert (result.ending, result.failure, result.lost) == (BEHIND, None, None)
    assert result.is_usable


def test_the_failing_ranks_reason_counts_not_the_broken_connections_of_the_others(start) -> None:
    first, second = start(RuntimeError("Connection closed"), (None, "no such file"))
    wait(first, second)
    result = result_of([first, second], first)
    assert (result.failure, result.lost, result.is_usable) == ("no such file", None, False)


def test_ranks_that_all_fail_alike_take_the_next_trial(start) -> None:
    first, second = start((None, "the loss is nan"), (None, "the loss is nan"))
    wait(first, second)
    result = result_of([first, second], first)
    assert (result.failure, result.is_usable) == ("the loss is nan", True)


@pytest.mark.parametrize("other", ["hangs", (None, None), RuntimeError("Connection reset")])
def test_a_lost_rank_loses_the_trial_and_the_slot(start, other: Any) -> None:
    first, second = start(other, RuntimeError("Connection closed"))
    wait(second)
    result = result_of([first, second], second)
    assert (result.failure, result.lost, result.is_usable) == (
        None,
        "RuntimeError: Connection closed",
        False,
    )


def test_a_failed_rank_ends_the_trial_while_another_hangs(start) -> None:
    first, second = start("hangs", (None, "no such file"))
    wait(second)
    result = result_of([first, second], second)
    assert (result.failure, result.is_usable) == ("no such file", False)
