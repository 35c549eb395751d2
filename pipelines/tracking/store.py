"""Where the MLflow store is, a client for it, and the run and experiment in it.

The default store is the SQLite file ``mlflow.db`` in the current folder, with ``mlartifacts``
next to it; ``--tracking-uri`` or ``MLFLOW_TRACKING_URI`` names another store or a server.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from pipelines.errors import JobError
from pipelines.tracking.mlflow_env import QUIET
from pipelines.tracking.names import EXPERIMENT
from pipelines.tracking.redact import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_SQLITE_HEAD = b"SQLite format 3\0"
CONNECT_S = 2.0
"""Seconds within which a server's refusal is noticed before MLflow tries it."""
_TRIES = "3"
"""How often MLflow retries a call that the server does not answer: for about 15 s."""
PATIENCE_S = 60.0
"""Seconds that a job waits at its end for a server that is down; ``COLORCORE_TRACKING_WAIT_S``."""


def resolve_tracking_uri(asked: str | None, folder: Path) -> str:
    """The tracking URI: ``asked``, else from the environment, else SQLite in ``folder``.

    A file's path is made absolute, because workers run in another folder.
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
    """A client for the tracking store, which has just answered.

    Raises:
        JobError: the store does not answer.
    """
    check_store(uri)
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


def check_store(uri: str) -> None:
    """Find out at once what MLflow, once imported, would retry for up to two minutes.

    Raises:
        JobError: an SQLite store cannot be written, or nothing listens at a server's address.
    """
    shown = without_secrets(uri)
    if (file := sqlite_file(uri)) is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.exists():
                with file.open("r+b") as store:
                    head = store.read(len(_SQLITE_HEAD))
                if head and head != _SQLITE_HEAD:
                    raise JobError(
                        f"expected an SQLite file in {file}, found something else; "
                        "choose another with --tracking-uri"
                    )
            with tempfile.TemporaryFile(dir=file.parent):  # for the store's own journal
                pass
        except OSError as error:
            raise JobError(
                f"cannot write the tracking store {shown}: {error.strerror or error}; "
                "choose another with --tracking-uri"
            ) from error
    elif uri.startswith(("http://", "https://")) and not getproxies():
        server = urlsplit(uri)
        port = server.port or (443 if server.scheme == "https" else 80)
        try:
            socket.create_connection((server.hostname or "", port), timeout=CONNECT_S).close()
        except TimeoutError:
            pass  # slow, or hidden behind something: MLflow may still reach it
        except OSError as error:
            raise JobError(
                f"cannot reach the tracking store {shown}: {error.strerror or error}; "
                "start the server, or choose another with --tracking-uri"
            ) from error


def _make_store(uri: str) -> None:
    """Create an SQLite store in one step, unless it exists.

    MLflow creates its tables one by one, and two processes that do so in the same file break each
    other. So each creates them in a file of its own, and the first to link it into place wins.
    """
    if (file := sqlite_file(uri)) is None or file.exists():
        return
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
    try:
        MlflowClient(tracking_uri=f"{_SQLITE}{made}").search_experiments(max_results=1)
        with contextlib.suppress(OSError):  # another process won, or the disk has no hard links
            os.link(made, file)
    finally:
        made.unlink(missing_ok=True)


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other store."""
    path = uri.removeprefix(_SQLITE).partition("?")[0]
    return Path(path) if uri.startswith(_SQLITE) and path.startswith("/") else None


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run that exists in the tracking store; small enough to send to a worker."""

    uri: str
    experiment_id: str
    run_id: str
    patience_s: float = PATIENCE_S
    """Seconds that the end of the run waits for a server that is down."""
    started_ms: int = 0
    """When it started, in milliseconds since 1970."""


def experiment_of(client: MlflowClient, uri: str) -> str:
    """The id of the experiment, which is created if it does not exist."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    from mlflow.exceptions import MlflowException

    # Without a location, artifacts would go to whatever folder the next command runs in.
    file = sqlite_file(uri)
    location = None if file is None else (file.parent / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=location))
    except MlflowException:
        if (found := client.get_experiment_by_name(EXPERIMENT)) is None:
            raise
        return str(found.experiment_id)  # another process created it


def run_exists(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has the run.

    Raises:
        JobError: the store fails to answer, which does not mean that the run is missing.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise JobError(f"cannot look up the run {run_id}: {error}") from error
    return True
