"""A training ready to run: what `cc train` and a trial of `cc tune` have in common.

`prepare_job` runs in the driver and finds what is wrong before a worker starts. `train_rank` is
what one rank does, inside Ray Train. `is_worth_a_retry` decides what to do when a rank fails.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorcore.checkpoints.checkpoint import has_checkpoint, load_checkpoint
from colorcore.color.palette import Palette, load_palette, mean_ab
from colorcore.dataset.layout import DatasetInfo, read_histogram, read_info
from colorcore.dataset.loader import TrainLoader
from colorcore.dataset.samples import Samples
from colorcore.losses import build_terms
from colorcore.losses.term import LossError
from colorcore.models.lite_unet import require_imagenet
from colorcore.recipes.recipe import PALETTE, Recipe, parse_recipe
from colorcore.storage.location import absolute_store
from colorcore.storage.store import Store
from colorcore.training.events import Observer, TrainingDivergedError
from colorcore.training.fit import fit
from colorcore.training.state import FitData
from pipelines.errors import JobError, WrongCallError
from pipelines.run_log.observer import observer_of_rank
from pipelines.tracking.store import TrackedRun
from pipelines.training.start_weights import StartWeights

Workers = int | tuple[int, int]
"""A number of workers, or the least and the most: as many as the cluster has room for."""
_LOST_PEER = re.compile(
    r"gloo/transport/.*"
    r"(closed by peer|Read error|Connection reset|Broken pipe|Socket closed|[Tt]imed? ?out)"
)
"""How gloo reports a broken connection (torch 2.13): a plain RuntimeError with this text."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker needs to know, small enough to send to one.

    store    where ``last`` and ``best`` are: `--out`
    run      the run in MLflow; None before it has started
    threads  CPU threads per worker; None shares out the CPUs of its node
    profile  steps that rank 0 measures
    mark     a file below ``store`` that every worker must see before it begins, if any
    """

    dataset: Store
    recipe: Recipe
    store: Store
    fingerprint: str
    mean_ab: tuple[float, float]
    steps_per_epoch: int
    params: dict[str, Any]
    run: TrackedRun | None = None
    threads: int | None = None
    initial: StartWeights | None = None
    mark: str | None = None
    profile: int = 0

    def data(self) -> FitData:
        """The data to train on, opened in the calling process."""
        return FitData(
            train=Samples(self.dataset, "train"),
            val=Samples(self.dataset, "val"),
            palette=load_palette(self.dataset.below("palette")),
            mean_ab=self.mean_ab,
            fingerprint=self.fingerprint,
        )


def prepare_job(
    dataset: str | Path | Store, recipe: Recipe, out: str | Path | Store, workers: Workers
) -> Job:
    """Check a training of the recipe on the dataset, and describe it as a job; writes nothing.

    Raises:
        WrongCallError: the batch has fewer photos than there are workers, the numbers of bins of
            the palette and of the recipe's model differ, a file of weights that the recipe
            names does not exist, or the package of a loss term's weights is not installed.
        DatasetError, FileNotFoundError: the dataset is not finished, or has no palette.
    """
    store = absolute_store(dataset)
    recipe = with_absolute_files(recipe)
    _check_loss(recipe)
    info = read_info(store)
    palette = load_palette(store.below("palette"))
    recipe = recipe.for_palette(len(palette))
    _check_bins(recipe, palette)
    mean = mean_ab(read_histogram(store))
    return Job(
        dataset=store,
        recipe=recipe,
        store=absolute_store(out),
        fingerprint=info.fingerprint or "",
        mean_ab=(float(mean[0]), float(mean[1])),
        steps_per_epoch=_check_batches(store, recipe, workers),
        params=_params(recipe, info, palette, workers),
        threads=_asked_threads(),
    )


def parse_workers(text: str) -> Workers:
    """Parse a number of workers such as ``"4"``, or a range such as ``"2-8"``.

    Raises:
        WrongCallError: it is neither.
    """
    least, dash, most = text.partition("-")
    try:
        numbers = (int(least), int(most) if dash else int(least))
    except ValueError:
        numbers = (0, 0)
    if not 1 <= numbers[0] <= numbers[1]:
        raise WrongCallError(
            f"expected a number of workers such as 4, or a range such as 2-8, got {text!r}"
        )
    return numbers if dash else numbers[0]


def train_rank(
    job: Job,
    observers: Sequence[Observer] = (),
    *,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train as one rank, inside Ray Train; rank 0 also logs the run.

    The rank resumes from ``last`` if that exists: after ``--resume``, and when Ray has replaced a
    lost worker. ``stop`` is passed on to :func:`colorcore.training.fit.fit`.

    Raises:
        JobError: this rank's node does not see the folder of the checkpoints.
        TrainingStoppedError: ``stop`` returned True, and ``last`` is saved.
    """
    import torch
    from ray.train.torch import get_device

    _check_shared(job)
    device = get_device()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    elif device.type == "cpu":
        # Ray gives a worker one CPU, and so one thread, even on a node that runs nothing else.
        torch.set_num_threads(_threads_here())
    run = None if job.run is None else observer_of_rank(job.run, job.recipe, job.store)
    observers = observers if run is None else [*observers, run]
    # Start weights count only for a training's very first start: a replaced worker, too, must
    # resume from what was learned since.
    last = job.store.below("last")
    resumes = has_checkpoint(last)
    initial = None if resumes or job.initial is None else job.initial.weights()
    try:
        fit(
            job.recipe,
            job.data(),
            job.store,
            device=device,
            resume=load_checkpoint(last, training=True) if resumes else None,
            initial=initial,
            origin=job.initial.about if job.initial is not None and initial is not None else "",
            run_id=job.run.run_id if job.run is not None else None,
            observers=observers,
            stop=stop,
            profile=job.profile,
        )
    except TrainingDivergedError:
        if run is not None:
            run.on_diverged()
        raise
    finally:
        if run is not None:
            run.close()


def is_worth_a_retry(error: BaseException) -> bool:
    """Whether a rank failed only because another process was lost; the rule for all trainings.

    A killed rank breaks the collectives in which the others wait. Torch has no single type for
    that: NCCL and the rendezvous raise a DistError, gloo a plain RuntimeError that only its text
    tells apart. Ray has its own errors for a lost process or node. Every other error, such as
    an exhausted memory, a wrong shape or a diverged loss, would just occur again.
    """
    from ray import exceptions as ray_errors
    from torch.distributed import DistError

    if isinstance(error, ray_errors.RayTaskError):
        error = error.cause  # what the rank itself raised
    lost = (
        ray_errors.RayActorError,
        ray_errors.WorkerCrashedError,
        ray_errors.NodeDiedError,
        ray_errors.LocalRayletDiedError,
        ray_errors.ObjectLostError,
        ray_errors.OutOfMemoryError,  # the node's: Ray has killed whatever used most
    )
    if isinstance(error, DistError):
        # NCCL reports its own misuse and an exhausted GPU by the same type.
        return re.search(r"out of memory|ncclInvalid", str(error)) is None
    return isinstance(error, lost) or (
        isinstance(error, RuntimeError) and _LOST_PEER.search(str(error)) is not None
    )


def describe_error(error: BaseException) -> str:
    """An error's first line, after its type unless its message is written for the user."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    ours = type(error).__module__.partition(".")[0] in ("colorcore", "pipelines")
    return lines[0] if ours else f"{type(error).__name__}: {lines[0]}"


def _check_shared(job: Job) -> None:
    """Check that this worker's ``--out`` is the driver's, and not another folder of that name."""
    # A folder of the same name on a node's own disk would hold other checkpoints, or none: the
    # rank would start from scratch, and the others wait for it in a collective for ever.
    if job.mark is not None and not job.store.exists(job.mark):
        import ray

        node = ray.util.get_node_ip_address()
        raise JobError(
            f"expected {job.store.show()} on all nodes, found another one or none on {node}; "
            "set --out to a folder on a disk that all nodes share, or to s3://bucket/folder"
        )


def _asked_threads() -> int | None:
    """The user's OMP_NUM_THREADS, read in the driver because Ray overrides it in workers."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else None


def _threads_here() -> int:
    """This worker's share of the CPUs of its node."""
    import ray
    from ray import train as ray_train

    own = ray.get_runtime_context().get_node_id()
    cpus = next(
        (node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == own), 1
    )
    neighbours: int = ray_train.get_context().get_local_world_size()
    return max(1, int(cpus) // neighbours)


def with_absolute_files(recipe: Recipe) -> Recipe:
    """Make the paths of the weights that a recipe names absolute.

    A worker runs in another folder than the driver, and a later ``--resume`` may, too.
    """
    values = recipe.values()
    tables = list(values["loss_options"].items())
    if "encoder" not in values["model"]:  # the weights of such an encoder come in a package
        tables.append(("model", values["model"]))
    for table, options in tables:
        for key in ("encoder_weights", "weights"):
            if not (isinstance(given := options.get(key), str) and given):
                continue
            path = Path(given).expanduser().absolute()
            if not path.is_file():
                raise WrongCallError(f"expected a file of weights ({table}: {key}), got {given!r}")
            options[key] = str(path)
    return parse_recipe(values, "recipe")


def require_encoder(recipe: Recipe) -> None:
    """Check that a new training can start from the weights that its encoder wants.

    Raises:
        WrongCallError: their package is not installed.
    """
    options = recipe.model.options()
    if "encoder" in options and options["encoder_weights"] == "imagenet":
        try:
            require_imagenet(options["encoder"])
        except ValueError as error:
            raise WrongCallError(str(error)) from error


def _check_loss(recipe: Recipe) -> None:
    try:
        build_terms(recipe.loss, recipe.loss_options).require()
    except LossError as error:
        raise WrongCallError(str(error)) from error


def _check_bins(recipe: Recipe, palette: Palette) -> None:
    bins = recipe.model.options().get("bins")
    if bins is not None and bins != len(palette):
        raise WrongCallError(
            f"the recipe's model has {bins} bins, the dataset's palette {len(palette)}; "
            f"train with --set model.bins={PALETTE}, or: cc priors DATASET --bins {bins}"
        )


def _check_batches(dataset: Store, recipe: Recipe, workers: Workers) -> int:
    """Steps per epoch, if there are samples to train and to validate on."""
    world = workers if isinstance(workers, int) else workers[1]
    Samples(dataset, "val")
    try:
        return len(TrainLoader(Samples(dataset, "train"), recipe.data.batch, world=world))
    except ValueError as error:
        raise WrongCallError(f"{error}; raise data.batch or set fewer --workers") from error


def _params(
    recipe: Recipe, info: DatasetInfo, palette: Palette, workers: Workers
) -> dict[str, Any]:
    return {
        **{key: value for key, value in recipe.flat().items() if key != "about"},
        "dataset.fingerprint": info.fingerprint,
        "dataset.size": info.settings.size,
        "dataset.train": (info.counts or {}).get("train"),
        "palette.fingerprint": palette.fingerprint,
        "workers": workers if isinstance(workers, int) else "{}-{}".format(*workers),
    }
