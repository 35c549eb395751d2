"""A study's best model in MLflow's registry."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pipelines.errors import JobError
from pipelines.tracking.mlflow_env import environment
from pipelines.tracking.names import CHAMPION
from pipelines.tracking.store import TrackedRun, client_for

if TYPE_CHECKING:
    from mlflow import MlflowClient


def register_champion(run: TrackedRun, name: str) -> int:
    """Register the run's model under ``name`` and give it the alias ``champion``.

    Returns the number of the version that is the champion now; the same run registered again is
    the version that it was. The name must be one that a registry takes: no ``/``, ``:`` or ``.``
    at its start.

    Raises:
        JobError: the store does not answer, or the run has no model.
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
        version = found[0] if found else _register(client, run, name)
        client.set_registered_model_alias(name, CHAMPION, version.version)
    except MlflowException as error:
        raise JobError(
            f"cannot register the model of run {run.run_id} as {name}: {error}"
        ) from error
    return int(version.version)


def _register(client: MlflowClient, run: TrackedRun, name: str) -> Any:
    outputs = client.get_run(run.run_id).outputs
    if outputs is None or not outputs.model_outputs:
        raise JobError(f"the run {run.run_id} holds no model to register as {name}")
    model = outputs.model_outputs[-1].model_id
    # A store that is no server looks the model up in whatever store the environment names.
    with environment({"MLFLOW_TRACKING_URI": run.uri, "MLFLOW_REGISTRY_URI": run.uri}):
        return client.create_model_version(name, f"models:/{model}", run.run_id, model_id=model)
