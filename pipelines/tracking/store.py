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


_SQLITE = "sqlite:///"
_TRIES = "3"
"""How often a call is repeated whose server does not answer: for about 15 s."""


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
