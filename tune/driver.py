"""The driver of a study: starts trials, answers their reports, records how they end.

It holds nothing that a kill would lose: the search is in the journal, a trial's state is in its
checkpoints.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from colorcore.checkpoints.checkpoint import CheckpointError, has_checkpoint, load_checkpoint
from colorcore.recipes.recipe import RecipeError
from colorcore.storage.store import Store
from pipelines.errors import JobError
from pipelines.run_log.spool import FOLDER as SPOOLS
from pipelines.training.job import Job, prepare_job
from tune.objective import Ending, ValidationReport
from tune.results import write_recipe, write_results
from tune.runs import StudyRun, start_trial
from tune.search import Search, TrialRecord
from tune.settings import StudySettings
from tune.slots import Exit, Layout, Slots, slots_for, trial_folder
from tune.space import with_values


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """The progress of a study, for a display."""

    ended: int
    trials: int
    running: int
    epochs: int
    best: TrialRecord | None


@dataclass(slots=True)
class _RunningTrial:
    """What the driver knows about a running trial."""

    attempts: int
    since: float
    in_epochs: float = 0.0
    job: Job | None = None


@dataclass(slots=True)
class StudyDriver:
    """Runs the trials of a study; see the module."""

    dataset: Store
    settings: StudySettings
    out: Path
    search: Search
    run: StudyRun
    name: str
    trials: int
    keep: int
    retries: int
    on_trial: Callable[[TrialRecord], None]
    on_progress: Callable[[StudyProgress], None]
    on_retry: Callable[[int, str], None]
    active: dict[int, _RunningTrial] = field(default_factory=dict)
    spent: list[tuple[float, float]] = field(default_factory=list)

    def run_trials(self, layout: Layout) -> None:
        """Run trials until the requested number has ended."""
        waiting = self.search.unfinished()
        try:
            with slots_for(layout) as slots:
                while True:
                    self._fill(slots, waiting, layout)
                    self._progress(slots)
                    if not slots.running:
                        break
                    for event in slots.wait():
                        if isinstance(event, ValidationReport):
                            slots.answer(event, self._on_report(event))
                        else:
                            self._on_exit(event, slots)
                for record in self.best():
                    self._decode(record, slots, layout)
        finally:
            for number in self.active:  # only when interrupted
                self.run.interrupted(self.search.record(number))

    def _fill(self, slots: Slots, waiting: list[TrialRecord], layout: Layout) -> None:
        """Start trials until the slots are full or there are enough trials."""
        while slots.has_room:
            if waiting:
                record = waiting.pop(0)
            elif len(self.search.records()) < self.trials:
                record = self.search.ask(self.settings.space.first_values(self.settings.recipe))
            else:
                return
            trial = _RunningTrial(record.attempts, time.monotonic())
            self.active[record.number] = trial
            job = self._job(record, layout)
            if isinstance(job, str):
                self._close(record.number, Ending("failed", job))
                continue
            trial.job = job
            slots.start(record.number, trial.attempts, job)

    def _job(self, record: TrialRecord, layout: Layout) -> Job | str:
        """The trial's training job, or why there is none."""
        from colorcore.dataset.layout import DatasetError

        metric = {"train.metric": self.settings.objective.metrics[0]}
        folder = trial_folder(self.out, record.number)
        try:
            recipe = with_values(self.settings.recipe, {**record.values, **metric})
            job = prepare_job(self.dataset, recipe, folder, self.settings.workers)
        except (JobError, RecipeError, DatasetError) as error:
            return str(error)
        run = start_trial(self.run, self.name, record, job)
        if record.run_id != run.run_id:
            self.search.note(record.number, run_id=run.run_id)
        return replace(job, run=run, threads=job.threads or layout.threads)

    def _on_report(self, report: ValidationReport) -> Ending | None:
        trial = self.active.get(report.number)
        if trial is None:
            # Its processes were lost and it was given up before its last report was read.
            return None
        trial.in_epochs += report.seconds
        return self.search.report(
            report.number, report.epoch, report.scores, report.signs, is_last=report.is_last
        )

    def _on_exit(self, event: Exit, slots: Slots) -> None:
        trial = self.active[event.number]
        if event.lost is None:
            ending = event.ending or Ending("finished", "")
            if event.failure is not None:
                ending = Ending("failed", event.failure)
        elif trial.job is not None and trial.attempts <= self.retries:
            trial.attempts += 1
            self.search.note(event.number, attempts=trial.attempts)
            self.on_retry(event.number, event.lost)
            slots.start(event.number, trial.attempts, trial.job)
            return
        else:
            times = "once" if trial.attempts == 1 else f"{trial.attempts} times"
            ending = Ending("failed", f"lost its processes {times}; last error: {event.lost}")
        self._close(event.number, ending)

    def _close(self, number: int, ending: Ending) -> None:
        """Record how a trial ended: journal, MLflow, files."""
        trial = self.active[number]
        took = time.monotonic() - trial.since
        self.spent.append((took, trial.in_epochs))
        scores, ending = self._scores(number, ending)
        record = replace(
            self.search.record(number),
            outcome=ending.outcome,
            reason=ending.reason,
            scores=scores,
            attempts=trial.attempts,
            seconds=took,
            seconds_in_epochs=trial.in_epochs,
        )
        self.search.tell(record)
        del self.active[number]
        self.run.trial_ended(record, self.search.ranked(), self.settings.objective)
        self._delete_checkpoints()
        write_results(self.out, self.search)
        self.on_trial(record)

    def _scores(self, number: int, ending: Ending) -> tuple[dict[str, float], Ending]:
        """The scores of the trial's best checkpoint, and the ending: failed without scores."""
        best = trial_folder(self.out, number) / "best"
        try:
            scores = load_checkpoint(best).scores if has_checkpoint(best) else {}
            if ending.outcome == "finished":
                self.settings.objective.values(scores)
        except (CheckpointError, KeyError, ValueError) as error:
            return {}, Ending("failed", f"no usable best checkpoint: {error}")
        return scores, ending

    def _delete_checkpoints(self) -> None:
        """Delete the checkpoints of all trials but the best and the running ones."""
        kept = {each.number for each in self.search.ranked()[: self.keep]}
        if not self.settings.objective.is_single:
            kept |= {each.number for each in self.search.front()}
        for folder in (self.out / "trials").glob("*"):
            if int(folder.name) in kept or int(folder.name) in self.active:
                continue
            for pattern in ("last", "best", ".last.*", ".best.*"):
                for old in folder.glob(pattern):
                    shutil.rmtree(old, ignore_errors=True)
            for empty in (folder / SPOOLS, folder):
                with contextlib.suppress(OSError):  # a spool with unsent records stays
                    empty.rmdir()

    def best(self) -> list[TrialRecord]:
        """The best trial; with two metrics, the Pareto front."""
        single = self.settings.objective.is_single
        return self.search.ranked()[:1] if single else self.search.front()

    def _decode(self, record: TrialRecord, slots: Slots, layout: Layout) -> None:
        """Choose a decoding for a trial's best checkpoint, unless it has one."""
        folder = trial_folder(self.out, record.number)
        if not has_checkpoint(folder / "last") or load_checkpoint(folder / "best").decoded:
            return
        job = self._job(record, layout)
        if isinstance(job, str):
            return
        for attempt in range(record.attempts + 1, record.attempts + 2 + self.retries):
            slots.start(record.number, attempt, job, decoding=True)
            (event,) = [each for each in slots.wait() if isinstance(each, Exit)]
            if event.lost is None:
                break
            self.on_retry(record.number, event.lost)
        self.run.close_trial(record, self.settings.objective)

    def _progress(self, slots: Slots) -> None:
        records = self.search.records()
        ended = [record for record in records if record.outcome is not None]
        self.on_progress(
            StudyProgress(
                ended=len(ended),
                trials=max(self.trials, len(records)),
                running=len(slots.running),
                epochs=sum(record.epochs for record in records),
                best=next(iter(self.search.ranked()), None),
            )
        )

    def finish(self) -> dict[str, dict[str, float]]:
        """Write the study's results once all trials have ended; returns the importances.

        Raises:
            JobError: no trial finished.
        """
        ranked = self.search.ranked()
        if not ranked:
            records = self.search.records()
            last = records[-1]
            hint = ""
            if pruned := sum(record.outcome == "pruned" for record in records):
                hint = (
                    f"; {pruned} of {len(records)} were pruned for collapsed colours; to keep such "
                    "trials, start a study with prune_signs = false under [study] in --space"
                )
            if any(record.outcome == "stopped" for record in records):
                hint += "; continue with --resume and more --trials"
            raise JobError(
                f"no trial finished; the last of {len(records)} {last.outcome}: {last.reason}{hint}"
            )
        write_recipe(self.out, ranked[0], self.settings.recipe, self.settings.objective)
        return write_results(self.out, self.search, final=True)

    def overhead(self) -> float | None:
        """Mean seconds per trial beyond its epochs, over the trials that ended in this call."""
        if not self.spent:
            return None
        return sum(took - epochs for took, epochs in self.spent) / len(self.spent)
