"""The job of `cc tune`: a dataset, a recipe and a space -> the best recipe and its model.

The driver draws values, starts trials, answers them after each validation, and writes everything
down before it goes on: the search in ``study.log``, each trial's checkpoints under ``trials/``,
runs in MLflow. A study that was killed goes on with ``resume``: ended trials stay as they are, and
interrupted ones go on from their last validation.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from colorcore.checkpoints.checkpoint import CheckpointError, has_checkpoint, load_checkpoint
from colorcore.recipes.recipe import Recipe, RecipeError
from colorcore.storage.store import Store, absolute_store
from pipelines.cluster import ray_session
from pipelines.errors import JobError, WrongCallError
from pipelines.run_log.spool import FOLDER as SPOOLS
from pipelines.tracking.redact import without_secrets
from pipelines.training.job import Job, prepare_job
from tune.desk import Validated, Verdict
from tune.objective import Objective
from tune.results import write_recipe, write_results
from tune.search import Search, SearchSettings, TrialRecord, dumps
from tune.space import Axis, Space, with_values
from tune.tracked import StudyRun, start_trial
from tune.trials import Ended, Layout, Trials, layout_for, trial_folder, trials_on

FORMAT = 1
SETTINGS = "study.json"
JOURNAL = "study.log"
KEEP = 5
"""Best trials whose checkpoints are kept, ``best`` and ``last``."""
RETRIES = 2
"""Further tries of a trial whose processes are lost."""


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """Where a study stands, for a display."""

    ended: int
    trials: int
    running: int
    epochs: int
    best: TrialRecord | None


@dataclass(frozen=True, slots=True)
class StudyReport:
    """What `cc tune` did.

    best      finished trials, the best first: one order by the first metric
    front     with two metrics: finished trials that none betters in both
    overhead  seconds a trial that its slot spent on other things than its epochs, in this call
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


@dataclass(frozen=True, slots=True)
class StudySettings:
    """What a study is; see :func:`tune`. It is compared on resuming."""

    recipe: Recipe
    space: Space
    objective: Objective
    search: SearchSettings
    workers: int

    def as_record(self) -> dict[str, Any]:
        """As nested plain values, for ``study.json``."""
        return {
            "recipe": self.recipe.values(),
            "space": self.space.tables(),
            "metrics": list(self.objective.metrics),
            "search": asdict(self.search),
            "workers": self.workers,
        }


@dataclass(slots=True)
class _Course:
    """What the driver keeps of a running trial."""

    attempts: int
    since: float
    seconds: float = 0.0
    in_epochs: float = 0.0
    jobs: list[Job] = field(default_factory=list)


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
    """Search the recipe's space on the dataset with so many trials in all.

    ``register`` is the model's name in MLflow's registry, the study's name by default; ``keep`` and
    ``retries`` are as :data:`KEEP` and :data:`RETRIES`. ``on_unsent`` is told where that lies which
    the tracking server could not be told.

    Raises:
        WrongCallError: ``out`` holds another study, a value of the space cannot work on the
            dataset, or the cluster is too small.
        DatasetError, FileNotFoundError: no finished dataset, or no palette in it.
        JobError: Ray or MLflow cannot be reached, or no trial has come to its end.
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
        tags = {"colorcore.dataset": str(dataset)}
        run = StudyRun.start(tracking_uri, name, params, tags, run_id, out)
        _write(
            out / SETTINGS, {"format": FORMAT, "name": name, "run_id": run.run.run_id} | identity
        )
        driver = _Driver(
            store, settings, out, search, run, name, trials, keep, retries,
            on_trial, on_progress, on_retry,
        )  # fmt: skip
        status = "FAILED"
        try:
            with ray_session(address):
                layout = layout_for(settings.workers, concurrent)
                driver.run(layout)
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
    """Whether every value of the space works on the dataset; returns the recipe's own job.

    Raises:
        WrongCallError: naming the value that does not.
    """
    base = _first_that_works(dataset, settings)
    for axis in settings.space.axes:
        if axis.path.partition(".")[0] not in ("data", "model"):
            continue  # what else a recipe says, a dataset has no part in
        for value in axis.probes():
            _check_value(dataset, settings, axis, value)
    return base


def _first_that_works(dataset: Store, settings: StudySettings) -> Job:
    """The job of the recipe; searched values that do not work as they are do not matter."""
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
        raise WrongCallError(f"the space's {axis.path} = {value} cannot work: {error}") from error


def _palette(job: Job) -> dict[str, Any]:
    return {"palette": job.params.get("palette.fingerprint")}


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the study's folder against a second `cc tune`; let go by the system if this one dies."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WrongCallError(f"another cc tune works in {out}; wait for it to end") from error
        yield


def _open(out: Path, identity: Mapping[str, Any], *, resume: bool) -> str | None:
    """The study's run in MLflow, if there is a study to go on with."""
    file = out / SETTINGS
    if not file.exists():
        if resume:
            raise WrongCallError(f"nothing to resume: found no study in {out}")
        return None
    if not resume:
        raise WrongCallError(
            f"{out} holds a study already; go on with --resume or choose another --out"
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
    differences = [
        f"{key} is {before.get(key)} there, {asked.get(key)} asked"
        for key in sorted(before.keys() | asked.keys())
        if before.get(key) != asked.get(key) and key != "recipe.about"
    ]
    if differences:
        raise WrongCallError(
            f"{out} holds another study: {'; '.join(differences)}; "
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


# -- the course of a study ---------------------------------------------------------------------


@dataclass(slots=True)
class _Driver:
    """Starts trials, answers them, and writes down how they end."""

    dataset: Store
    settings: StudySettings
    out: Path
    search: Search
    tracked: StudyRun
    name: str
    trials: int
    keep: int
    retries: int
    on_trial: Callable[[TrialRecord], None]
    on_progress: Callable[[StudyProgress], None]
    on_retry: Callable[[int, str], None]
    courses: dict[int, _Course] = field(default_factory=dict)
    spent: list[tuple[float, float]] = field(default_factory=list)

    def run(self, layout: Layout) -> None:
        """Until there are as many ended trials as were asked for."""
        waiting = self.search.unfinished()
        try:
            with trials_on(layout) as running:
                while True:
                    self._fill(running, waiting, layout)
                    self._progress(running)
                    if not running.running:
                        break
                    for event in running.wait():
                        if isinstance(event, Validated):
                            running.answer(event, self._validated(event))
                        else:
                            self._ended(event, running)
                for record in self.chosen():
                    self._decode(record, running, layout)
        finally:
            for number in self.courses:  # those that were interrupted
                self.tracked.interrupted(self.search.record(number))

    def _fill(self, running: Trials, waiting: list[TrialRecord], layout: Layout) -> None:
        """Start trials until the slots are full or there are enough."""
        while running.has_room:
            if waiting:
                record = waiting.pop(0)
            elif len(self.search.records()) < self.trials:
                record = self.search.ask(self.settings.space.first_values(self.settings.recipe))
            else:
                return
            course = self.courses[record.number] = _Course(
                record.attempts, time.monotonic(), record.seconds, record.seconds_in_epochs
            )
            job = self._job(record, layout)
            if isinstance(job, str):
                self._close(record.number, Verdict("failed", job))
                continue
            course.jobs = [job]
            running.start(record.number, course.attempts, job)

    def _job(self, record: TrialRecord, layout: Layout) -> Job | str:
        """What the trial trains, or why it cannot."""
        from colorcore.dataset.layout import DatasetError

        metric = {"train.metric": self.settings.objective.metrics[0]}
        folder = trial_folder(self.out, record.number)
        try:
            recipe = with_values(self.settings.recipe, {**record.values, **metric})
            job = prepare_job(self.dataset, recipe, folder, self.settings.workers)
        except (JobError, RecipeError, DatasetError) as error:
            return str(error)
        run = start_trial(self.tracked, self.name, record, job)
        if record.run_id != run.run_id:
            self.search.note(record.number, run_id=run.run_id)
        return replace(job, run=run, threads=layout.threads)

    def _validated(self, news: Validated) -> Verdict | None:
        self.courses[news.number].in_epochs += news.seconds
        return self.search.report(
            news.number, news.epoch, news.scores, news.signs, is_last=news.is_last
        )

    def _ended(self, event: Ended, running: Trials) -> None:
        course = self.courses[event.number]
        if event.lost is not None and course.attempts <= self.retries:
            course.attempts += 1
            self.search.note(event.number, attempts=course.attempts)
            self.on_retry(event.number, event.lost)
            running.start(event.number, course.attempts, course.jobs[0])
            return
        if event.lost is not None:
            reason = f"its processes were lost {course.attempts} times, the last: {event.lost}"
            self._close(event.number, Verdict("failed", reason))
        elif event.failure is not None:
            self._close(event.number, Verdict("failed", event.failure))
        else:
            self._close(event.number, event.verdict or Verdict("finished", ""))

    def _close(self, number: int, verdict: Verdict) -> None:
        """Write down how a trial ended, everywhere."""
        course = self.courses[number]
        took = time.monotonic() - course.since
        self.spent.append((took, course.in_epochs))
        scores, verdict = self._scores(number, verdict)
        record = replace(
            self.search.record(number),
            outcome=verdict.outcome,
            reason=verdict.reason,
            scores=scores,
            attempts=course.attempts,
            seconds=course.seconds + took,
            seconds_in_epochs=course.in_epochs,
        )
        self.search.tell(record)
        del self.courses[number]
        self.tracked.trial_ended(record, self.search.ranked(), self.settings.objective)
        self._forget_weights(record)
        write_results(self.out, self.search)
        self.on_trial(record)

    def _scores(self, number: int, verdict: Verdict) -> tuple[dict[str, float], Verdict]:
        """Scores of the trial's best checkpoint, and the verdict that they leave."""
        best = trial_folder(self.out, number) / "best"
        try:
            scores = load_checkpoint(best).scores if has_checkpoint(best) else {}
            if verdict.outcome == "finished":
                self.settings.objective.values(scores)
        except (CheckpointError, KeyError, ValueError) as error:
            return {}, Verdict("failed", f"it left no best checkpoint: {error}")
        return scores, verdict

    def _forget_weights(self, record: TrialRecord) -> None:
        """Keep the checkpoints of the best trials, and no others."""
        kept = {each.number for each in self.search.ranked()[: self.keep]}
        if not self.settings.objective.is_single:
            kept |= {each.number for each in self.search.front()}
        for folder in (self.out / "trials").glob("*"):
            if int(folder.name) in kept or int(folder.name) in self.courses:
                continue
            for pattern in ("last", "best", ".last.*", ".best.*"):
                for old in folder.glob(pattern):
                    shutil.rmtree(old, ignore_errors=True)
            for empty in (folder / SPOOLS, folder):
                with contextlib.suppress(OSError):  # what a server missed stays
                    empty.rmdir()

    def chosen(self) -> list[TrialRecord]:
        """The best trial; of a study with two metrics the front."""
        single = self.settings.objective.is_single
        return self.search.ranked()[:1] if single else self.search.front()

    def _decode(self, record: TrialRecord, running: Trials, layout: Layout) -> None:
        """Have a decoding chosen for a trial's best checkpoint, once."""
        folder = trial_folder(self.out, record.number)
        if not has_checkpoint(folder / "last") or load_checkpoint(folder / "best").decoded:
            return
        job = self._job(record, layout)
        if isinstance(job, str):
            return
        for attempt in range(record.attempts + 1, record.attempts + 2 + self.retries):
            running.start(record.number, attempt, job, decoding=True)
            (event,) = [each for each in running.wait() if isinstance(each, Ended)]
            if event.lost is None:
                break
            self.on_retry(record.number, event.lost)
        self.tracked.close_trial(record, self.settings.objective)

    def _progress(self, running: Trials) -> None:
        records = self.search.records()
        ended = [record for record in records if record.outcome is not None]
        self.on_progress(
            StudyProgress(
                ended=len(ended),
                trials=max(self.trials, len(records)),
                running=len(running.running),
                epochs=sum(record.epochs for record in records),
                best=next(iter(self.search.ranked()), None),
            )
        )

    def finish(self) -> dict[str, dict[str, float]]:
        """The study's results, once all trials have ended; the shares of importance.

        Raises:
            JobError: no trial came to its end.
        """
        ranked = self.search.ranked()
        if not ranked:
            records = self.search.records()
            pruned = sum(record.outcome == "pruned" for record in records)
            hint = f"; {pruned} were ended for signs (--no-prune-signs)" if pruned else ""
            if any(record.outcome == "stopped" for record in records):
                hint += "; go on with more --trials and --resume"
            raise JobError(
                f"no trial came to its end; the last of {len(records)}: {records[-1].reason}{hint}"
            )
        write_recipe(self.out, ranked[0], self.settings.recipe, self.settings.objective)
        return write_results(self.out, self.search, final=True)

    def overhead(self) -> float | None:
        """Seconds a trial beyond its epochs, of the trials that ended in this call."""
        if not self.spent:
            return None
        return sum(took - epochs for took, epochs in self.spent) / len(self.spent)


def _counts(records: list[TrialRecord]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in records:
        outcome = record.outcome or "interrupted"
        counts[outcome] = counts.get(outcome, 0) + 1
    return counts
