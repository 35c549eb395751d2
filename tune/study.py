"""The job of `cc tune`: dataset, recipe and search space -> the best recipe and its model.

A study's folder holds everything that is needed to resume it: the search in ``study.log``, its
settings in ``study.json``, each trial's checkpoints under ``trials/``. A killed study continues
with ``resume``: trials that have ended are not rerun, interrupted ones resume from their last
validation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colorcore.recipes.recipe import RecipeError
from colorcore.storage.location import absolute_store
from colorcore.storage.locks import try_lock
from colorcore.storage.store import Store
from pipelines.cluster import ray_session
from pipelines.errors import JobError, WrongCallError, differences
from pipelines.tracking.names import DATASET_TAG
from pipelines.tracking.redact import without_secrets
from pipelines.training.job import Job, prepare_job
from tune.driver import StudyDriver, StudyProgress
from tune.runs import StudyRun
from tune.search import Search, TrialRecord, dumps
from tune.settings import KEEP, RETRIES, StudySettings
from tune.slots import layout_for
from tune.space import Axis, with_values

FORMAT = 1
SETTINGS = "study.json"
JOURNAL = "study.log"


@dataclass(frozen=True, slots=True)
class StudyReport:
    """The results of a study.

    outcomes     number of trials by outcome
    best         finished trials by the first metric, best first
    front        with two metrics: the Pareto front of the finished trials
    importances  by metric: each searched path's share of the variance
    model        URI of the best trial's registered model; None if it was not registered
    overhead     mean seconds per trial beyond its epochs, over the trials that ended in this call
    """

    out: Path
    name: str
    metrics: tuple[str, ...]
    outcomes: dict[str, int]
    best: list[TrialRecord]
    front: list[TrialRecord]
    importances: dict[str, dict[str, float]]
    tracking_uri: str
    run_id: str
    model: str | None
    overhead: float | None


def tune(
    dataset: str | Path,
    settings: StudySettings,
    out: Path,
    *,
    trials: int,
    tracking_uri: str,
    name: str = "study",
    concurrent: int | None = None,
    resume: bool = False,
    address: str | None = None,
    keep: int = KEEP,
    retries: int = RETRIES,
    register: str | None = None,
    on_trial: Callable[[TrialRecord], None] = lambda _: None,
    on_progress: Callable[[StudyProgress], None] = lambda _: None,
    on_retry: Callable[[int, str], None] = lambda *_: None,
    on_unsent: Callable[[str], None] = lambda _: None,
) -> StudyReport:
    """Search the space on the dataset, with ``trials`` trials in total.

    ``keep``, ``retries`` and ``register`` are as in :class:`tune.settings.StudyOptions`.
    ``on_retry`` receives a trial's number and how its processes were lost; ``on_unsent`` receives
    the location of records that the tracking server did not accept.

    Raises:
        WrongCallError: ``out`` holds another study, a value of the space does not work on the
            dataset, or the cluster is too small.
        DatasetError, FileNotFoundError: no finished dataset, or no palette in it.
        JobError: Ray or MLflow cannot be reached, or no trial finished.
    """
    store = absolute_store(dataset)
    base = check_space(store, settings)
    out = out.absolute()
    with _alone(out):
        identity = {**settings.as_record(), "dataset": base.fingerprint, **_palette(base)}
        run_id = _open(out, identity, resume=resume)
        search = Search(settings.space, settings.objective, settings.search, out / JOURNAL)
        params = {
            **base.params,
            **{f"space.{axis.path}": str(axis) for axis in settings.space.axes},
            "study.metrics": ", ".join(settings.objective.metrics),
            **{f"study.{key}": value for key, value in asdict(settings.search).items()},
        }
        tags = {DATASET_TAG: str(dataset)}
        run = StudyRun.start(tracking_uri, name, params, tags, run_id, out)
        _write(
            out / SETTINGS, {"format": FORMAT, "name": name, "run_id": run.run.run_id} | identity
        )
        driver = StudyDriver(
            store, settings, out, search, run, name, trials, keep, retries,
            on_trial, on_progress, on_retry,
        )  # fmt: skip
        status = "FAILED"
        try:
            with ray_session(address):
                layout = layout_for(settings.workers, concurrent)
                driver.run_trials(layout)
            importances = driver.finish()
            model = run.register(search.ranked()[0], register or name)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if unsent := run.close(status, search):
                on_unsent(str(unsent))
    return StudyReport(
        out=out,
        name=name,
        metrics=settings.objective.metrics,
        outcomes=_counts(search.records()),
        best=search.ranked(),
        front=[] if settings.objective.is_single else search.front(),
        importances=importances,
        tracking_uri=without_secrets(tracking_uri),
        run_id=run.run.run_id,
        model=model,
        overhead=driver.overhead(),
    )


# -- before anything starts --------------------------------------------------------------------


def check_space(dataset: Store, settings: StudySettings) -> Job:
    """Check that every value of the space works on the dataset; returns the recipe's own job.

    Raises:
        WrongCallError: a value does not work; the message names it.
    """
    base = _first_that_works(dataset, settings)
    for axis in settings.space.axes:
        if axis.path.partition(".")[0] not in ("data", "model"):
            continue  # the dataset has no bearing on the other settings
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
    return prepare_job(dataset, recipe, Path("unused"), settings.workers)


def _check_value(dataset: Store, settings: StudySettings, axis: Axis, value: Any) -> None:
    from colorcore.dataset.layout import DatasetError

    try:
        recipe = with_values(settings.recipe, {axis.path: value})
        prepare_job(dataset, recipe, Path("unused"), settings.workers)
    except (JobError, RecipeError, DatasetError) as error:
        raise WrongCallError(
            f"{axis.path} = {value} in the search space does not work: {error}"
        ) from error


def _palette(job: Job) -> dict[str, Any]:
    return {"palette": job.params.get("palette.fingerprint")}


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Lock the study's folder against a second `cc tune`; a killed process releases the lock."""
    with try_lock(out / ".lock") as held:
        if not held:
            raise WrongCallError(f"another cc tune is running in {out}; wait for it to end")
        yield


def _open(out: Path, identity: Mapping[str, Any], *, resume: bool) -> str | None:
    """The ID of the MLflow run of the study to resume; None for a new study."""
    file = out / SETTINGS
    if not file.exists():
        if resume:
            raise WrongCallError(
                f"nothing to resume: found no study in {out}; run without --resume to start one"
            )
        return None
    if not resume:
        raise WrongCallError(
            f"{out} already holds a study; continue it with --resume or choose another --out"
        )
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        if there["format"] != FORMAT:
            raise ValueError(f"format {there['format']}, expected {FORMAT}")
        before = _flat({key: there[key] for key in identity})
        run_id = str(there["run_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongCallError(f"cannot read {file}: {error}; choose another --out") from error
    asked = _flat(json.loads(json.dumps(identity)))
    if changes := differences(before, asked, ignored=("recipe.about",)):
        raise WrongCallError(
            f"{out} holds a study with other settings: {changes}; "
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


def _write(file: Path, value: Any) -> None:
    part = file.with_suffix(".part")
    part.write_text(dumps(value), encoding="utf-8")
    part.replace(file)


def _counts(records: list[TrialRecord]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        outcome = record.outcome or "interrupted"
        counts[outcome] = counts.get(outcome, 0) + 1
    return counts
