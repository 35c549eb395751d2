"""One process of a trial: it trains its rank of one trial after another.

Each training is Ray Train's local mode, which works in processes that already exist, so torch is
imported once per process and not once per trial. The ranks rendezvous anew for each trial.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colorcore.training.events import Observer
from pipelines.cluster import silence_ray
from pipelines.training.job import Job, describe_error, is_worth_a_retry, train_rank
from tune.trials.stepwise import StepwiseTraining, TrialResult

if TYPE_CHECKING:
    from pipelines.training.rendezvous import Meeting


class LostError(RuntimeError):
    """A rank's process, or its connection to the others, was lost: worth a retry."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the ranks of a trial train.

    workers   number of ranks
    use_gpu   whether each rank has a GPU
    decoding  train no further, only choose a decoding for the best checkpoint: trials are compared
              without one, so only the best trial pays for it
    """

    job: Job
    workers: int = 1
    use_gpu: bool = False
    decoding: bool = False


class Rank:
    """A rank's process: the trial's own actor for rank 0, an actor each for the others."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._training: StepwiseTraining | None = None

    def meet(self) -> Meeting:
        """Open the rendezvous of the next trial's ranks; called on rank 0."""
        from pipelines.training.rendezvous import open_meeting

        return open_meeting()

    def begin(self, task: Task, meeting: Meeting | None) -> None:
        """Leave the previous trial, and be ready to train the next one."""
        self.leave()
        silence_ray()
        if not task.use_gpu:  # Ray Train's local mode takes any GPU that it sees
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

        def train(observer: Observer) -> TrialResult:
            with self._joined(meeting, task.workers):
                return _train_in_local_mode(task, observer)

        self._training = StepwiseTraining(train)

    def resume(self) -> None:
        """Train on, to the next validation or the end."""
        self._begun().resume()

    def result(self, timeout: float | None = None) -> TrialResult:
        """What the training reports there.

        Raises:
            LostError: another rank was lost.
            TimeoutError: it has not got there within ``timeout`` seconds.
        """
        return self._begun().result(timeout)

    def leave(self) -> None:
        """Leave the training, if there is one; returns once its log is complete."""
        if self._training is not None:
            self._training.leave()
            self._training = None

    def _begun(self) -> StepwiseTraining:
        if self._training is None:
            raise RuntimeError("expected a training that has begun, found none")
        return self._training

    @contextmanager
    def _joined(self, meeting: Meeting | None, world: int) -> Iterator[None]:
        """The environment through which Ray Train's local mode joins the other ranks."""
        if meeting is None:
            yield
            return
        from torch import distributed

        from pipelines.training.rendezvous import meeting_variables

        # Each rank's process sees no GPU but its own.
        variables = {
            **meeting_variables(meeting, self._rank, world),
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


def _train_in_local_mode(task: Task, observer: Observer) -> TrialResult:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    train: Any = _train  # Ray Train types its function as returning None
    trainer: Any = TorchTrainer(
        train,
        train_loop_config={"task": task, "observer": observer},
        scaling_config=ScalingConfig(num_workers=0, use_gpu=task.use_gpu),
        run_config=RunConfig(name="trial"),
    )
    result: TrialResult = trainer.fit().return_value
    return result


def _train(config: dict[str, Any]) -> TrialResult:
    """One rank of a trial, inside Ray Train."""
    task: Task = config["task"]
    try:
        train_rank(task.job, [] if task.decoding else [config["observer"]])
    except Exception as error:
        if is_worth_a_retry(error):
            raise LostError(describe_error(error)) from error
        return TrialResult(failure=describe_error(error), done=True)
    return TrialResult(done=True)
