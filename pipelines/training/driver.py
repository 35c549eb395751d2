"""The job of `cc train`: a dataset and a recipe -> checkpoints and a tracked run, by Ray Train.

The driver checks everything that can be wrong before Ray starts, begins the run in MLflow and
shows progress; the workers build their loaders and call ``colorcore.training.fit``. ``out/last``
is the one place from which training goes on: after ``--resume``, and when Ray replaces workers.

Ctrl-C reaches the driver, which notes it on a board; the first worker looks there, and all stop
together after the step that they are in.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from colorcore.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from colorcore.color.palette import load_palette
from colorcore.dataset.layout import DatasetError
from colorcore.dataset.loader import Samples
from colorcore.losses import LossError
from colorcore.models.decoding import Decoding
from colorcore.recipes.advice import Advised, advised
from colorcore.recipes.recipe import Recipe
from colorcore.scores.signs import Sign
from colorcore.storage.store import StorageError, Store
from colorcore.training.fit import (
    Observer,
    StepEvent,
    TrainingDivergedError,
    TrainingStoppedError,
    ValidationEvent,
)
from pipelines.cluster import ray_session
from pipelines.errors import JobError, StoppedError, WrongCallError
from pipelines.run_log.runs import end_run, start_run
from pipelines.tracking.model import local_model
from pipelines.tracking.redact import without_secrets
from pipelines.training.board import Board
from pipelines.training.interrupts import Interrupts, catch_interrupts
from pipelines.training.job import Job, Workers, prepare_job, train_rank
from pipelines.training.start_weights import choose_initial

WORKER_RESTARTS = 3
"""Times in a row that lost workers are replaced without the training getting any further."""
POLL_S = 0.25
PIN_S = 0.2
MARK = ".training-"
OWN_ERRORS = (
    TrainingDivergedError,
    CheckpointError,
    DatasetError,
    LossError,
    StorageError,
    JobError,
)
"""Errors whose message is made for the user."""


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


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What `cc train` did; scores and signs are those of the best checkpoint.

    out is a path, or a URI; decoded are the scores with ``decoding``, which was chosen at the end.
    """

    out: Path | str
    best: str
    steps: int
    scores: dict[str, float]
    signs: tuple[Advised, ...]
    last_signs: tuple[Advised, ...]
    decoding: Decoding
    decoded: dict[str, float]
    metric: str
    tracking_uri: str
    experiment_id: str
    run_id: str


def train(
    dataset: str | Path,
    recipe: Recipe,
    out: str | Path,
    *,
    tracking_uri: str,
    name: str = "train",
    workers: Workers = 1,
    resume: bool = False,
    initial: str | Path | None = None,
    reading: str | None = None,
    address: str | None = None,
    on_progress: Callable[[TrainProgress], None] = lambda _: None,
    on_initial: Callable[[str], None] = lambda _: None,
    on_unsent: Callable[[str], None] = lambda _: None,
) -> TrainReport:
    """Train the recipe on the dataset with ``workers`` data-parallel workers.

    While it trains, the first Ctrl-C or SIGTERM lets it stop in order, and a second one ends it
    at once; with a pair of numbers as ``workers`` it goes on with fewer when nodes are lost.

    ``initial`` is a checkpoint folder or an old .pt file whose weights a new training starts
    from, ``reading`` how the latter is read; ``on_initial`` is told what was taken over, and
    ``on_unsent`` where that lies which the tracking server could not be told.

    Raises:
        WrongCallError: ``out`` holds another training, the batch is too small, a file of
            weights that the recipe names is not there, or ``initial`` does not fit the recipe.
        CheckpointError: ``initial`` cannot be read.
        DatasetError, FileNotFoundError: no finished dataset, or no palette in it.
        JobError: Ray or MLflow cannot be reached, or the training failed.
        StoppedError: it was asked to stop, and ``out/last`` is of that very step.
        KeyboardInterrupt: it was asked to while nothing had begun, or twice.
        StorageError: a remote ``out`` or dataset cannot be reached.
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
        with catch_interrupts() as interrupts, ray_session(address):
            interrupts.install()
            _run(job, run.run_id, workers, on_progress, interrupts)
        status = "FINISHED"
    except (KeyboardInterrupt, StoppedError):
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
                best_here = _here(job.store.below("best"), Path(folder))
                artifacts |= {"best": best_here, "palette": picture}
            if unsent := end_run(run, status, artifacts, job.store):
                on_unsent(str(unsent))
    best = load_checkpoint(job.store.below("best"))
    last = load_checkpoint(job.store.below("last"))
    return TrainReport(
        out=Path(out) if job.store.local is not None else job.store.show(),
        best=str(Path(out) / "best") if job.store.local is not None else job.store.show("best"),
        steps=last.epoch * job.steps_an_epoch,
        scores=best.scores,
        signs=_signs(best),
        last_signs=_signs(last),
        decoding=best.decoding,
        decoded=best.decoded,
        metric=recipe.train.metric,
        tracking_uri=without_secrets(tracking_uri),
        experiment_id=run.experiment_id,
        run_id=run.run_id,
    )


def _here(place: Store, folder: Path) -> Path:
    """The folder of a checkpoint; of a remote one, a copy."""
    if place.local is not None:
        return place.local
    save_checkpoint(load_checkpoint(place), folder / "best")
    return folder / "best"


def _signs(checkpoint: Checkpoint) -> tuple[Advised, ...]:
    return _advised(checkpoint.signs, checkpoint.recipe)


def _advised(signs: Iterable[Mapping[str, Any]], recipe: Recipe) -> tuple[Advised, ...]:
    """Signs as checkpoints and boards have them, with what to do about them."""
    return advised([Sign(**values) for values in signs], recipe)


_CHANGES_NOTHING = ("train.save_every",)
"""Settings that may be others when a training is resumed."""


def _previous(job: Job, *, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, if that was asked for and makes sense."""
    out, last, recipe = job.store.show(), job.store.below("last"), job.recipe
    exists = has_checkpoint(last)
    if exists and not resume:
        raise WrongCallError(
            f"{out} holds a training already; go on with --resume or choose another --out"
        )
    if resume and not exists:
        raise WrongCallError(f"nothing to resume: found no checkpoint in {last.show()}")
    if not exists:
        return None
    previous = load_checkpoint(last)
    if previous.dataset != job.fingerprint:
        raise WrongCallError(
            f"{out} was trained on the dataset {previous.dataset}, "
            f"this one is {job.fingerprint}; resume on the same dataset"
        )
    there, asked = previous.recipe.flat(), recipe.flat()
    differences = [
        f"{key} is {there.get(key)} there, {asked.get(key)} asked"
        for key in sorted(there.keys() | asked.keys())
        if there.get(key) != asked.get(key) and key not in _CHANGES_NOTHING
    ]
    if differences:
        raise WrongCallError(
            f"{out} was trained with another recipe: {'; '.join(differences)}; "
            "repeat it or choose another --out"
        )
    return previous


# -- in the driver, while workers train --------------------------------------------------------


def _run(
    job: Job,
    name: str,
    workers: Workers,
    on_progress: Callable[[TrainProgress], None],
    interrupts: Interrupts,
) -> None:
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
                _worker,
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
        signs = _advised(pinned.pop("signs", ()), recipe)
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


def _worker(config: dict[str, Any]) -> None:
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
