"""One worker of a training, as Ray Train starts it."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from colorcore.checkpoints.checkpoint import (
    CheckpointError,
)
from colorcore.dataset.layout import DatasetError
from colorcore.losses.term import LossError
from colorcore.storage.store import StorageError
from colorcore.training.events import (
    Observer,
    StepEvent,
    TrainingDivergedError,
    TrainingStoppedError,
    ValidationEvent,
)
from pipelines.errors import JobError
from pipelines.training.job import Job, train_rank

PIN_S = 0.2
OWN_ERRORS = (
    TrainingDivergedError,
    CheckpointError,
    DatasetError,
    LossError,
    StorageError,
    JobError,
)
"""Errors whose message is made for the user."""


# -- in a worker -------------------------------------------------------------------------------


class _BoardObserver(Observer):
    """Pins the first worker's progress up from a thread of its own, and hears what is wanted.

    No step waits for the board.
    """

    def __init__(self, board: Any, epochs: int, workers: int) -> None:
        self._board, self._epochs = board, epochs
        self._progress: dict[str, Any] = {"workers": workers}
        self._smooth: float | None = None
        self._stop, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._pin, name="board", daemon=True)
        self._thread.start()

    def on_start(self, total_steps: int, first_step: int) -> None:
        epoch = first_step * self._epochs // total_steps
        self._set(total_steps=total_steps, first_step=first_step, step=first_step, epoch=epoch)

    def on_step(self, event: StepEvent) -> None:
        speed = event.photos_per_s
        self._smooth = speed if self._smooth is None else 0.95 * self._smooth + 0.05 * speed
        self._set(step=event.step, epoch=event.epoch, loss=event.loss, photos_per_s=self._smooth)

    def on_validation(self, event: ValidationEvent) -> None:
        signs = tuple(asdict(sign) for sign in event.signs)
        self._set(scores=event.scores, signs=signs, scored_step=event.step)

    def is_told_to_stop(self) -> bool:
        """Whether the driver wants the training to stop."""
        return self._stop.is_set()

    def close(self) -> None:
        """Pin the last progress up."""
        self._closing.set()
        self._thread.join()

    def _set(self, **changes: Any) -> None:
        self._progress = {**self._progress, **changes}

    def _pin(self) -> None:
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):  # the driver is gone, and so will be this worker
            while True:
                last = self._closing.wait(PIN_S)
                if ray.get(self._board.pin.remote(self._progress)):
                    self._stop.set()
                if last:
                    return


class _ReportObserver(Observer):
    """Reports every validation to Ray Train, on every rank as it demands."""

    def on_saved(self, event: ValidationEvent) -> None:
        from ray import train as ray_train

        ray_train.report({"step": event.step, "epoch": event.epoch, **event.scores})


def train_worker(config: dict[str, Any]) -> None:
    """One rank, as Ray Train starts it: train, and say when trying again makes no sense."""
    import ray
    from ray import train as ray_train

    board: Any = config["board"]
    if ray.get(board.reason.remote()) is not None:
        return
    world = ray_train.get_context().get_world_size()
    alone, first = world == 1, ray_train.get_context().get_world_rank() == 0
    job: Job = config["job"]
    pins = _BoardObserver(board, job.recipe.train.epochs, world) if first else None
    try:
        if pins is None:
            train_rank(job, [_ReportObserver()])
        else:
            train_rank(job, [_ReportObserver(), pins], stop=pins.is_told_to_stop)
    except TrainingStoppedError as stop:
        if first:
            ray.get(board.stopped.remote(str(stop)))
    except Exception as error:
        # A killed worker breaks the others' collectives (RuntimeError): that is worth another
        # try. Whatever else the code raises, it would raise again.
        if alone or not isinstance(error, RuntimeError) or isinstance(error, TrainingDivergedError):
            own = isinstance(error, OWN_ERRORS)
            kind = "" if own else f"{type(error).__name__}: "
            ray.get(board.give_up.remote(f"{kind}{error}"))
        if not alone:
            raise  # the other ranks wait in a collective: only a failure frees them
    finally:
        if pins is not None:
            pins.close()
