"""One rank's process in a slot: it trains one trial after another with Ray Train's local mode."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colorcore.training.events import Observer, ValidationEvent
from pipelines.cluster import silence_ray
from pipelines.training.job import Job, describe_error, is_worth_a_retry, train_rank
from tune.objective import Ending, ValidationReport

if TYPE_CHECKING:
    from pipelines.training.rendezvous import Meeting

CONTINUE = None
"""The driver's answer to a trial that continues."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the ranks of a slot train.

    mailbox   the actor that takes reports and gives answers
    decoding  train no further, only choose a decoding for the best checkpoint
    """

    number: int
    attempt: int
    job: Job
    mailbox: Any
    decoding: bool


class Rank:
    """One process of a slot: an actor."""

    def __init__(self, rank: int, world: int, *, use_gpu: bool) -> None:
        self._rank, self._world, self._use_gpu = rank, world, use_gpu
        if not use_gpu:  # Ray Train's local mode takes any GPU that it sees
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def meet(self) -> Meeting:
        """Open the rendezvous of the next trial's ranks; called on rank 0."""
        from pipelines.training.rendezvous import open_meeting

        return open_meeting()

    def run(self, task: Task, meeting: Meeting | None) -> tuple[Ending | None, str | None]:
        """Train; returns why the trial ended early, and an error that a retry would repeat."""
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        silence_ray()
        with self._joined(meeting):
            train: Any = _train  # Ray Train types its function as returning None
            trainer: Any = TorchTrainer(
                train,
                train_loop_config={"task": task},
                scaling_config=ScalingConfig(num_workers=0, use_gpu=self._use_gpu),
                run_config=RunConfig(name=f"trial-{task.number:04d}-{task.attempt}"),
            )
            result: tuple[Ending | None, str | None] = trainer.fit().return_value
        return result

    @contextmanager
    def _joined(self, meeting: Meeting | None) -> Iterator[None]:
        """The environment through which Ray Train's local mode joins the other ranks."""
        if meeting is None:
            yield
            return
        from torch import distributed

        from pipelines.training.rendezvous import meeting_variables

        # Each rank's process sees no GPU but its own.
        variables = {
            **meeting_variables(meeting, self._rank, self._world),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
        }
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                os.environ.pop(name, None)
            # Ray Train leaves the group open when the training raises; the next trial needs a new
            # one.
            if distributed.is_initialized():
                distributed.destroy_process_group()


class _TrialEndedError(Exception):
    """Raised in every rank to end the training, early or after its last validation."""

    def __init__(self, ending: Ending | None) -> None:
        super().__init__()
        self.ending = ending


class _Reporter(Observer):
    """Reports each validation once its checkpoint is saved, and ends the trial if so answered."""

    def __init__(self, task: Task, *, is_first: bool) -> None:
        self._number, self._attempt = task.number, task.attempt
        self._epochs, self._mailbox = task.job.recipe.train.epochs, task.mailbox
        self._is_first = is_first
        self._since = time.perf_counter()

    def on_start(self, total_steps: int, first_step: int) -> None:
        self._since = time.perf_counter()

    def on_saved(self, event: ValidationEvent) -> None:
        import ray

        if self._is_first:
            report = ValidationReport(
                self._number,
                self._attempt,
                event.epoch,
                event.scores,
                tuple(sign.name for sign in event.signs),
                event.epoch == self._epochs,
                time.perf_counter() - self._since,
            )
            answer = ray.get(self._mailbox.report.remote(report))
        else:
            key = (self._number, self._attempt, event.epoch)
            answer = ray.get(self._mailbox.wait_for.remote(key))
        # The last validation ends the training here too, before it would choose a decoding.
        if answer is not CONTINUE or event.epoch == self._epochs:
            raise _TrialEndedError(answer)
        self._since = time.perf_counter()


def _train(config: dict[str, Any]) -> tuple[Ending | None, str | None]:
    """One rank of a trial, inside Ray Train; returns as ``Rank.run`` does."""
    from ray import train as ray_train

    task: Task = config["task"]
    reporter = _Reporter(task, is_first=ray_train.get_context().get_world_rank() == 0)
    try:
        train_rank(task.job, [] if task.decoding else [reporter])
    except _TrialEndedError as end:
        return end.ending, None
    except Exception as error:
        if is_worth_a_retry(error):
            raise
        return None, describe_error(error)
    return CONTINUE, None
