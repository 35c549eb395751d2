"""The job of `cc train`: a dataset and a recipe -> checkpoints and a tracked run, by Ray Train.

The driver checks everything that can be wrong before Ray starts, begins the run in MLflow and
shows progress; the workers build their loaders and call ``colorcore.fit``. ``out/last`` is the
one place from which training goes on: after ``--resume``, and when Ray replaces a worker.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colorcore.advice import Advised, advised
from colorcore.checkpoint import Checkpoint, CheckpointError, has_checkpoint, load_checkpoint
from colorcore.dataset import DatasetError
from colorcore.decoding import Decoding
from colorcore.fit import Observer, StepEvent, TrainingDivergedError, ValidationEvent
from colorcore.loader import Samples
from colorcore.losses import LossError
from colorcore.palette import load_palette
from colorcore.recipe import Recipe
from colorcore.storage import StorageError
from pipelines.cluster import ray_session
from pipelines.errors import JobError, WrongCallError
from pipelines.initial import choose_initial
from pipelines.logged_model import local_model
from pipelines.secrets import without_secrets
from pipelines.tracking import end_run, start_run
from pipelines.training_job import Job, prepare_job, train_rank

WORKER_RESTARTS = 3
POLL_S = 0.25
OWN_ERRORS = (TrainingDivergedError, CheckpointError, DatasetError, LossError, StorageError)
"""Errors whose message is made for the user."""


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a training stands, for a display; scores and signs are those of ``scored_step``."""

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


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What `cc train` did; scores are those of the best checkpoint.

    decoded are the same with ``decoding``, which was chosen for it at the end.
    """

    out: Path
    steps: int
    scores: dict[str, float]
    decoding: Decoding
    decoded: dict[str, float]
    metric: str
    tracking_uri: str
    experiment_id: str
    run_id: str


def train(
    dataset: str | Path,
    recipe: Recipe,
    out: Path,
    *,
    tracking_uri: str,
    name: str = "train",
    workers: int = 1,
    resume: bool = False,
    initial: Path | None = None,
    reading: str | None = None,
    address: str | None = None,
    on_progress: Callable[[TrainProgress], None] = lambda _: None,
    on_initial: Callable[[str], None] = lambda _: None,
    on_unsent: Callable[[str], None] = lambda _: None,
) -> TrainReport:
    """Train the recipe on the dataset with ``workers`` data-parallel workers.

    ``initial`` is a checkpoint folder or an old .pt file whose weights a new training starts
    from, ``reading`` how the latter is read; ``on_initial`` is told what was taken over, and
    ``on_unsent`` where that lies which the tracking server could not be told.

    Raises:
        WrongCallError: ``out`` holds another training, the batch cannot be divided, a file of
            weights that the recipe names is not there, or ``initial`` does not fit the recipe.
        CheckpointError: ``initial`` cannot be read.
        DatasetError, FileNotFoundError: no finished dataset, or no palette in it.
        JobError: Ray or MLflow cannot be reached, or the training failed.
    """
    if initial is not None and resume:
        raise WrongCallError("--from starts a new training, --resume goes on with one: not both")
    job = prepare_job(dataset, recipe, out, workers)
    previous = _previous(job, resume=resume)
    tags = {"colorcore.dataset": str(dataset), "mlflow.note.content": recipe.about}
    start = None
    if initial is not None:
        palette = load_palette(job.dataset.below("palette"))
        val = Samples(job.dataset, "val")
        start = choose_initial(
            local_model(initial, tracking_uri), job.recipe, palette, val, reading
        )
        tags["colorcore.from"] = start.about
        on_initial(start.about)
    run = start_run(
        tracking_uri,
        name,
        job.params,
        tags,
        previous.run_id if previous is not None else None,
    )
    job = replace(job, run=run, initial=start)
    status = "FAILED"
    try:
        with ray_session(address):
            _run(job, run.run_id, workers, on_progress)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        with tempfile.TemporaryDirectory() as folder:
            as_toml = Path(folder) / "recipe.toml"
            as_toml.write_text(job.recipe.to_toml(), encoding="utf-8")
            artifacts = {as_toml.name: as_toml}
            if status == "FINISHED":
                picture = Path(folder) / "palette.png"
                job.dataset.fetch("palette/palette.png", picture)
                artifacts |= {"best": out / "best", "palette": picture}
            if unsent := end_run(run, status, artifacts, out):
                on_unsent(str(unsent))
    best = load_checkpoint(out / "best")
    last = load_checkpoint(out / "last")
    return TrainReport(
        out=out,
        steps=last.epoch * job.steps_an_epoch,
        scores=best.scores,
        decoding=best.decoding,
        decoded=best.decoded,
        metric=recipe.train.metric,
        tracking_uri=without_secrets(tracking_uri),
        experiment_id=run.experiment_id,
        run_id=run.run_id,
    )


def _previous(job: Job, *, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, if that was asked for and makes sense."""
    out, recipe = job.out, job.recipe
    exists = has_checkpoint(out / "last")
    if exists and not resume:
        raise WrongCallError(
            f"{out} holds a training already; go on with --resume or choose another --out"
        )
    if resume and not exists:
        raise WrongCallError(f"nothing to resume: found no checkpoint in {out / 'last'}")
    if not exists:
        return None
    previous = load_checkpoint(out / "last")
    if previous.dataset != job.fingerprint:
        raise WrongCallError(
            f"{out} was trained on the dataset {previous.dataset}, "
            f"this one is {job.fingerprint}; resume on the same dataset"
        )
    there, asked = previous.recipe.flat(), recipe.flat()
    differences = [
        f"{key} is {there.get(key)} there, {asked.get(key)} asked"
        for key in sorted(there.keys() | asked.keys())
        if there.get(key) != asked.get(key)
    ]
    if differences:
        raise WrongCallError(
            f"{out} was trained with another recipe: {'; '.join(differences)}; "
            "repeat it or choose another --out"
        )
    return previous


# -- in the driver, while workers train --------------------------------------------------------


class _Board:
    """A tiny actor: the first worker pins up its progress, the driver reads it."""

    def __init__(self) -> None:
        self._progress = TrainProgress()
        self._reason: str | None = None

    def pin(self, progress: TrainProgress) -> None:
        self._progress = progress

    def read(self) -> TrainProgress:
        return self._progress

    def give_up(self, reason: str) -> None:
        """Note an error that another try would only repeat."""
        self._reason = reason

    def reason(self) -> str | None:
        return self._reason


def _run(job: Job, name: str, workers: int, on_progress: Callable[[TrainProgress], None]) -> None:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    for logger in ("ray.train", "ray.tune", "ray.data"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0.0) >= workers
    cpus = int(resources.get("CPU", 1))
    if not gpus and workers > cpus:
        raise WrongCallError(
            f"expected at most {cpus} workers, one a CPU of this cluster, got {workers}"
        )
    job = replace(job, threads=None if gpus else max(1, cpus // workers))
    board: Any = ray.remote(num_cpus=0)(_Board).remote()
    with (
        tempfile.TemporaryDirectory(prefix="colorcore-train-") as storage,
        _watch(board, on_progress),
    ):
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"job": job, "board": board},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
            run_config=RunConfig(
                name=name,
                storage_path=storage,
                failure_config=FailureConfig(max_failures=WORKER_RESTARTS),
            ),
        )
        try:
            trainer.fit()
        except SystemExit as stop:  # what Ray Train makes of Ctrl-C once its workers are stopped
            raise KeyboardInterrupt from stop
        except ray.train.TrainingFailedError as error:
            raise JobError(_why(error)) from error
        if reason := ray.get(board.reason.remote()):
            raise JobError(f"the training stopped: {reason}")


@contextmanager
def _watch(board: Any, on_progress: Callable[[TrainProgress], None]) -> Iterator[None]:
    """Hand the board's progress on, four times a second, until the block ends."""
    import ray

    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_S):
            on_progress(ray.get(board.read.remote()))

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
        on_progress(ray.get(board.read.remote()))
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


# -- in a worker -------------------------------------------------------------------------------


class _BoardObserver(Observer):
    """Pins the first worker's progress up, at most ten times a second."""

    def __init__(self, board: Any, recipe: Recipe) -> None:
        self._board, self._recipe = board, recipe
        self._progress = TrainProgress(epochs=recipe.train.epochs)
        self._smooth: float | None = None

    def on_start(self, total_steps: int, first_step: int) -> None:
        epoch = first_step * self._progress.epochs // total_steps
        self._pin(total_steps=total_steps, first_step=first_step, step=first_step, epoch=epoch)

    def on_step(self, event: StepEvent) -> None:
        speed = event.photos_per_s
        self._smooth = speed if self._smooth is None else 0.95 * self._smooth + 0.05 * speed
        self._pin(step=event.step, epoch=event.epoch, loss=event.loss, photos_per_s=self._smooth)

    def on_validation(self, event: ValidationEvent) -> None:
        signs = advised(event.signs, self._recipe)
        self._pin(scores=event.scores, signs=signs, scored_step=event.step)

    def _pin(self, **changes: Any) -> None:
        self._progress = replace(self._progress, **changes)
        self._board.pin.remote(self._progress)


class _ReportObserver(Observer):
    """Reports every validation to Ray Train, on every rank as it demands."""

    def on_saved(self, event: ValidationEvent) -> None:
        from ray import train as ray_train

        ray_train.report({"step": event.step, "epoch": event.epoch, **event.scores})


def _worker(config: dict[str, Any]) -> None:
    """One rank, as Ray Train starts it: train, and say when trying again makes no sense."""
    import ray
    from ray import train as ray_train

    board: Any = config["board"]
    if ray.get(board.reason.remote()) is not None:
        return
    alone = ray_train.get_context().get_world_size() == 1
    try:
        job: Job = config["job"]
        observers: list[Observer] = [_ReportObserver()]
        if ray_train.get_context().get_world_rank() == 0:
            observers.append(_BoardObserver(board, job.recipe))
        train_rank(job, observers)
    except Exception as error:
        # A killed worker breaks the others' collectives (RuntimeError): that is worth another
        # try. Whatever else the code raises, it would raise again.
        if alone or not isinstance(error, RuntimeError) or isinstance(error, TrainingDivergedError):
            own = isinstance(error, OWN_ERRORS)
            kind = "" if own else f"{type(error).__name__}: "
            ray.get(board.give_up.remote(f"{kind}{error}"))
        if not alone:
            raise  # the other ranks wait in a collective: only a failure frees them
