"""The job of `cc tune`: dataset, recipe and search space -> the best recipe and its model.

A study's folder holds everything that is needed to resume it: the search in ``study.log``, its
settings in ``study.json``, each trial's checkpoints under ``trials/``. A killed study continues
with ``resume``: trials that have ended are not rerun, interrupted ones resume from their last
validation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colorcore.recipes.recipe import RecipeError
from colorcore.storage.location import absolute_store
from colorcore.storage.store import Store
from pipelines.cluster import ray_session, say_if_busy
from pipelines.errors import JobError, WrongCallError, differences
from pipelines.tracking.names import DATASET_TAG
from pipelines.tracking.redact import without_secrets
from pipelines.training.interrupts import catch_interrupts
from pipelines.training.job import Job, prepare_job, require_encoder
from tune.search.journal import open_journal
from tune.search.search import Search, TrialRecord, dumps
from tune.search.settings import KEEP, RETRIES, StudySettings
from tune.search.space import Axis, with_values
from tune.studies.driver import StudyDriver, StudyEvents
from tune.studies.results import BEST, TRIALS
from tune.studies.runs import StudyRun
from tune.trials.layout import layout_for

FORMAT = 1
SETTINGS = "study.json"


@dataclass(frozen=True, slots=True)
class StudyReport:
    """The results of a study.

    outcomes     number of trials by outcome
    best         finished trials by the first metric, best first
    front        with two metrics: the Pareto front of the finished trials
    importances  by metric: each searched path's share of the variance
    recipe       location of the best trial's recipe
    table        location of the table of trials
    model        URI of the best trial's registered model; None if it was not registered
    overhead     mean seconds per trial beyond its epochs, over the trials that ended in this call
    """

    out: Path | str
    name: str
    metrics: tuple[str, ...]
    outcomes: dict[str, int]
    best: list[TrialRecord]
    front: list[TrialRecord]
    importances: dict[str, dict[str, float]]
    recipe: str
    table: str
    tracking_uri: str
    run_id: str
    model: str | None
    overhead: float | None


def tune(
    dataset: str | Path,
    settings: StudySettings,
    out: str | Path,
    *,
    trials: int,
    tracking_uri: str,
    name: str = "study",
    concurrent: int | None = None,
    time_budget_s: float | None = None,
    resume: bool = False,
    address: str | None = None,
    keep: int = KEEP,
    retries: int = RETRIES,
    register: str | None = None,
    events: StudyEvents | None = None,
) -> StudyReport:
    """Search the space on the dataset, with ``trials`` trials in total.

    ``keep``, ``retries`` and ``register`` are as in :class:`tune.search.settings.StudyOptions`.
    After ``time_budget_s`` seconds trials that still run are interrupted; ``resume`` continues
    them.

    Raises:
        WrongCallError: ``out`` holds another study, a value of the space does not work on the
            dataset, or the cluster is too small.
        DatasetError, FileNotFoundError: no finished dataset, or no palette in it.
        JobError: Ray or MLflow cannot be reached, or no trial finished.
        StorageError: a remote ``out`` or dataset cannot be reached.
        KeyboardInterrupt: Ctrl-C or SIGTERM; ``resume`` continues the study.
    """
    deadline = None if time_budget_s is None else time.monotonic() + time_budget_s
    events = events or StudyEvents()
    base = check_space(absolute_store(dataset), settings)
    store = absolute_store(out)
    with catch_interrupts() as interrupts, open_journal(store) as journal:
        identity = {**settings.as_record(), "dataset": base.fingerprint, **_palette(base)}
        run_id = _open(store, identity, resume=resume)
        search = Search(
            settings.space,
            settings.objective,
            settings.search,
            journal.file,
            settings.recipe.train.epochs,
        )
        run = _start_run(store, settings, base, name, tracking_uri, str(dataset), run_id)
        if resume:
            run.close_ended(search.ended(), settings.objective)
        record = {"format": FORMAT, "name": name, "run_id": run.run.run_id} | identity
        store.write(SETTINGS, dumps(record).encode())
        status = "FAILED"
        try:
            with ray_session(address):
                interrupts.install()  # again: Ray takes SIGTERM when it connects
                layout = layout_for(settings.workers, concurrent, may_grow=address is not None)
                say_if_busy(layout.workers, gpus=layout.use_gpu)
                driver = StudyDriver(
                    absolute_store(dataset), settings, store, search, journal, run, name, trials,
                    keep, retries, layout, events,
                )  # fmt: skip
                _run(driver, deadline)
            importances = driver.finish()
            best = search.ranked()[0]
            model = None
            if not settings.objective.missed(best.scores):
                model = run.register(best, register or name)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if unsent := run.close(status, search):
                events.on_warning(str(unsent))
        return StudyReport(
            out=Path(out) if store.local is not None else store.show(),
            name=name,
            metrics=settings.objective.metrics,
            outcomes=_counts(search.records()),
            best=search.ranked(),
            front=[] if settings.objective.is_single else search.front(),
            importances=importances,
            recipe=_as_given(out, store, BEST),
            table=_as_given(out, store, TRIALS),
            tracking_uri=without_secrets(tracking_uri),
            run_id=run.run.run_id,
            model=model,
            overhead=driver.overhead(),
        )


def _as_given(out: str | Path, store: Store, name: str) -> str:
    """The location of a file in ``out``, local ones as the user wrote them."""
    return str(Path(out) / name) if store.local is not None else store.show(name)


def _run(driver: StudyDriver, deadline: float | None) -> None:
    """Run the trials until all have ended, or until the deadline."""
    from tune.studies.hooks import run_study

    try:
        run_study(driver, deadline)
        if driver.is_over_budget:
            driver.interrupt()
            run_study(driver)  # the best so far still choose a decoding
    finally:
        driver.interrupt()


def _start_run(
    out: Store,
    settings: StudySettings,
    base: Job,
    name: str,
    tracking_uri: str,
    dataset: str,
    run_id: str | None,
) -> StudyRun:
    """Start or resume the study's run in MLflow."""
    params = {
        **base.params,
        **{f"space.{axis.path}": str(axis) for axis in settings.space.axes},
        "study.metrics": ", ".join(settings.objective.metrics),
        **{f"study.{key}": value for key, value in asdict(settings.search).items()},
    }
    if settings.objective.requirements:
        params["study.require"] = ", ".join(map(str, settings.objective.requirements))
    return StudyRun.start(tracking_uri, name, params, {DATASET_TAG: dataset}, run_id, out)


# -- before anything starts --------------------------------------------------------------------


def check_space(dataset: Store, settings: StudySettings) -> Job:
    """Check that every value of the space works on the dataset; returns the recipe's own job.

    Raises:
        WrongCallError: a value does not work; the message names it.
    """
    base = _first_that_works(dataset, settings)
    for axis in settings.space.axes:
        if axis.path.partition(".")[0] not in ("data", "model", "loss_options"):
            continue  # neither the dataset nor what is installed matters to other settings
        for value in axis.probes():
            _check_value(dataset, settings, axis, value)
    return base


def _first_that_works(dataset: Store, settings: StudySettings) -> Job:
    """The recipe's job, with a value of the space wherever its own lies outside."""
    values = {axis.path: axis.probes()[0] for axis in settings.space.axes}
    flat = settings.recipe.flat()
    own = {
        axis.path: flat[axis.path] if axis.holds(flat.get(axis.path)) else values[axis.path]
        for axis in settings.space.axes
    }
    recipe = with_values(settings.recipe, own)
    require_encoder(recipe)
    return prepare_job(dataset, recipe, Path("unused"), settings.workers)


def _check_value(dataset: Store, settings: StudySettings, axis: Axis, value: Any) -> None:
    from colorcore.dataset.layout import DatasetError

    try:
        recipe = with_values(settings.recipe, {axis.path: value})
        require_encoder(recipe)
        prepare_job(dataset, recipe, Path("unused"), settings.workers)
    except (JobError, RecipeError, DatasetError) as error:
        raise WrongCallError(
            f"{axis.path} = {value} in the search space does not work: {error}"
        ) from error


def _palette(job: Job) -> dict[str, Any]:
    return {"palette": job.params.get("palette.fingerprint")}


def _open(out: Store, identity: Mapping[str, Any], *, resume: bool) -> str | None:
    """The ID of the MLflow run of the study to resume; None for a new study."""
    where, file = out.show(), out.show(SETTINGS)
    if not out.exists(SETTINGS):
        if resume:
            raise WrongCallError(
                f"nothing to resume: found no study in {where}; run without --resume to start one"
            )
        return None
    if not resume:
        raise WrongCallError(
            f"{where} already holds a study; continue it with --resume or choose another --out"
        )
    try:
        there = _with_defaults(json.loads(out.read(SETTINGS)))
        if there["format"] != FORMAT:
            raise ValueError(f"format {there['format']}, expected {FORMAT}")
        before = _flat({key: there[key] for key in identity})
        run_id = str(there["run_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongCallError(f"cannot read {file}: {error}; choose another --out") from error
    asked = _flat(json.loads(json.dumps(identity)))
    if changes := differences(before, asked, ignored=("recipe.about", "recipe.train.compile")):
        raise WrongCallError(
            f"{where} holds a study with other settings: {changes}; "
            "repeat its settings or choose another --out"
        )
    return run_id


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _with_defaults(record: dict[str, Any]) -> dict[str, Any]:
    """The settings of a study, also of one from a version without these options."""
    search = record["search"]
    scheduler = "asha" if search["grace"] else "none"
    return {"require": [], **record, "search": {"sampler": "tpe", "scheduler": scheduler} | search}


def _counts(records: list[TrialRecord]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        outcome = record.outcome or "interrupted"
        counts[outcome] = counts.get(outcome, 0) + 1
    return counts
