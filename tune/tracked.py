"""A study in MLflow: a parent run, its trials as children, and the best one's model registered."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import JobError
from pipelines.tracking import TrackedRun, client_for, end_run, start_run
from tune.results import ARTIFACTS

if TYPE_CHECKING:
    from pipelines.training_job import Job
    from tune.objective import Objective
    from tune.search import Search, TrialRecord

KIND, STUDY, TRIAL = "colorcore.kind", "colorcore.study", "colorcore.trial"
OUTCOME, REASON = "colorcore.outcome", "colorcore.reason"
BEST = "colorcore.best"
"""Tag of a study: the number of the trial whose curves and pictures it carries."""
CHAMPION = "champion"
_PARENT = "mlflow.parentRunId"
_PICTURES, _HAS_PICTURES = "images", "mlflow.loggedImages"
_MOST_METRICS = 1000
"""That MLflow takes in one call."""
_MOST_TEXT = 250
"""Characters of a reason: a tag's value is a line, not a log."""


def run_name(study: str, number: int) -> str:
    """What a trial's run is called."""
    return f"{study}-{number:04d}"


def start_trial(study: StudyRun, name: str, record: TrialRecord, job: Job) -> TrackedRun:
    """Begin a trial's run, or go on in it."""
    tags = {
        KIND: "trial",
        STUDY: name,
        TRIAL: str(record.number),
        _PARENT: study.run.run_id,
        "mlflow.note.content": job.recipe.about,
    }
    return start_run(study.run.uri, run_name(name, record.number), job.params, tags, record.run_id)


@dataclass(frozen=True, slots=True)
class StudyRun:
    """The parent run."""

    run: TrackedRun

    @classmethod
    def start(
        cls,
        uri: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None,
    ) -> StudyRun:
        """Begin the study's run, or go on in it."""
        return cls(start_run(uri, name, params, {KIND: "study", STUDY: name, **tags}, run_id))

    def trial_ended(
        self, record: TrialRecord, ranked: Sequence[TrialRecord], objective: Objective
    ) -> None:
        """Close a trial's run, and say on the study's how good the best is so far."""
        self.close_trial(record)
        client = client_for(self.run.uri)
        for metric in objective.metrics if ranked else ():
            best = ranked[0].scores[metric]
            client.log_metric(self.run.run_id, f"best/{metric}", best, step=record.number)

    def close_trial(self, record: TrialRecord) -> None:
        """Close a trial's run, with how it ended."""
        if record.run_id is None:
            return
        client = client_for(self.run.uri)
        client.set_tag(record.run_id, OUTCOME, str(record.outcome))
        if record.reason:
            client.set_tag(record.run_id, REASON, record.reason[:_MOST_TEXT])
        status = "FAILED" if record.outcome == "failed" else "FINISHED"
        client.set_terminated(record.run_id, status=status)

    def interrupted(self, record: TrialRecord) -> None:
        """Close the run of a trial that will go on when the study does."""
        if record.run_id is not None:
            client_for(self.run.uri).set_terminated(record.run_id, status="KILLED")

    def register(self, record: TrialRecord, folder: Path, name: str) -> str | None:
        """Give the trial's run its model, and the model the alias ``champion``; its URI.

        None if the checkpoint was let go of: with ``keep`` at 0.
        """
        if record.run_id is None or not folder.exists():
            return None
        run = TrackedRun(self.run.uri, self.run.experiment_id, record.run_id)
        client = client_for(self.run.uri)
        if not client.list_artifacts(run.run_id, "best"):
            end_run(run, "FINISHED", {"best": folder})
        register_champion(run, name)
        return f"models:/{name}@{CHAMPION}"

    def close(self, status: str, out: Path, search: Search) -> None:
        """End the study's run, with its tables and plots, and the best trial's course."""
        client = client_for(self.run.uri)
        for name in ARTIFACTS:
            if (out / name).exists():
                client.log_artifact(self.run.run_id, str(out / name), artifact_path="study")
        ranked = search.ranked()
        if status == "FINISHED" and ranked and ranked[0].run_id is not None:
            self._show(ranked[0].number, ranked[0].run_id)
        client.set_terminated(self.run.run_id, status=status)

    def _show(self, number: int, run_id: str) -> None:
        """Copy a trial's validation curves and pictures onto the study's page."""
        from mlflow.entities import Metric

        client = client_for(self.run.uri)
        if client.get_run(self.run.run_id).data.tags.get(BEST) == str(number):
            return
        data = client.get_run(run_id).data
        points = [
            Metric(key, point.value, point.timestamp, point.step)
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
                client.log_artifacts(self.run.run_id, pictures, artifact_path=_PICTURES)
            if _HAS_PICTURES in data.tags:
                client.set_tag(self.run.run_id, _HAS_PICTURES, data.tags[_HAS_PICTURES])
        client.set_tag(self.run.run_id, BEST, str(number))


def register_champion(run: TrackedRun, name: str) -> None:
    """Register the run's model under ``name`` and give it the alias ``champion``.

    Raises:
        JobError: the registry refuses.
    """
    from mlflow.exceptions import MlflowException

    client = client_for(run.uri)
    with contextlib.suppress(MlflowException):  # it is there already
        client.create_registered_model(name)
    try:
        found = [
            version
            for version in client.search_model_versions(f"name = '{name}'")
            if version.run_id == run.run_id
        ]
        folder = f"{client.get_run(run.run_id).info.artifact_uri}/best"
        version = found[0] if found else client.create_model_version(name, folder, run.run_id)
        client.set_registered_model_alias(name, CHAMPION, version.version)
    except MlflowException as error:
        raise JobError(f"cannot register {name} in {run.uri}: {error}") from error
