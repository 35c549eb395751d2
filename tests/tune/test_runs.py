"""A study's run in MLflow, without Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from mlflow import MlflowClient

from colorcore.storage.local import LocalStore
from tests.mlflow_store import new_store
from tune.studies.results import ARTIFACTS
from tune.studies.runs import StudyRun


def test_a_table_that_cannot_be_copied_leaves_no_study_running(tmp_path: Path) -> None:
    out = tmp_path / "study"
    run = StudyRun.start(new_store(tmp_path), "study", {}, {}, None, LocalStore(out))
    (out / ARTIFACTS[0]).mkdir(parents=True)  # a folder: copying it as a file fails
    nothing_to_show = SimpleNamespace(ranked=list)
    assert run.close("FINISHED", nothing_to_show) is None  # type: ignore[arg-type]
    assert MlflowClient(run.run.uri).get_run(run.run.run_id).info.status == "FINISHED"
