"""Ray Train around the workers: start them, replace lost ones, watch their progress.

All of this runs in the driver. Each worker runs `pipelines.training.worker.train_worker`.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from colorcore.recipes.advice import Advised, advised
from colorcore.recipes.recipe import Recipe
from colorcore.scores.signs import Sign
from pipelines.cluster import say_if_busy, silence_ray
from pipelines.errors import JobError, StoppedError, WrongCallError
from pipelines.ray_internals import lean_trainer
from pipelines.training.board import Board
from pipelines.training.interrupts import Interrupts
from pipelines.training.job import Job, Workers
from pipelines.training.worker import train_worker

WORKER_RESTARTS = 3
"""How often in a row lost workers are replaced before the training must have progressed."""
POLL_S = 0.25
"""Seconds between two reads of the workers' progress."""
MARK = ".training-"
"""Prefix of the file by which workers recognize the driver's ``--out``; see ``Job.mark``."""


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """The progress of a training, for a display.

    ``stage`` is what is done before the first step, while ``total_steps`` is still 0;
    ``scores`` and ``signs`` are of ``scored_step``; ``workers`` counts those that train now, and
    ``notices`` is what they have said so far, such as that a network is being compiled;
    ``stopping`` is True from the request to stop until the end.
    """

    stage: str = ""
    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    photos_per_s: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    signs: tuple[Advised, ...] = ()
    scored_step: int = 0
    workers: int = 0
    notices: tuple[str, ...] = ()
    stopping: bool = False


def with_advice(signs: Iterable[Mapping[str, Any]], recipe: Recipe) -> tuple[Advised, ...]:
    """Signs as checkpoints and the board hold them, each with advice on the recipe."""
    return advised([Sign(**values) for values in signs], recipe)


def run_workers(
    job: Job,
    name: str,
    workers: Workers,
    on_progress: Callable[[TrainProgress], None],
    interrupts: Interrupts,
) -> None:
    """Train on the connected Ray until the training ends or an interrupt stops it.

    Raises:
        WrongCallError: the cluster has fewer CPUs than ``workers``.
        JobError: the training failed.
        StoppedError: it stopped on request and saved ``last``.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # The watcher tells workers that a cloud will take their node; ours do not listen, and Ray
    # replaces lost nodes without it.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray
    from ray.train import ScalingConfig
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    silence_ray()  # again: importing ray.train has set levels of its own
    resources = ray.cluster_resources()
    least = workers if isinstance(workers, int) else workers[0]
    gpus = resources.get("GPU", 0.0) >= least
    cpus = int(resources.get("CPU", 1))
    if not gpus and least > cpus:
        raise WrongCallError(
            f"expected at most {cpus} workers, one per CPU of this cluster, got {least}"
        )
    say_if_busy(least, gpus=gpus)
    # On the node of Ray Train's controller: losing that node ends the training anyway.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind: Any = ray.remote(Board)
    board = kind.options(num_cpus=0, scheduling_strategy=here).remote()
    with _marked(job) as marked, _watch(board, job.recipe, on_progress, interrupts):
        config = {"job": marked, "board": board}
        scaling = ScalingConfig(num_workers=workers, use_gpu=gpus)  # type: ignore[arg-type]
        _fit_until_it_ends(name, config, scaling)
    if reason := ray.get(board.reason.remote()):
        raise JobError(f"the training stopped: {reason}")
    if where := ray.get(board.ended.remote()):
        raise StoppedError(
            f"interrupted: {where}; rerun the same command with --resume to continue"
        )


def _fit_until_it_ends(name: str, config: dict[str, Any], scaling: Any) -> None:
    """Train, and replace lost workers for as long as the training progresses in between."""
    import ray
    from ray.train import FailureConfig, RunConfig

    from pipelines.training.rendezvous import MeetingConfig

    trainer_class: Any = lean_trainer()
    board, reached = config["board"], -1  # the step at which the workers were last lost
    while True:
        # Ray Train wants a folder for its own records; our checkpoints never pass through it.
        with tempfile.TemporaryDirectory(prefix="colorcore-train-") as storage:
            trainer = trainer_class(
                train_worker,
                train_loop_config=config,
                torch_config=MeetingConfig(use_gpu=scaling.use_gpu),
                scaling_config=scaling,
                run_config=RunConfig(
                    name=name,
                    storage_path=storage,
                    failure_config=FailureConfig(max_failures=WORKER_RESTARTS),
                ),
            )
            try:
                trainer.fit()
                return
            except KeyboardInterrupt:
                # On a cluster, Ray outlives the driver: the controller takes its workers along.
                with suppress(Exception):
                    ray.kill(trainer.controller)
                raise
            except ray.train.TrainingFailedError as error:
                # Ray counts restarts over the whole training. One of weeks may lose more
                # workers than that, so the count starts anew once it has progressed.
                step = ray.get(board.read.remote()).get("step", 0)
                if step <= reached or ray.get(board.reason.remote()) is not None:
                    raise JobError(_why(error)) from error
                reached = step


@contextmanager
def _marked(job: Job) -> Iterator[Job]:
    """The job with a mark, a file next to its checkpoints that exists during the block."""
    if job.store.local is None:
        yield job
        return
    for name in job.store.names(""):
        if name.startswith(MARK):  # left by a driver that was killed
            job.store.remove(name)
    mark = f"{MARK}{secrets.token_hex(8)}"
    job.store.write(mark, b"")
    try:
        yield replace(job, mark=mark)
    finally:
        job.store.remove(mark)


@contextmanager
def _watch(
    board: Any,
    recipe: Recipe,
    on_progress: Callable[[TrainProgress], None],
    interrupts: Interrupts,
) -> Iterator[None]:
    """Pass the progress on the board to ``on_progress`` during the block."""
    import ray
    from ray.exceptions import RayError

    stop = threading.Event()

    def update() -> None:
        posted = ray.get(board.read.remote(stop=interrupts.asked.is_set()))
        posted.setdefault("stage", "starting the workers")
        signs = with_advice(posted.pop("signs", ()), recipe)
        progress = TrainProgress(epochs=recipe.train.epochs, signs=signs, **posted)
        interrupts.can_stop = progress.total_steps > 0  # before that there is nothing to save
        on_progress(progress)

    def poll() -> None:
        with suppress(RayError):  # the head is gone; the training itself reports that
            while not stop.wait(POLL_S):
                update()

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
        update()
    finally:
        stop.set()
        thread.join()


def _why(error: Exception) -> str:
    """A failed training's cause in one line."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        cause = getattr(failure, "cause", None) or failure
        if text := str(cause).strip():
            return f"the training failed: {text.splitlines()[-1].strip()}"
    return f"the training failed: {str(error).strip().splitlines()[-1]}"
