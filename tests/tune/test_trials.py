"""What a slot makes of what its ranks say, with futures of real tasks."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tune.desk import Verdict
from tune.trials import _Slot

BEHIND = Verdict("stopped", "behind")


def speak(what: Any) -> Any:
    """A rank's task: an answer, an error, or none for a long time."""
    if what == "silent":
        time.sleep(60)
    if isinstance(what, BaseException):
        raise what
    return what


@pytest.fixture
def slot_of(local_ray: None, monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.setattr("tune.trials.SETTLE_S", 1.0)
    task = ray.remote(num_cpus=0)(speak)
    started = []

    def make(*said: Any) -> tuple[_Slot, list[Any]]:
        slot = object.__new__(_Slot)
        slot._futures = [task.remote(each) for each in said]
        started.extend(slot._futures)
        return slot, slot._futures

    yield make
    for future in started:
        ray.cancel(future, force=True)


def settled(futures: list[Any]) -> None:
    import ray

    ray.wait(futures, num_returns=len(futures), timeout=60)


def test_a_trial_has_ended_once_all_of_its_ranks_have(slot_of) -> None:
    slot, (first, second) = slot_of((BEHIND, None), "silent")
    settled([first])
    assert slot.ended(first) is None
    slot, (first, second) = slot_of((BEHIND, None), (BEHIND, None))
    settled([first, second])
    told = slot.ended(second)
    assert (told.verdict, told.failure, told.lost, told.is_usable) == (BEHIND, None, None, True)


def test_the_reason_of_the_rank_that_failed_counts_and_not_those_of_the_others(slot_of) -> None:
    slot, (first, second) = slot_of(RuntimeError("Connection closed"), (None, "no such file"))
    settled([first, second])
    told = slot.ended(first)
    assert (told.failure, told.lost, told.is_usable) == ("no such file", None, False)


def test_ranks_that_all_fail_alike_take_the_next_trial(slot_of) -> None:
    slot, (first, second) = slot_of((None, "the loss is nan"), (None, "the loss is nan"))
    settled([first, second])
    told = slot.ended(first)
    assert (told.failure, told.is_usable) == ("the loss is nan", True)


@pytest.mark.parametrize("other", ["silent", (None, None), RuntimeError("Connection reset")])
def test_a_lost_rank_loses_the_trial_and_the_slot(slot_of, other: Any) -> None:
    slot, (_, second) = slot_of(other, RuntimeError("Connection closed"))
    settled([second])
    told = slot.ended(second)
    assert (told.failure, told.lost, told.is_usable) == (None, "Connection closed", False)


def test_a_rank_that_waits_for_one_that_failed_is_waited_for_in_vain(slot_of) -> None:
    slot, (_, second) = slot_of("silent", (None, "no such file"))
    settled([second])
    told = slot.ended(second)
    assert (told.failure, told.is_usable) == ("no such file", False)
