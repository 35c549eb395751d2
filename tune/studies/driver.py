"""The driver of a study: what the next trial is, whether it continues, and how it ended.

Ray Tune asks it through `tune.studies.hooks`. It holds nothing that a kill would lose: the search
is in the journal, a trial's state is in its checkpoints.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from colorcore.checkpoints.checkpoint import (
    CheckpointError,
    has_checkpoint,
    load_checkpoint,
    remove_checkpoint,
)
from colorcore.recipes.recipe import RecipeError
from colorcore.storage.store import Store
from pipelines.errors import JobError
from pipelines.run_log.spool import FOLDER as SPOOLS
from pipelines.training.job import Job, prepare_job
from tune.search.journal import Journal
from tune.search.objective import Ending
from tune.search.search import Search, TrialRecord
from tune.search.settings import StudySettings
from tune.search.space import with_values
from tune.studies.results import TRIAL_FOLDERS, trial_folder, write_recipe, write_results
from tune.studies.runs import StudyRun, start_trial
from tune.trials.layout import Layout
from tune.trials.rank import Task
from tune.trials.stepwise import TrialResult


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """The progress of a study, for a display."""

    ended: int
    trials: int
    running: int
    epochs: int
    best: TrialRecord | None


@dataclass(frozen=True, slots=True)
class StudyEvents:
    """Whom a study tells what happens.

    on_retry    a trial's number, and how its processes were lost
    on_warning  what went wrong without ending the study
    """

    on_trial: Callable[[TrialRecord], None] = lambda _: None
    on_progress: Callable[[StudyProgress], None] = lambda _: None
    on_retry: Callable[[int, str], None] = lambda *_: None
    on_warning: Callable[[str], None] = lambda _: None


@dataclass(slots=True)
class _Running:
    """What the driver knows about a running trial.

    epochs  the epoch of the last validation in the journal
    """

    record: TrialRecord
    attempts: int
    epochs: int
    since: float
    decoding: bool = False
    in_epochs: float = 0.0
    ending: Ending | None = None


Next = tuple[TrialRecord, Task]


@dataclass(frozen=True, slots=True)
class Ended:
    """A trial that has ended, or that has chosen a decoding."""

    record: TrialRecord
    decoding: bool = False


@dataclass(slots=True)
class StudyDriver:
    """Decides what Ray Tune asks during a study; see the module.

    trials   total number of trials
    keep     number of best trials whose checkpoints are kept
    retries  retries of a trial whose processes are lost
    """

    dataset: Store
    settings: StudySettings
    out: Store
    search: Search
    journal: Journal
    run: StudyRun
    name: str
    trials: int
    keep: int
    retries: int
    layout: Layout
    events: StudyEvents = field(default_factory=StudyEvents)
    is_over_budget: bool = False
    running: dict[str, _Running] = field(default_factory=dict)
    """By Ray Tune's ID of the trial."""
    spent: list[tuple[float, float]] = field(default_factory=list)
    """Wall time and time in epochs of each trial that has ended, in seconds."""
    _waiting: list[TrialRecord] | None = None
    """Trials that an interrupted study left unfinished."""
    _to_decode: list[TrialRecord] | None = None
    _with_checkpoints: set[int] | None = None
    _next_table: float = 0.0
    _ended: int = 0
    _epochs: int = 0
    _best: TrialRecord | None = None

    # -- what is next ---------------------------------------------------------------------------

    def next_task(self, tune_id: str) -> Next | Literal["wait", "finished"]:
        """The next trial, for Ray Tune to run as ``tune_id``.

        First those that an interrupted study left unfinished, then new ones; at last, when no
        trial runs any more, the best choose a decoding.
        """
        while (record := self._next_record()) is not None:
            if (task := self._start(tune_id, record)) is not None:
                return record, task
            self.close(self.end(tune_id))
        if self._to_decode is None:
            if self.running:
                return "wait"
            self._to_decode = [record for record in self.best() if self._lacks_decoding(record)]
        while self._to_decode:
            record = self._to_decode.pop(0)
            if (task := self._start(tune_id, record, decoding=True)) is not None:
                return record, task
            self.close(self.end(tune_id))
        return "finished"

    def _start(self, tune_id: str, record: TrialRecord, *, decoding: bool = False) -> Task | None:
        """A trial's task; None if it cannot start, which is its ending then."""
        trial = _Running(record, record.attempts, record.epochs, time.monotonic(), decoding)
        self.running[tune_id] = trial
        job = self._job(record)
        if isinstance(job, str):
            trial.ending = Ending("failed", job)
            return None
        self.progress()
        return Task(job, self.layout.workers, self.layout.use_gpu, decoding)

    def _next_record(self) -> TrialRecord | None:
        if self._waiting is None:
            records = self.search.records()
            self._waiting = [record for record in records if record.outcome is None]
            self._ended = len(records) - len(self._waiting)
            self._epochs = sum(record.epochs for record in records)
            self._best = next(iter(self.search.ranked()), None)
        if self.is_over_budget:
            return None
        if self._waiting:
            return self._waiting.pop(0)
        if self.search.count() < self.search.most(self.trials):
            return self.search.ask(self.settings.first_values())
        return None

    def _job(self, record: TrialRecord) -> Job | str:
        """The trial's training job, or why there is none."""
        from colorcore.dataset.layout import DatasetError

        metric = {"train.metric": self.settings.objective.metrics[0]}
        try:
            recipe = with_values(self.settings.recipe, {**record.values, **metric})
            folder = trial_folder(self.out, record.number)
            job = prepare_job(self.dataset, recipe, folder, self.settings.workers)
        except (JobError, RecipeError, DatasetError) as error:
            return str(error)
        run = start_trial(self.run, self.name, record, job)
        if record.run_id != run.run_id:
            self.search.note(record.number, run_id=run.run_id)
        return replace(job, run=run, threads=job.threads or self.layout.threads)

    # -- while it runs --------------------------------------------------------------------------

    def report(self, tune_id: str, result: TrialResult) -> bool:
        """Record a trial's report; returns whether the trial ends here."""
        trial = self.running[tune_id]
        if failure := result.get("failure"):
            trial.ending = Ending("failed", failure)
        elif "epoch" in result and not trial.decoding and result["epoch"] > trial.epochs:
            self._epochs += result["epoch"] - trial.epochs
            trial.epochs = result["epoch"]
            trial.in_epochs += result["seconds"]
            trial.ending = self.search.report(
                trial.record.number,
                result["epoch"],
                result["scores"],
                tuple(result["signs"]),
                is_last=result["done"],
            )
            self.progress()
        return trial.ending is not None

    def allowed_failures(self, tune_id: str) -> int:
        """How many more losses of its processes a trial survives, over all calls of `cc tune`."""
        trial = self.running[tune_id]
        return self.retries if trial.decoding else max(0, self.retries + 1 - trial.record.attempts)

    def retry(self, tune_id: str, why: str) -> None:
        """A trial's processes were lost, and Ray Tune starts it again."""
        trial = self.running[tune_id]
        trial.attempts += 1
        if not trial.decoding:
            self.search.note(trial.record.number, attempts=trial.attempts)
        self.events.on_retry(trial.record.number, why)

    # -- when it ends ---------------------------------------------------------------------------

    def end(self, tune_id: str, error: str | None = None) -> Ended:
        """Write into the journal how a trial ended.

        error  how its processes were lost, if its retries are used up
        """
        trial = self.running.pop(tune_id)
        ending = trial.ending or Ending("finished", "")
        if error is not None:
            times = "once" if trial.attempts == 1 else f"{trial.attempts} times"
            ending = Ending("failed", f"lost its processes {times}; last error: {error}")
        if trial.decoding:
            if ending.outcome == "failed":
                number = trial.record.number
                self.events.on_warning(f"trial {number} has no chosen decoding: {ending.reason}")
            return Ended(trial.record, decoding=True)
        took = time.monotonic() - trial.since
        self.spent.append((took, trial.in_epochs))
        scores, ending = self._scores(trial.record.number, ending)
        record = replace(
            self.search.record(trial.record.number),
            outcome=ending.outcome,
            reason=ending.reason,
            scores=scores,
            attempts=trial.attempts,
            seconds=took,
            seconds_in_epochs=trial.in_epochs,
        )
        self.search.tell(record)
        self._ended += 1
        return Ended(record)

    def close(self, ended: Ended) -> None:
        """End a trial's run and update the study's files, once no process logs to the run."""
        record = ended.record
        if ended.decoding:
            self.run.close_trial(record, self.settings.objective)
            return
        ranked = self.search.ranked()
        self._best = next(iter(ranked), None)
        self.run.trial_ended(record, ranked, self.settings.objective)
        self._remove_checkpoints(record.number, ranked)
        self._write_table()
        self.events.on_trial(record)
        self.progress()

    def _write_table(self) -> None:
        """Write the table of trials, unless that would take more than 5% of the time."""
        if time.monotonic() >= self._next_table:
            since = time.monotonic()
            write_results(self.out, self.search)
            self._next_table = time.monotonic() + 20 * (time.monotonic() - since)

    def interrupt(self) -> None:
        """Close the runs of the trials that still run; they continue when the study is resumed."""
        if self.running:
            write_results(self.out, self.search)
        for trial in self.running.values():
            self.run.interrupted(self.search.record(trial.record.number))
        self.running.clear()

    def _scores(self, number: int, ending: Ending) -> tuple[dict[str, float], Ending]:
        """The scores of the trial's best checkpoint, and the ending: failed without scores."""
        best = trial_folder(self.out, number).below("best")
        try:
            scores = load_checkpoint(best).scores if has_checkpoint(best) else {}
            if ending.outcome == "finished":
                if not scores:
                    raise CheckpointError(
                        f"found none in {best.show()}; set --out to a folder on a disk that all "
                        "nodes share, or to s3://bucket/folder"
                    )
                self.settings.objective.values(scores)
        except (CheckpointError, KeyError, ValueError) as error:
            return {}, Ending("failed", f"no usable best checkpoint: {error}")
        return scores, ending

    def _remove_checkpoints(self, number: int, ranked: list[TrialRecord]) -> None:
        """Remove the checkpoints of all trials but the best and those that have not ended."""
        if self._with_checkpoints is None:
            self._with_checkpoints = {int(name) for name in self.out.folders(TRIAL_FOLDERS)}
        self._with_checkpoints.add(number)
        kept = {each.number for each in ranked[: self.keep]}
        kept |= {trial.record.number for trial in self.running.values()}
        kept |= {record.number for record in self._waiting or []}
        if not self.settings.objective.is_single:
            kept |= {each.number for each in self.search.front()}
        self.journal.flush()  # who resumes without the checkpoints must know that they ended
        for other in self._with_checkpoints - kept:
            folder = trial_folder(self.out, other)
            for name in ("last", "best"):
                remove_checkpoint(folder.below(name))
            if folder.local is not None:
                for empty in (folder.local / SPOOLS, folder.local):
                    with contextlib.suppress(OSError):  # a spool with unsent records stays
                        empty.rmdir()
        self._with_checkpoints &= kept

    # -- results --------------------------------------------------------------------------------

    def best(self) -> list[TrialRecord]:
        """The best trial; with two metrics, the Pareto front."""
        single = self.settings.objective.is_single
        return self.search.ranked()[:1] if single else self.search.front()

    def _lacks_decoding(self, record: TrialRecord) -> bool:
        folder = trial_folder(self.out, record.number)
        return has_checkpoint(folder.below("last")) and not load_checkpoint(folder).decoded

    def progress(self) -> None:
        """Report the progress."""
        trials = max(self.search.most(self.trials), self._ended + len(self.running))
        progress = StudyProgress(self._ended, trials, len(self.running), self._epochs, self._best)
        self.events.on_progress(progress)

    def finish(self) -> dict[str, dict[str, float]]:
        """Write the study's results once all trials have ended; returns the importances.

        Raises:
            JobError: no trial finished.
        """
        ranked = self.search.ranked()
        if not ranked:
            raise JobError(self._why_none_finished())
        write_recipe(self.out, ranked[0], self.settings.recipe, self.settings.objective)
        return write_results(self.out, self.search, final=True)

    def _why_none_finished(self) -> str:
        records = self.search.records()
        ended = [record for record in records if record.outcome is not None]
        if not ended:
            return "no trial finished within the time budget; continue with --resume"
        hint = ""
        if pruned := sum(record.outcome == "pruned" for record in ended):
            hint = (
                f"; {pruned} of {len(ended)} were pruned for collapsed colours; to keep such "
                "trials, start a study with prune_signs = false under [study] in --space"
            )
        if len(ended) < len(records):
            hint += "; continue with --resume"
        elif any(record.outcome == "stopped" for record in ended):
            hint += "; continue with --resume and more --trials"
        last = ended[-1]
        return f"no trial finished; the last of {len(ended)} {last.outcome}: {last.reason}{hint}"

    def overhead(self) -> float | None:
        """Mean seconds per trial beyond its epochs, over the trials that ended in this call."""
        if not self.spent:
            return None
        return sum(took - epochs for took, epochs in self.spent) / len(self.spent)
