"""One worker of a training, in the process that Ray Train starts for it.

It trains its rank, reports to Ray Train, and, as the first worker, to the driver's board.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from colorcore.training.events import (
    Observer,
    StepEvent,
    TrainingStoppedError,
    ValidationEvent,
)
from pipelines.training.job import Job, describe_error, is_worth_a_retry, train_rank

POST_S = 0.2
"""Seconds between two posts of the first worker's progress."""


class _BoardObserver(Observer):
    """Posts the first worker's progress on the board, and learns there when to stop.

    A thread of its own does so, because a call of an actor may take longer than a step.
    """

    def __init__(self, board: Any, epochs: int, workers: int) -> None:
        self._board, self._epochs = board, epochs
        self._progress: dict[str, Any] = {"workers": workers, "stage": "building the network"}
        self._smooth: float | None = None
        self._stop, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._post, name="board", daemon=True)
        self._thread.start()

    def on_start(self, total_steps: int, first_step: int) -> None:
        epoch = first_step * self._epochs // total_steps
        self._set(total_steps=total_steps, step=first_step, epoch=epoch, stage="")

    def on_notice(self, text: str) -> None:
        self._set(notices=(*self._progress.get("notices", ()), text))

    def on_step(self, event: StepEvent) -> None:
        speed = event.photos_per_s
        self._smooth = speed if self._smooth is None else 0.95 * self._smooth + 0.05 * speed
        self._set(step=event.step, epoch=event.epoch, loss=event.loss, photos_per_s=self._smooth)

    def on_validation(self, event: ValidationEvent) -> None:
        signs = tuple(asdict(sign) for sign in event.signs)
        self._set(scores=event.scores, signs=signs, scored_step=event.step)

    def should_stop(self) -> bool:
        """Whether the driver has asked the training to stop."""
        return self._stop.is_set()

    def close(self) -> None:
        """Post the last progress."""
        self._closing.set()
        self._thread.join()

    def _set(self, **changes: Any) -> None:
        # A new dict each time: the thread may be sending the old one.
        self._progress = {**self._progress, **changes}

    def _post(self) -> None:
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):  # the driver is gone, and this worker will go with it
            while True:
                last = self._closing.wait(POST_S)
                if ray.get(self._board.post.remote(self._progress)):
                    self._stop.set()
                if last:
                    return


class _ReportObserver(Observer):
    """Reports every validation to Ray Train, which wants that from every rank at the same step."""

    def on_validation(self, event: ValidationEvent) -> None:
        from ray import train as ray_train

        ray_train.report({"step": event.step, "epoch": event.epoch, **event.scores})


def train_worker(config: dict[str, Any]) -> None:
    """Train one rank, and note on the board when a retry makes no sense."""
    import ray
    from ray import train as ray_train

    board: Any = config["board"]
    if ray.get(board.reason.remote()) is not None:
        return  # Ray has restarted the workers, but not for an error that a retry would mend
    world = ray_train.get_context().get_world_size()
    first = ray_train.get_context().get_world_rank() == 0
    job: Job = config["job"]
    posts = _BoardObserver(board, job.recipe.train.epochs, world) if first else None
    try:
        if posts is None:
            train_rank(job, [_ReportObserver()])
        else:
            train_rank(job, [_ReportObserver(), posts], stop=posts.should_stop)
    except TrainingStoppedError as stop:
        if first:
            where = f"stopped after step {stop.step} of {stop.total_steps}"
            ray.get(board.stopped.remote(where))
    except Exception as error:
        retry = is_worth_a_retry(error)
        if not retry:
            ray.get(board.give_up.remote(describe_error(error)))
        if retry or world > 1:
            raise  # the other ranks wait in a collective: only a failure frees them
    finally:
        if posts is not None:
            posts.close()
