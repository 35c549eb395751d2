"""MLflow's settings in the environment: it reads most of them at every call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

_PAST_THE_SERVER = (
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD",
)
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    **{name: os.environ.get(name, "false") for name in _PAST_THE_SERVER},
}
"""MLflow sends no usage statistics, and writes nothing where a command's result goes.

Artifacts go through its server, unless told otherwise: a client need not reach the object store
behind that, and one that cannot would try for minutes.
"""


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """With these variables, for the time of the block."""
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
