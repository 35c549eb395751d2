"""Which MLflow store is meant, and a client for it."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import JobError
from pipelines.tracking.mlflow_env import QUIET
from pipelines.tracking.redact import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient


if TYPE_CHECKING:
    from mlflow import MlflowClient


from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
from pipelines.tracking.names import EXPERIMENT

_SQLITE = "sqlite:///"
_TRIES = "3"
"""How often a call is repeated whose server does not answer: for about 15 s."""
PATIENCE_S = 60.0
"""Seconds that a job's end waits for a server that is away; ``COLORCORE_TRACKING_WAIT_S``."""


def tracking_uri(asked: str | None, folder: Path) -> str:
    """The tracking URI: asked for, from the environment, or SQLite in ``folder``.

    A file's path is made whole, from ``folder`` on: workers have another current folder.
    """
    uri = asked or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(folder)
    file, _, options = uri.removeprefix(_SQLITE).partition("?")
    if not uri.startswith(_SQLITE) or file.startswith(("/", ":", "file:")):
        return uri
    return f"{_SQLITE}{folder.absolute() / file}{'?' * bool(options)}{options}"


def sqlite_uri(folder: Path) -> str:
    """The URI of the SQLite store in a folder."""
    return f"{_SQLITE}{folder.absolute() / 'mlflow.db'}"


def client_for(uri: str) -> MlflowClient:
    """A client of the tracking store.

    Raises:
        JobError: the store does not answer.
    """
    os.environ.update(QUIET)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _TRIES)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        _make_store(uri)
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise JobError(
            f"cannot reach the tracking store {without_secrets(uri)}: {first}"
        ) from error
    return client


def _make_store(uri: str) -> None:
    """Make an SQLite file that is not there yet, whole or not at all.

    MLflow makes its tables one by one, and two processes that do so in the same file break each
    other. So they are made beside it, and whoever comes second takes what the first one made.
    """
    if (file := sqlite_file(uri)) is None or file.exists():
        return
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
    try:
        MlflowClient(tracking_uri=f"{_SQLITE}{made}").search_experiments(max_results=1)
        with contextlib.suppress(OSError):  # another one was faster, or the disk knows no links
            os.link(made, file)
    finally:
        made.unlink(missing_ok=True)


def sqlite_file(uri: str) -> Path | None:
    """Where a store in a file has that."""
    path = uri.removeprefix(_SQLITE).partition("?")[0]
    return Path(path) if uri.startswith(_SQLITE) and path.startswith("/") else None


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run that exists in the tracking store; small enough to hand to a worker."""

    uri: str
    experiment_id: str
    run_id: str
    patience_s: float = PATIENCE_S
    """Seconds that the end of the run waits for a server that is away."""
    started_ms: int = 0
    """When it started, in milliseconds since 1970."""


def experiment_of(client: MlflowClient, uri: str) -> str:
    """The id of the experiment, which is made where there is none."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    from mlflow.exceptions import MlflowException

    # Without it, artifacts would land in whatever folder the next command runs in.
    file = sqlite_file(uri)
    location = None if file is None else (file.parent / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=location))
    except MlflowException:
        if (found := client.get_experiment_by_name(EXPERIMENT)) is None:
            raise
        return str(found.experiment_id)  # another one was faster


def run_exists(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has the run.

    Raises:
        JobError: it cannot say; a busy store is not one without the run.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise JobError(f"cannot look up the run {run_id}: {error}") from error
    return True
