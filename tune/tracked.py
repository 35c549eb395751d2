"""A study in MLflow: a parent run, its trials as children, and the best one's model registered."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import JobError
from pipelines.run_log.log import RunLog
from pipelines.run_log.resend import import_runs
from pipelines.run_log.runs import Unsent, end_run, start_run
from pipelines.run_log.spool import spool_folder
from pipelines.tracking.model import MODEL
from pipelines.tracking.names import CHAMPION, KIND_TAG, STUDY_TAG
from pipelines.tracking.registry import register_champion
from pipelines.tracking.store import TrackedRun, client_for
from tune.results import ARTIFACTS
from tune.trials import trial_folder

if TYPE_CHECKING:
    from pipelines.training.job import Job
    from tune.objective import Objective
    from tune.search import Search, TrialRecord

TRIAL = "colorcore.trial"
OUTCOME, REASON = "colorcore.outcome", "colorcore.reason"
BEST = "colorcore.best"
"""Tag of a study: the number of the trial whose curves and pictures it showed last."""
_PICTURES, _HAS_PICTURES = "images", "mlflow.loggedImages"
_MOST_METRICS = 1000
"""That MLflow takes in one call."""
TRIAL_PATIENCE_S = 5.0
"""Seconds that the end of a trial waits for a server that is away; the study's end waits longer."""
_MOST_TEXT = 250
"""Characters of a reason: a tag's value is a line, not a log."""


def run_name(study: str, number: int) -> str:
    """What a trial's run is called."""
    return f"{study}-{number:04d}"


def start_trial(study: StudyRun, name: str, record: TrialRecord, job: Job) -> TrackedRun:
    """Begin a trial's run, or go on in it; waits for a server that is away.

    Raises:
        JobError: it stayed away for longer than ``study.run.patience_s``.
    """
    tags = {
        KIND_TAG: "trial",
        STUDY_TAG: name,
        TRIAL: str(record.number),
        "mlflow.note.content": job.recipe.about,
    }
    end = time.monotonic() + study.run.patience_s
    while True:
        try:
            return start_run(
                study.run.uri,
                run_name(name, record.number),
                job.params,
                tags,
                record.run_id,
                parent=study.run.run_id,
            )
        except JobError:
            if time.monotonic() > end:
                raise
        time.sleep(1.0)


@dataclass(frozen=True, slots=True)
class StudyRun:
    """The parent run, in the study's folder ``out``; what it is told goes through ``log``."""

    run: TrackedRun
    out: Path
    log: RunLog

    @classmethod
    def start(
        cls,
        uri: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None,
        out: Path,
    ) -> StudyRun:
        """Begin the study's run, or go on in it."""
        run = start_run(uri, name, params, {KIND_TAG: "study", STUDY_TAG: name, **tags}, run_id)
        spool = spool_folder(run.run_id, out)
        return cls(run, out, RunLog(run.uri, run.run_id, run.experiment_id, spool))

    def trial_ended(
        self, record: TrialRecord, ranked: Sequence[TrialRecord], objective: Objective
    ) -> None:
        """Close a trial's run, and say on the study's how good the best is so far."""
        self.close_trial(record, objective)
        if ranked:
            best = {f"best/{metric}": ranked[0].scores[metric] for metric in objective.metrics}
            self.log.metrics(best, record.number)

    def close_trial(self, record: TrialRecord, objective: Objective) -> None:
        """Close a trial's run, with how it ended and the scores of its best checkpoint.

        The latter under names of their own: MLflow orders runs by a metric's last value.
        """
        tags = {OUTCOME: str(record.outcome)}
        if record.reason:
            tags[REASON] = record.reason[:_MOST_TEXT]
        status = "FAILED" if record.outcome == "failed" else "FINISHED"
        best = {
            f"best/{metric}": record.scores[metric]
            for metric in objective.metrics
            if metric in record.scores
        }
        self._end(record, status, tags, best)

    def interrupted(self, record: TrialRecord) -> None:
        """Close the run of a trial that will go on when the study does."""
        self._end(record, "KILLED", {})

    def _end(
        self,
        record: TrialRecord,
        status: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """What a server that is away cannot be told is left to :meth:`close`."""
        if record.run_id is None:
            return
        patience = min(TRIAL_PATIENCE_S, self.run.patience_s)
        run = replace(self.run, run_id=record.run_id, patience_s=patience)
        end_run(run, status, {}, trial_folder(self.out, record.number), tags, metrics)

    def register(self, record: TrialRecord, name: str) -> str | None:
        """Give the trial's run its model, and the model the alias ``champion``; its URI.

        None if the checkpoint was let go of (with ``keep`` at 0), or the server is away.
        """
        folder = trial_folder(self.out, record.number)
        if record.run_id is None or not (folder / "best").exists():
            return None
        run = replace(self.run, run_id=record.run_id)
        if end_run(run, "FINISHED", {MODEL: folder / "best"}, folder) is not None:
            return None
        register_champion(run, name)
        return f"models:/{name}@{CHAMPION}"

    def close(self, status: str, search: Search) -> Unsent | None:
        """End the study's run, with its tables and plots, and the best trial's course.

        Returns where that lies which the server, being away, could not be told.
        """
        self.log.close()
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(JobError, MlflowException):  # it is away: end_run will say so
            import_runs([str(self.out)], self.run.uri)
            ranked = search.ranked()
            if status == "FINISHED" and ranked and ranked[0].run_id is not None:
                self._show(ranked[0].number, ranked[0].run_id)
        with tempfile.TemporaryDirectory() as folder:
            study = Path(folder) / "study"
            study.mkdir()
            for name in ARTIFACTS:
                if (self.out / name).exists():
                    shutil.copy2(self.out / name, study / name)
            return end_run(self.run, status, {study.name: study}, self.out)

    def _show(self, number: int, run_id: str) -> None:
        """Copy a trial's validation curves and pictures onto the study's page.

        By names with the trial's number, as a study that goes on may find a better trial later.
        """
        from mlflow.entities import Metric

        client = client_for(self.run.uri)
        if client.get_run(self.run.run_id).data.tags.get(BEST) == str(number):
            return
        data = client.get_run(run_id).data
        points = [
            Metric(f"trial {number}/{key}", point.value, point.timestamp, point.step)
            for key in data.metrics
            if key.startswith("val/")
            for point in client.get_metric_history(run_id, key)
        ]
        for start in range(0, len(points), _MOST_METRICS):
            client.log_batch(self.run.run_id, metrics=points[start : start + _MOST_METRICS])
        if client.list_artifacts(run_id, _PICTURES):
            os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
            with tempfile.TemporaryDirectory() as folder:
                pictures = client.download_artifacts(run_id, _PICTURES, folder)
                for file in list(Path(pictures).iterdir()):
                    file.rename(file.with_name(f"trial {number}~{file.name}"))
                client.log_artifacts(self.run.run_id, pictures, artifact_path=_PICTURES)
            if _HAS_PICTURES in data.tags:
                client.set_tag(self.run.run_id, _HAS_PICTURES, data.tags[_HAS_PICTURES])
        client.set_tag(self.run.run_id, BEST, str(number))
