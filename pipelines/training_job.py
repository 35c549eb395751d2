"""A training ready to run: what `cc train` and a trial of `cc tune` have in common.

`prepare_job` checks in the driver all that can be wrong before a worker starts; `train_rank` is
what one rank does with it, inside of Ray Train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorcore.checkpoint import has_checkpoint, load_checkpoint
from colorcore.dataset import DatasetInfo, read_histogram, read_info
from colorcore.fit import FitData, Observer, TrainingDivergedError, fit
from colorcore.loader import Samples, TrainLoader
from colorcore.palette import Palette, load_palette, mean_ab
from colorcore.recipe import Recipe, parse_recipe
from colorcore.storage import Store, absolute_store
from pipelines.errors import WrongCallError
from pipelines.initial import Initial
from pipelines.run_observer import observer_of_rank
from pipelines.tracking import TrackedRun


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker needs to know; small enough to hand to one.

    threads  CPU threads a worker; None leaves torch's own choice
    run      where it is tracked; None before that is known
    """

    dataset: Store
    recipe: Recipe
    out: Path
    fingerprint: str
    mean_ab: tuple[float, float]
    steps_an_epoch: int
    params: dict[str, Any]
    run: TrackedRun | None = None
    threads: int | None = None
    initial: Initial | None = None


def prepare_job(dataset: str | Path | Store, recipe: Recipe, out: Path, workers: int) -> Job:
    """The job of training the recipe on the dataset with so many workers; reads, writes nothing.

    Raises:
        WrongCallError: the batch cannot be divided, the palette has another number of bins than
            the recipe's model, or a file of weights that the recipe names is not there.
        DatasetError, FileNotFoundError: no finished dataset, or no palette in it.
    """
    store = absolute_store(dataset)
    recipe = _with_absolute_files(recipe)
    info = read_info(store)
    palette = load_palette(store.below("palette"))
    _check_bins(recipe, palette)
    mean = mean_ab(read_histogram(store))
    return Job(
        dataset=store,
        recipe=recipe,
        out=out.absolute(),
        fingerprint=info.fingerprint or "",
        mean_ab=(float(mean[0]), float(mean[1])),
        steps_an_epoch=_check_batches(store, recipe, workers),
        params=_params(recipe, info, palette, workers),
    )


def train_rank(job: Job, observers: Sequence[Observer] = ()) -> None:
    """One rank, inside of Ray Train: loaders, resume, fit.

    Rank 0 tracks the run besides. There is a ``last`` of this very run when Ray replaces a
    worker, too, and then it goes on from there.
    """
    import torch
    from ray.train.torch import get_device

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    data = FitData(
        train=Samples(job.dataset, "train"),
        val=Samples(job.dataset, "val"),
        palette=load_palette(job.dataset.below("palette")),
        mean_ab=job.mean_ab,
        fingerprint=job.fingerprint,
    )
    run = None if job.run is None else observer_of_rank(job.run, job.recipe, job.out)
    observers = observers if run is None else [*observers, run]
    resumes = has_checkpoint(job.out / "last")
    initial = None if resumes or job.initial is None else job.initial.weights()
    try:
        fit(
            job.recipe,
            data,
            job.out,
            device=get_device(),
            resume=load_checkpoint(job.out / "last", training=True) if resumes else None,
            initial=initial,
            run_id=job.run.run_id if job.run is not None else None,
            observers=observers,
        )
    except TrainingDivergedError:
        if run is not None:
            run.on_diverged()
        raise
    finally:
        if run is not None:
            run.close()


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
        raise WrongCallError(f"{error}; set data.batch or --workers") from error


def _params(recipe: Recipe, info: DatasetInfo, palette: Palette, workers: int) -> dict[str, Any]:
    return {
        **{key: value for key, value in recipe.flat().items() if key != "about"},
        "dataset.fingerprint": info.fingerprint,
        "dataset.size": info.settings.size,
        "dataset.train": (info.counts or {}).get("train"),
        "palette.fingerprint": palette.fingerprint,
        "workers": workers,
    }
