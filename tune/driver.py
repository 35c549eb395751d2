"""The course of a study: start trials, answer them, write down how they end."""

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
from tune.desk import Validated, Verdict
from tune.results import write_recipe, write_results
from tune.search import Search, TrialRecord
from tune.settings import StudySettings
from tune.space import with_values
from tune.tracked import StudyRun, start_trial
from tune.trials import Ended, Layout, Trials, trial_folder, trials_on


@dataclass(frozen=True, slots=True)
class StudyProgress:
    """Where a study stands, for a display."""

    ended: int
    trials: int
    running: int
    epochs: int
    best: TrialRecord | None


@dataclass(slots=True)
class _Course:
    """What the driver keeps of a running trial."""

    attempts: int
    since: float
    seconds: float = 0.0
    in_epochs: float = 0.0
    jobs: list[Job] = field(default_factory=list)


# -- the course of a study ---------------------------------------------------------------------


@dataclass(slots=True)
class StudyDriver:
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
