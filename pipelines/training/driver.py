"""The job of `cc train`: a dataset and a recipe -> checkpoints and a tracked run, by Ray Train.

The driver checks everything that can be wrong before Ray starts, begins the run in MLflow and
shows progress; the workers build their loaders and call ``colorcore.training.fit``. ``out/last``
is the one place from which training goes on: after ``--resume``, and when Ray replaces workers.

Ctrl-C reaches the driver, which notes it on a board; the first worker looks there, and all stop
together after the step that they are in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from colorcore.checkpoints.checkpoint import (
    Checkpoint,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from colorcore.color.palette import load_palette
from colorcore.dataset.samples import Samples
from colorcore.models.decoding import Decoding
from colorcore.recipes.advice import Advised
from colorcore.recipes.recipe import Recipe
from colorcore.storage.store import Store
from pipelines.cluster import ray_session
from pipelines.errors import StoppedError, WrongCallError
from pipelines.run_log.runs import end_run, start_run
from pipelines.tracking.model import local_model
from pipelines.tracking.redact import without_secrets
from pipelines.training.interrupts import catch_interrupts
from pipelines.training.job import Job, Workers, prepare_job
from pipelines.training.start_weights import choose_initial
from pipelines.training.trainer import TrainProgress, run_workers, with_advice


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
            run_workers(job, run.run_id, workers, on_progress, interrupts)
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
    return with_advice(checkpoint.signs, checkpoint.recipe)


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
