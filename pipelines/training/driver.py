"""The job of `cc train`: a dataset and a recipe -> checkpoints and a run in MLflow, by Ray Train.

The driver checks what can be wrong before Ray starts, starts the run in MLflow, shows progress,
and ends the run. The workers build their loaders and call ``colorcore.training.fit``. A training
resumes only from ``out/last``: after ``--resume``, and when Ray replaces workers.

The driver receives Ctrl-C and notes it on a board, which the first worker reads; all workers then
stop together after their current step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from colorcore.checkpoints.checkpoint import (
    Checkpoint,
    fetch_checkpoint,
    has_checkpoint,
    load_checkpoint,
)
from colorcore.color.palette import load_palette
from colorcore.dataset.samples import Samples
from colorcore.decoding import Decoding
from colorcore.recipes.advice import Advised
from colorcore.recipes.recipe import Recipe, load_recipe
from colorcore.storage.locks import claim
from pipelines.cluster import ray_session
from pipelines.errors import StoppedError, WrongCallError, differences
from pipelines.run_log.runs import end_run, start_run
from pipelines.tracking.model import local_model
from pipelines.tracking.names import DATASET_TAG, FROM_TAG, MISSING_TAG, NOTE_TAG
from pipelines.tracking.redact import without_secrets
from pipelines.tracking.store import TrackedRun, resolve_tracking_uri
from pipelines.training.interrupts import catch_interrupts
from pipelines.training.job import Job, Workers, describe_error, prepare_job, require_encoder
from pipelines.training.start_weights import choose_start_weights
from pipelines.training.trainer import TrainProgress, run_workers, with_advice


@dataclass(frozen=True, slots=True)
class TrainReport:
    """The result of `cc train`; ``scores`` and ``signs`` are of the best checkpoint.

    ``decoded`` are its scores with ``decoding``, which was chosen at the end; ``equal_cf`` those at
    a fixed share of the photos' colourfulness, or {} if it cannot be read there. ``is_early`` says
    that ``train.patience`` ended the training before its last epoch.
    """

    out: Path | str
    best: str
    steps: int
    is_early: bool
    scores: dict[str, float]
    signs: tuple[Advised, ...]
    last_signs: tuple[Advised, ...]
    decoding: Decoding
    decoded: dict[str, float]
    equal_cf: dict[str, float]
    metric: str
    tracking_uri: str
    experiment_id: str
    run_id: str


def train(
    dataset: str | Path,
    recipe: Recipe | str,
    out: str | Path,
    *,
    tracking_uri: str | None = None,
    name: str = "train",
    workers: Workers = 1,
    resume: bool = False,
    initial: str | Path | None = None,
    reading: str | None = None,
    profile: int = 0,
    address: str | None = None,
    on_progress: Callable[[TrainProgress], None] = lambda _: None,
    on_initial: Callable[[str], None] = lambda _: None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> TrainReport:
    """Train the recipe on the dataset with ``workers`` data-parallel workers.

    ``recipe`` may be the name of a built-in recipe or a .toml file. ``tracking_uri`` is that of
    MLflow; None: from ``MLFLOW_TRACKING_URI``, or SQLite in the current folder.

    During training the first Ctrl-C or SIGTERM stops it after the current step, the second one at
    once. With a range as ``workers`` it continues with fewer when nodes are lost.

    ``initial`` is a checkpoint folder or an old .pt file whose weights a new training starts
    from, ``reading`` the input convention of the latter. A resumed training does not read it again:
    its own checkpoint holds the weights. ``profile`` steps are measured, see
    :func:`colorcore.training.fit.fit`. ``on_initial`` receives a description of those weights;
    ``on_warning`` what the run in MLflow lacks at the end, and where that is.

    Raises:
        WrongCallError: ``out`` holds another training or a dataset, the batch is too small, a file
            of weights that the recipe names does not exist, or ``initial`` does not fit the recipe.
        BusyError: another process writes to ``out``.
        CheckpointError: ``initial`` cannot be read.
        DatasetError, FileNotFoundError: the dataset is not finished, or has no palette.
        RecipeError: there is no such recipe.
        JobError: Ray or MLflow cannot be reached, or the training failed.
        StoppedError: it stopped on request, and saved ``out/last``.
        KeyboardInterrupt: it was interrupted before the first step, or twice.
        StorageError: a remote ``out`` or dataset cannot be reached.
    """
    tracking_uri = resolve_tracking_uri(tracking_uri, Path.cwd())
    if isinstance(recipe, str):
        recipe = load_recipe(recipe)
    job = replace(prepare_job(dataset, recipe, out, workers), profile=profile)
    with claim(job.store, "cc train"):
        previous = _previous(job, resume=resume)
        tags = {DATASET_TAG: str(dataset), NOTE_TAG: recipe.about}
        start = None
        if previous is not None:
            pass  # its checkpoint holds all weights
        elif initial is None:
            require_encoder(job.recipe)
        else:
            palette = load_palette(job.dataset.below("palette"))
            val = Samples(job.dataset, "val")
            start = choose_start_weights(
                local_model(initial, tracking_uri), job.recipe, palette, val, reading
            )
            tags[FROM_TAG] = start.about
            on_initial(start.about)
        # Before Ray, so that a failing start of Ray is logged.
        on_progress(TrainProgress(stage="opening the run in MLflow"))
        run = start_run(
            tracking_uri,
            name,
            job.params,
            tags,
            previous.run_id if previous is not None else None,
        )
        job = replace(job, run=run, initial=start)
        status = "FAILED"
        on_progress(TrainProgress(stage=f"connecting to {address}" if address else "starting Ray"))
        try:
            with catch_interrupts() as interrupts, ray_session(address):
                interrupts.install()  # again: Ray takes SIGTERM when it connects
                run_workers(job, run.run_id, workers, on_progress, interrupts)
            status = "FINISHED"
        except (KeyboardInterrupt, StoppedError):
            status = "KILLED"
            raise
        finally:
            close_run(job, run, status, on_warning)
        best = load_checkpoint(job.store.below("best"))
        last = load_checkpoint(job.store.below("last"))
        return TrainReport(
            out=Path(out) if job.store.local is not None else job.store.show(),
            best=str(Path(out) / "best") if job.store.local is not None else job.store.show("best"),
            steps=last.epoch * job.steps_per_epoch,
            is_early=last.epoch < recipe.train.epochs,
            scores=best.scores,
            signs=_signs(best),
            last_signs=_signs(last),
            decoding=best.decoding,
            decoded=best.decoded,
            equal_cf=best.equal_cf,
            metric=recipe.train.metric,
            tracking_uri=without_secrets(tracking_uri),
            experiment_id=run.experiment_id,
            run_id=run.run_id,
        )


def close_run(job: Job, run: TrackedRun, status: str, on_warning: Callable[[str], None]) -> None:
    """End a training's run, with as many of its artifacts as can be had.

    The training is over, and the checkpoints are where they belong: a picture that is missing or
    a store that fails must not turn it into a failure, nor leave its run RUNNING.
    """
    sources = {"recipe.toml": _recipe_file}
    if status == "FINISHED":
        sources |= {"best": _best_checkpoint, "palette": _palette_picture}
    artifacts: dict[str, Path] = {}
    missing: list[str] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            for name, fetch in sources.items():
                try:
                    artifacts[name] = fetch(job, Path(folder))
                except Exception as error:
                    missing.append(f"{name} ({describe_error(error)})")
        finally:  # Ctrl-C, too, must not leave the run RUNNING
            tags = {MISSING_TAG: "; ".join(missing)} if missing else {}
            unsent = end_run(run, status, artifacts, job.store, tags)
    if missing:
        on_warning(
            f"the run in MLflow lacks {', '.join(missing)}; "
            f"the checkpoints in {job.store.show()} are not affected"
        )
    if unsent:
        on_warning(str(unsent))


def _recipe_file(job: Job, folder: Path) -> Path:
    file = folder / "recipe.toml"
    file.write_text(job.recipe.to_toml(), encoding="utf-8")
    return file


def _palette_picture(job: Job, folder: Path) -> Path:
    file = folder / "palette.png"
    job.dataset.fetch("palette/palette.png", file)
    return file


def _best_checkpoint(job: Job, folder: Path) -> Path:
    return fetch_checkpoint(job.store.below("best"), folder)  # MLflow takes local folders only


def _signs(checkpoint: Checkpoint) -> tuple[Advised, ...]:
    return with_advice(checkpoint.signs, checkpoint.recipe)


def _previous(job: Job, *, resume: bool) -> Checkpoint | None:
    """The checkpoint to resume from, if ``--resume`` asks for it and it is of the same training."""
    out, last = job.store.show(), job.store.below("last")
    exists = has_checkpoint(last)
    if not exists and job.store.exists("dataset.json"):
        raise WrongCallError(
            f"expected a folder for a training, {out} is a dataset; choose another"
        )
    if exists and not resume:
        raise WrongCallError(
            f"{out} already holds a training; continue it with --resume or choose another --out"
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
    # How often checkpoints are saved does not change what is learned, nor does compilation.
    ignored = ("train.save_every", "train.compile")
    if changes := differences(previous.recipe.flat(), job.recipe.flat(), ignored=ignored):
        raise WrongCallError(
            f"{out} was trained with another recipe: {changes}; "
            "use the same settings or choose another --out"
        )
    return previous
