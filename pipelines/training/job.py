"""A training ready to run: what `cc train` and a trial of `cc tune` have in common.

`prepare_job` checks in the driver all that can be wrong before a worker starts; `train_rank` is
what one rank does with it, inside of Ray Train.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorcore.checkpoints.checkpoint import has_checkpoint, load_checkpoint
from colorcore.color.palette import Palette, load_palette, mean_ab
from colorcore.dataset.layout import DatasetInfo, read_histogram, read_info
from colorcore.dataset.loader import TrainLoader
from colorcore.dataset.samples import Samples
from colorcore.recipes.recipe import Recipe, parse_recipe
from colorcore.storage.location import absolute_store
from colorcore.storage.store import Store
from colorcore.training.events import Observer, TrainingDivergedError
from colorcore.training.fit import fit
from colorcore.training.state import FitData
from pipelines.errors import JobError, WrongCallError
from pipelines.run_log.observer import observer_of_rank
from pipelines.tracking.store import TrackedRun
from pipelines.training.start_weights import Initial

Workers = int | tuple[int, int]
"""How many: so many, or from so many to so many, whatever the cluster has room for."""


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker needs to know; small enough to hand to one.

    out      the folder of the training here: `--out` itself, or one for what must be local
    store    where ``last`` and ``best`` are
    threads  CPU threads a worker; None shares out the CPUs of its node
    run      where it is tracked; None before that is known
    mark     a file below ``store`` that every worker must see before it begins, if any
    """

    dataset: Store
    recipe: Recipe
    out: Path
    store: Store
    fingerprint: str
    mean_ab: tuple[float, float]
    steps_an_epoch: int
    params: dict[str, Any]
    run: TrackedRun | None = None
    threads: int | None = None
    initial: Initial | None = None
    mark: str | None = None

    def data(self) -> FitData:
        """What the training learns from, opened in the process that asks."""
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
    """The job of training the recipe on the dataset with so many workers; reads, writes nothing.

    Raises:
        WrongCallError: the batch has fewer photos than there are workers, the palette has another
            number of bins than the recipe's model, or a file of weights that the recipe names is
            not there.
        DatasetError, FileNotFoundError: no finished dataset, or no palette in it.
    """
    store = absolute_store(dataset)
    recipe = _with_absolute_files(recipe)
    info = read_info(store)
    palette = load_palette(store.below("palette"))
    _check_bins(recipe, palette)
    mean = mean_ab(read_histogram(store))
    target = absolute_store(out)
    return Job(
        dataset=store,
        recipe=recipe,
        out=target.local or _scratch(target),
        store=target,
        fingerprint=info.fingerprint or "",
        mean_ab=(float(mean[0]), float(mean[1])),
        steps_an_epoch=_check_batches(store, recipe, most_of(workers)),
        params=_params(recipe, info, palette, workers),
    )


def most_of(workers: Workers) -> int:
    """The largest number of workers that there may be."""
    return workers if isinstance(workers, int) else workers[1]


def parse_workers(text: str) -> Workers:
    """``"4"`` or ``"2-8"`` as numbers.

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
            f"expected a number of workers such as 4, or the least and the most such as 2-8, "
            f"got {text!r}"
        )
    return numbers if dash else numbers[0]


def train_rank(
    job: Job,
    observers: Sequence[Observer] = (),
    *,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """One rank, inside of Ray Train: loaders, resume, fit.

    Rank 0 tracks the run besides. There is a ``last`` of this very run when Ray replaces a
    worker, too, and then it goes on from there. ``stop`` as :func:`colorcore.training.fit.fit`
    takes it.

    Raises:
        JobError: this rank's node does not see the folder of the checkpoints.
        TrainingStoppedError: it was asked to stop, and ``last`` is written.
    """
    import torch
    from ray.train.torch import get_device

    _check_shared(job)
    device = get_device()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    elif device.type == "cpu":
        torch.set_num_threads(_threads_here())
    run = None if job.run is None else observer_of_rank(job.run, job.recipe, job.store)
    observers = observers if run is None else [*observers, run]
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
            run_id=job.run.run_id if job.run is not None else None,
            observers=observers,
            stop=stop,
        )
    except TrainingDivergedError:
        if run is not None:
            run.on_diverged()
        raise
    finally:
        if run is not None:
            run.close()


def _check_shared(job: Job) -> None:
    """See that this worker's ``--out`` is the driver's, and not one of the same name."""
    if job.mark is not None and not job.store.exists(job.mark):
        import ray

        node = ray.util.get_node_ip_address()
        raise JobError(
            f"expected {job.store.show()} on all nodes, found another one or none on {node}; "
            "set --out to a folder on a disk that all nodes share, or to s3://bucket/folder"
        )


def _threads_here() -> int:
    """CPUs of this worker's node, shared out among the workers on it."""
    import ray
    from ray import train as ray_train

    own = ray.get_runtime_context().get_node_id()
    cpus = next(
        (node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == own), 1
    )
    beside: int = ray_train.get_context().get_local_world_size()
    return max(1, int(cpus) // beside)


def _scratch(remote: Store) -> Path:
    """A folder on this machine for a training whose ``--out`` is elsewhere."""
    digest = hashlib.sha256(remote.show().encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"colorcore-{digest}"


def _with_absolute_files(recipe: Recipe) -> Recipe:
    """The recipe with the files of weights that it names by their whole path.

    A worker's current folder is another one, and so may be that of a later ``--resume``.
    """
    values = recipe.values()
    tables = [("model", values["model"]), *values["loss_options"].items()]
    for table, options in tables:
        for key in ("encoder_weights", "weights"):
            if not (isinstance(given := options.get(key), str) and given):
                continue
            path = Path(given).expanduser().absolute()
            if not path.is_file():
                raise WrongCallError(f"expected a file of weights ({table}: {key}), got {given!r}")
            options[key] = str(path)
    return parse_recipe(values, "recipe")


def _check_bins(recipe: Recipe, palette: Palette) -> None:
    bins = recipe.model.options().get("bins")
    if bins is not None and bins != len(palette):
        raise WrongCallError(
            f"the recipe's model answers in {bins} bins, the dataset's palette has {len(palette)}; "
            f"train with --set model.bins={len(palette)}, or: cc priors DATASET --bins {bins}"
        )


def _check_batches(dataset: Store, recipe: Recipe, workers: int) -> int:
    """Steps an epoch, if there are samples to train and to validate on."""
    Samples(dataset, "val")
    try:
        return len(TrainLoader(Samples(dataset, "train"), recipe.data.batch, world=workers))
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
