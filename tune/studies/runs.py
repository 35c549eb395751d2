"""A study in MLflow: a parent run, one child run per trial, and the registered best model."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.checkpoints.checkpoint import fetch_checkpoint, has_checkpoint
from colorcore.storage.store import StorageError, Store
from colorcore.waiting import waiting_for
from pipelines.errors import JobError
from pipelines.run_log.log import RunLog
from pipelines.run_log.resend import resend_runs
from pipelines.run_log.runs import Unsent, end_run, start_run
from pipelines.run_log.spool import FOLDER as SPOOLS
from pipelines.run_log.spool import spool_folder
from pipelines.tracking.mlflow_internals import HAS_PICTURES_TAG, PICTURES
from pipelines.tracking.model import register_champion
from pipelines.tracking.names import (
    BEST,
    BEST_TRIAL_TAG,
    CHAMPION,
    KIND_TAG,
    MODEL,
    NOTE_TAG,
    OUTCOME_TAG,
    PARENT_TAG,
    REASON_TAG,
    STUDY_TAG,
    TRIAL_TAG,
    VAL,
)
from pipelines.tracking.redact import without_secrets
from pipelines.tracking.store import TrackedRun, client_for
from tune.studies.results import ARTIFACTS, TRIAL_FOLDERS, trial_folder

if TYPE_CHECKING:
    from pipelines.training.job import Job
    from tune.search.objective import Objective
    from tune.search.search import Search, TrialRecord

_MOST_METRICS = 1000
"""MLflow's limit for one call."""
TRIAL_PATIENCE_S = 5.0
"""Seconds to wait for an unreachable server when a trial ends; the study's end waits longer."""
_MOST_TEXT = 250
"""Characters of a reason: a tag's value is one line, not a log."""


def run_name(study: str, number: int) -> str:
    """The name of a trial's run."""
    return f"{study}-{number:04d}"


def start_trial(study: StudyRun, name: str, record: TrialRecord, job: Job) -> TrackedRun:
    """Start or resume a trial's run; waits for an unreachable server.

    Raises:
        JobError: the server was unreachable for longer than ``study.run.patience_s``.
    """
    tags = {
        KIND_TAG: "trial",
        STUDY_TAG: name,
        TRIAL_TAG: str(record.number),
        NOTE_TAG: job.recipe.about,
    }
    end = time.monotonic() + study.run.patience_s
    with waiting_for(f"{without_secrets(study.run.uri)}, which takes the trial's run"):
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
    """The parent run of the study in folder ``out``; its metrics go through ``log``."""

    run: TrackedRun
    out: Store
    log: RunLog

    @classmethod
    def start(
        cls,
        uri: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None,
        out: Store,
    ) -> StudyRun:
        """Start or resume the study's run."""
        run = start_run(uri, name, params, {KIND_TAG: "study", STUDY_TAG: name, **tags}, run_id)
        spool = spool_folder(run.run_id, out)
        return cls(run, out, RunLog(run.uri, run.run_id, spool))

    def trial_ended(
        self, record: TrialRecord, ranked: Sequence[TrialRecord], objective: Objective
    ) -> None:
        """Close a trial's run, and log the best scores so far on the study's run."""
        self.close_trial(record, objective)
        if ranked:
            best = {f"{BEST}{metric}": ranked[0].scores[metric] for metric in objective.metrics}
            self.log.metrics(best, record.number)

    def close_trial(self, record: TrialRecord, objective: Objective) -> None:
        """Close a trial's run with its outcome and the scores of its best checkpoint.

        These scores have metric names of their own, because MLflow sorts runs by the last value of
        a metric, and a trial's last validation need not be its best.
        """
        tags = {OUTCOME_TAG: str(record.outcome)}
        if record.reason:
            tags[REASON_TAG] = record.reason[:_MOST_TEXT]
        status = "FAILED" if record.outcome == "failed" else "FINISHED"
        best = {
            f"{BEST}{metric}": record.scores[metric]
            for metric in objective.metrics
            if metric in record.scores
        }
        self._end(record, status, tags, best)

    def close_ended(self, records: Sequence[TrialRecord], objective: Objective) -> None:
        """Close the runs of trials that ended just before their driver was killed."""
        client, ended = client_for(self.run.uri), {record.run_id: record for record in records}
        filters = f"tags.`{PARENT_TAG}` = '{self.run.run_id}' AND attributes.status = 'RUNNING'"
        for run in client.search_runs([self.run.experiment_id], filters):
            if (record := ended.get(run.info.run_id)) is not None:
                self.close_trial(record, objective)

    def interrupted(self, record: TrialRecord) -> None:
        """Close the run of an interrupted trial, which continues when the study is resumed."""
        self._end(record, "KILLED", {})

    def _end(
        self,
        record: TrialRecord,
        status: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """End a run; records that an unreachable server misses are left to :meth:`close`."""
        if record.run_id is None:
            return
        patience = min(TRIAL_PATIENCE_S, self.run.patience_s)
        run = replace(self.run, run_id=record.run_id, patience_s=patience)
        end_run(run, status, {}, trial_folder(self.out, record.number), tags, metrics)

    def register(self, record: TrialRecord, name: str) -> str | None:
        """Log the trial's best model, register it as ``champion``, and return its URI.

        None if the trial has no best checkpoint any more, or the server is unreachable.
        """
        folder = trial_folder(self.out, record.number)
        if record.run_id is None or not has_checkpoint(folder.below("best")):
            return None
        run = replace(self.run, run_id=record.run_id)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            best = fetch_checkpoint(folder.below("best"), Path(scratch))
            if end_run(run, "FINISHED", {MODEL: best}, folder) is not None:
                return None
        register_champion(run, name)
        return f"models:/{name}@{CHAMPION}"

    def close(self, status: str, search: Search) -> Unsent | None:
        """End the study's run, with its tables and plots and the best trial's curves and pictures.

        Returns the location of records that an unreachable server did not accept.
        """
        self.log.close()
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(JobError, MlflowException, OSError, StorageError):
            # The run must end anyway.
            resend_runs(self._places(), self.run.uri)
            ranked = search.ranked()
            if status == "FINISHED" and ranked and ranked[0].run_id is not None:
                self._copy_from(ranked[0].number, ranked[0].run_id)
        with tempfile.TemporaryDirectory() as folder:
            study = Path(folder) / "study"
            study.mkdir()
            for name in ARTIFACTS:
                # Missing or unreadable: the run must end anyway.
                with contextlib.suppress(OSError, StorageError):
                    self.out.fetch(name, study / name)
            return end_run(self.run, status, {study.name: study}, self.out)

    def _places(self) -> list[str]:
        """Where trials may have left records that their runs lack."""
        if self.out.local is not None:
            return [str(self.out.local)]
        # Naming the whole study would download its checkpoints.
        folders = [trial_folder(self.out, int(name)) for name in self.out.folders(TRIAL_FOLDERS)]
        return [each.show(SPOOLS) for each in folders if each.kind(SPOOLS) == "folder"]

    def _copy_from(self, number: int, run_id: str) -> None:
        """Copy a trial's validation curves and pictures to the study's run.

        Their names contain the trial's number, because a resumed study may find a better trial.
        """
        from mlflow.entities import Metric

        client = client_for(self.run.uri)
        if client.get_run(self.run.run_id).data.tags.get(BEST_TRIAL_TAG) == str(number):
            return
        data = client.get_run(run_id).data
        points = [
            Metric(f"trial {number}/{key}", point.value, point.timestamp, point.step)
            for key in data.metrics
            if key.startswith(VAL)
            for point in client.get_metric_history(run_id, key)
        ]
        for start in range(0, len(points), _MOST_METRICS):
            client.log_batch(self.run.run_id, metrics=points[start : start + _MOST_METRICS])
        if client.list_artifacts(run_id, PICTURES):
            with tempfile.TemporaryDirectory() as folder:
                pictures = client.download_artifacts(run_id, PICTURES, folder)
                for file in list(Path(pictures).iterdir()):
                    file.rename(file.with_name(f"trial {number}~{file.name}"))
                client.log_artifacts(self.run.run_id, pictures, artifact_path=PICTURES)
            if HAS_PICTURES_TAG in data.tags:
                client.set_tag(self.run.run_id, HAS_PICTURES_TAG, data.tags[HAS_PICTURES_TAG])
        client.set_tag(self.run.run_id, BEST_TRIAL_TAG, str(number))
