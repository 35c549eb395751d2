"""A trial of Ray Tune: the class that it runs, in the trial's own process.

That process is rank 0. The other ranks are actors in bundles of the same placement group, so all
are placed at once or not at all, and nothing but ranks takes a CPU: trials never wait for each
other's resources. Ray Tune decides after each validation, before the next epoch starts.

A study's trials leave no checkpoints with Ray Tune: each continues from its own ``last``, after
lost processes and after a killed study alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
from ray import tune as ray_tune
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tune.trials.layout import bundles

if TYPE_CHECKING:
    from pipelines.training.job import Job
    from tune.trials.rank import Task
    from tune.trials.stepwise import TrialResult

TASK = "task"
"""The key of a trial's :class:`tune.trials.rank.Task` in its config, next to the sampled values."""


class StudyTrial(ray_tune.Trainable):
    """Trains ``config["task"]``; a step lasts to the next validation.

    With ``reuse_actors=True`` the processes stay for the next trial.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """One bundle per rank, on as few nodes as possible."""
        task: Task = config[TASK]
        return placement(task.workers, use_gpu=task.use_gpu)

    def setup(self, config: dict[str, Any]) -> None:
        """Start the other ranks, and be ready to train."""
        self._untold: TrialResult | None = None
        # The others first: all processes then import torch at the same time.
        workers, use_gpu = self.size_of(config)
        others = _start_others(workers, use_gpu=use_gpu)
        from tune.trials.rank import Rank
        from tune.trials.ranks import Ranks

        self.ranks = Ranks(Rank(0), others, lambda: _start_others(workers, use_gpu=use_gpu))
        self._begin(self.task_of(config))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Be ready to train another trial in the same processes."""
        self._begin(self.task_of(new_config))
        return True

    def size_of(self, config: dict[str, Any]) -> tuple[int, bool]:
        """The number of ranks, and whether each has a GPU."""
        task: Task = config[TASK]
        return task.workers, task.use_gpu

    def task_of(self, config: dict[str, Any]) -> Task:
        """What a trial with this config trains."""
        task: Task = config[TASK]
        return task

    def step(self) -> dict[str, Any]:
        """Train to the next validation.

        Raises:
            LostError: a rank was lost, so the trial has to continue in other processes.
        """
        if self._untold is not None:
            untold, self._untold = self._untold, None
            return dict(untold)
        return dict(self.ranks.advance())

    def leave(self) -> None:
        """Leave the training; returns once the run's log is complete."""
        self.ranks.leave()

    def cleanup(self) -> None:
        """Called before this process ends, whatever state the ranks are in."""
        self.leave()
        self.ranks.kill_others()

    def _begin(self, task: Task) -> None:
        self._untold = None if task.decoding else untold_result(task.job)
        self.ranks.begin(task)


def placement(workers: int, *, use_gpu: bool) -> ray_tune.PlacementGroupFactory:
    """A trial's placement group: a bundle per rank, on as few nodes as possible."""
    return ray_tune.PlacementGroupFactory(bundles(workers, use_gpu=use_gpu), strategy="PACK")


class OtherRank:
    """The actor of a rank but the first; see :class:`tune.trials.rank.Rank`."""

    def __init__(self, rank: int) -> None:
        from tune.trials.rank import Rank

        self._rank = Rank(rank)

    def begin(self, task: Task, meeting: Any) -> None:
        """Leave the previous trial, and be ready to train the next one."""
        self._rank.begin(task, meeting)

    def advance(self) -> TrialResult:
        """Train to the next validation or the end."""
        self._rank.resume()
        return self._rank.result()

    def leave(self) -> None:
        """Leave the training, if there is one."""
        self._rank.leave()


def _start_others(workers: int, *, use_gpu: bool) -> list[Any]:
    """Actors for all ranks but the first, each in its bundle of the trial's placement group."""
    actor: Any = ray.remote(OtherRank)
    group: Any = get_current_placement_group()
    return [
        actor.options(
            num_cpus=1,
            num_gpus=int(use_gpu),
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=rank
            ),
        ).remote(rank)
        for rank in range(1, workers)
    ]


def untold_result(job: Job) -> TrialResult | None:
    """The validation that ``last`` is of, which a killed driver may not have heard of."""
    from colorcore.checkpoints.checkpoint import has_checkpoint, load_checkpoint
    from tune.trials.stepwise import TrialResult

    place = job.store.below("last")
    if not has_checkpoint(place):
        return None
    last = load_checkpoint(place)
    if last.step or not last.scores:  # saved between two validations
        return None
    return TrialResult(
        epoch=last.epoch,
        training_iteration=last.epoch,
        scores=last.scores,
        signs=[sign["name"] for sign in last.signs],
        seconds=0.0,
        done=last.is_last,
    )
