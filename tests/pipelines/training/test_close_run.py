"""The end of a finished training: whatever its artifacts' stores do, its run in MLflow ends."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from colorcore.recipes.recipe import load_recipe
from colorcore.storage.local import LocalStore
from colorcore.storage.store import StorageError
from pipelines.run_log.runs import start_run
from pipelines.tracking.model import local_model
from pipelines.tracking.names import MISSING_TAG
from pipelines.tracking.store import TrackedRun
from pipelines.training.driver import close_run
from pipelines.training.job import Job, prepare_job
from tests.mlflow_store import new_store
from tests.trainings import TINY, fit_here


@dataclass(frozen=True, slots=True)
class Unreachable(LocalStore):
    """A folder from which no file can be copied at the moment."""

    def fetch(self, name: str, target: Path) -> None:
        raise StorageError(f"cannot read {name}: no answer in 6 tries")


@dataclass(frozen=True, slots=True)
class Interrupted(LocalStore):
    """A folder whose user has waited long enough."""

    def fetch(self, name: str, target: Path) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(dataset_with_palette: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A training that is over, and whose run in MLflow is not."""
    folder = tmp_path_factory.mktemp("finished")
    copy = shutil.copytree(dataset_with_palette, folder / "dataset")
    recipe = load_recipe("unet-l1", [*TINY, "train.epochs=1"])
    fit_here(recipe, copy, folder / "model")
    return prepare_job(copy, recipe, folder / "model", 1)


@pytest.fixture
def run(finished: Job, tmp_path: Path) -> TrackedRun:
    return start_run(new_store(tmp_path), "finished", finished.params, {}, None)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["missing", "unreachable"])
def test_without_its_palettes_picture_a_training_is_finished_and_its_model_logged(
    fault: str, finished: Job, run: TrackedRun
) -> None:
    assert finished.dataset.local is not None
    if fault == "missing":
        bare = finished.dataset.local.parent / "bare"
        shutil.copytree(finished.dataset.local, bare, dirs_exist_ok=True)
        (bare / "palette" / "palette.png").unlink()
        job = replace(finished, dataset=LocalStore(bare))
    else:
        job = replace(finished, dataset=Unreachable(finished.dataset.local))
    warnings: list[str] = []
    close_run(job, run, "FINISHED", warnings.append)
    client = MlflowClient(run.uri)
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.tags[MISSING_TAG].startswith("palette (")
    (warning,) = warnings
    assert warning.startswith("the run in MLflow lacks palette (")
    assert (local_model(f"runs:/{run.run_id}", run.uri) / "model.safetensors").is_file()
    assert "recipe.toml" in {item.path for item in client.list_artifacts(run.run_id)}


@pytest.mark.slow
def test_with_all_artifacts_nothing_is_warned_about(finished: Job, run: TrackedRun) -> None:
    warnings: list[str] = []
    close_run(finished, run, "FINISHED", warnings.append)
    assert not warnings
    assert MISSING_TAG not in MlflowClient(run.uri).get_run(run.run_id).data.tags


def test_ctrl_c_while_artifacts_are_fetched_leaves_no_run_running(
    finished: Job, run: TrackedRun
) -> None:
    assert finished.dataset.local is not None
    job = replace(finished, dataset=Interrupted(finished.dataset.local))
    with pytest.raises(KeyboardInterrupt):
        close_run(job, run, "FINISHED", pytest.fail)
    assert MlflowClient(run.uri).get_run(run.run_id).info.status == "FINISHED"
