"""Ray Train around the workers: start them, replace lost ones, watch their progress."""

from __future__ import annotations

import logging
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
from pipelines.errors import JobError, StoppedError, WrongCallError
from pipelines.training.board import Board
from pipelines.training.interrupts import Interrupts
from pipelines.training.job import Job, Workers
from pipelines.training.worker import train_worker

WORKER_RESTARTS = 3
"""Times in a row that lost workers are replaced without the training getting any further."""
POLL_S = 0.25
MARK = ".training-"


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a training stands, for a display; scores and signs are those of ``scored_step``.

    workers are those that train now; stopping says that it was asked to stop and soon will.
    """

    step: int = 0
    total_steps: int = 0
    first_step: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    photos_per_s: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    signs: tuple[Advised, ...] = ()
    scored_step: int = 0
    workers: int = 0
    stopping: bool = False


def with_advice(signs: Iterable[Mapping[str, Any]], recipe: Recipe) -> tuple[Advised, ...]:
    """Signs as checkpoints and boards have them, with what to do about them."""
    return advised([Sign(**values) for values in signs], recipe)


# -- in the driver, while workers train --------------------------------------------------------


def run_workers(
    job: Job,
    name: str,
    workers: Workers,
    on_progress: Callable[[TrainProgress], None],
    interrupts: Interrupts,
) -> None:
    """Train with so many workers on the Ray that is connected, until the end or an interrupt."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # It would tell workers what a cloud announces, and none listens; lost nodes are noticed anyway.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray
    from ray.train import ScalingConfig
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for logger in ("ray.train", "ray.tune", "ray.data"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    resources = ray.cluster_resources()
    least = workers if isinstance(workers, int) else workers[0]
    gpus = resources.get("GPU", 0.0) >= least
    cpus = int(resources.get("CPU", 1))
    if not gpus and least > cpus:
        raise WrongCallError(
            f"expected at most {cpus} workers, one a CPU of this cluster, got {least}"
        )
    if (asked := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(asked):
        job = replace(job, threads=int(asked))
    # Beside Ray Train's controller, whose node's loss ends the training anyway.
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
        raise StoppedError(f"interrupted: {where}; the same command with --resume does so")


def _fit_until_it_ends(name: str, config: dict[str, Any], scaling: Any) -> None:
    """Train, replacing lost workers for as long as the training gets further each time."""
    import ray
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer

    from pipelines.training.rendezvous import MeetingConfig

    class Trainer(TorchTrainer):
        controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray's own would abort the workers at once; see pipelines.training.interrupts."""
            self.controller = controller

    board, reached = config["board"], -1
    while True:
        with tempfile.TemporaryDirectory(prefix="colorcore-train-") as storage:
            trainer = Trainer(
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
                with suppress(Exception):  # workers go with it, also where Ray itself stays
                    ray.kill(trainer.controller)
                raise
            except SystemExit as stop:  # what Ray's own handler would make of Ctrl-C
                raise KeyboardInterrupt from stop
            except ray.train.TrainingFailedError as error:
                step = ray.get(board.read.remote()).get("step", 0)
                if step <= reached or ray.get(board.reason.remote()) is not None:
                    raise JobError(_why(error)) from error
                reached = step


@contextmanager
def _marked(job: Job) -> Iterator[Job]:
    """The job with a file beside its checkpoints, until the block ends: see ``Job.mark``."""
    if job.store.local is None:
        yield job
        return
    for name in job.store.names(""):
        if name.startswith(MARK):  # of a driver that was killed
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
    """Hand the board's progress on, four times a second, until the block ends."""
    import ray
    from ray.exceptions import RayError

    stop = threading.Event()

    def look() -> None:
        pinned = ray.get(board.read.remote(stop=interrupts.asked.is_set()))
        signs = with_advice(pinned.pop("signs", ()), recipe)
        progress = TrainProgress(epochs=recipe.train.epochs, signs=signs, **pinned)
        interrupts.can_stop = progress.total_steps > 0  # before that there is nothing to save
        on_progress(progress)

    def poll() -> None:
        with suppress(RayError):  # the head is gone, as the training itself will notice
            while not stop.wait(POLL_S):
                look()

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
        look()
    finally:
        stop.set()
        thread.join()


def _why(error: Exception) -> str:
    """The one line of a failed training that its user needs."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        cause = getattr(failure, "cause", None) or failure
        if text := str(cause).strip():
            return f"the training failed: {text.splitlines()[-1].strip()}"
    return f"the training failed: {str(error).strip().splitlines()[-1]}"
