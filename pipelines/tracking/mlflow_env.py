"""MLflow's settings in the environment, most of which MLflow reads at every call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

_NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_PAST_THE_SERVER = (
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD",
)
QUIET = {
    **_NO_TELEMETRY,
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    **{name: os.environ.get(name, "false") for name in _PAST_THE_SERVER},
}
"""For a client: no usage statistics, and no output of MLflow's where a command prints its result.

Unless the user sets it otherwise, artifacts go through the tracking server: a client may not reach
the object store behind it, and MLflow would try for minutes.
"""
SERVER_QUIET = {
    **_NO_TELEMETRY,
    # Starts a handful of processes that judge chat traces, which this project has none of.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""For a server: no usage statistics, and no jobs."""


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set these environment variables for the duration of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
