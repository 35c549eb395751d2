"""A training that pauses after each validation, without a training."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from colorcore.training.events import Observer
from tune.trials.stepwise import StepwiseTraining, TrialResult

EPOCHS = 3


class Course:
    """Validates EPOCHS times, and notes how far it came and how it was left."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.epoch, self.left = 0, False
        self._fails_after = fails_after

    def __call__(self, observer: Observer) -> TrialResult:
        try:
            observer.on_start(EPOCHS, 0)
            for epoch in range(1, EPOCHS + 1):
                self.epoch = epoch
                event: Any = SimpleNamespace(
                    epoch=epoch,
                    scores={"psnr": 20.0 + epoch},
                    signs=[SimpleNamespace(name="grey")],
                    statistics={},
                    is_last=epoch == EPOCHS,
                )
                observer.on_saved(event)
                if epoch == self._fails_after:
                    raise OSError("the disk is full")
        except Exception:  # as careless code may do
            if self._fails_after is not None:
                raise
            raise AssertionError("leaving a training must not look like an error") from None
        finally:
            self.left = True
        return TrialResult(done=True)


def advance(training: StepwiseTraining) -> TrialResult:
    training.resume()
    return training.result(timeout=10)


def test_it_stops_exactly_after_each_validation_until_it_may_continue() -> None:
    course = Course()
    training = StepwiseTraining(course)
    with pytest.raises(TimeoutError):
        training.result(timeout=0.1)
    assert course.epoch == 0  # it does not start by itself
    for epoch in (1, 2):
        result = advance(training)
        assert (result["epoch"], result["training_iteration"]) == (epoch, epoch)
        assert result["scores"] == {"psnr": 20.0 + epoch}
        assert result["signs"] == ["grey"]
        assert not result["done"]
        with pytest.raises(TimeoutError):
            training.result(timeout=0.1)
        assert course.epoch == epoch
    assert not course.left


def test_the_last_validation_is_reported_once_the_training_is_left() -> None:
    course = Course()
    training = StepwiseTraining(course)
    results = [advance(training) for _ in range(EPOCHS)]
    assert [result["done"] for result in results] == [False, False, True]
    assert course.left
    training.leave()


@pytest.mark.parametrize("validations", [0, 1])
def test_a_training_can_be_left_where_it_waits(validations: int) -> None:
    course = Course()
    training = StepwiseTraining(course)
    for _ in range(validations):
        advance(training)
    before = threading.active_count()
    training.leave()
    assert threading.active_count() == before - 1
    assert course.epoch == validations
    assert course.left == (validations > 0)


def test_what_the_training_raises_is_raised_by_its_result() -> None:
    training = StepwiseTraining(Course(fails_after=1))
    assert advance(training)["epoch"] == 1
    with pytest.raises(OSError, match="the disk is full"):
        advance(training)
    training.leave()


def test_time_spent_waiting_is_not_time_spent_training() -> None:
    training = StepwiseTraining(Course())
    advance(training)
    threading.Event().wait(0.5)
    assert advance(training)["seconds"] < 0.4
    training.leave()
