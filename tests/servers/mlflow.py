"""`mlflow server` on a free port, over any database and any store of artifacts.

Clients need neither: what they log, files too, goes through the server.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.child import Parent, child


@dataclass(frozen=True)
class MlflowServer:
    """A server at ``uri``; ``log`` is the file that it writes to."""

    uri: str
    log: Path

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)


@contextmanager
def serve_mlflow(
    backend: str,
    artifacts: str,
    *,
    host: str = "127.0.0.1",
    env: Mapping[str, str] | None = None,
) -> Iterator[MlflowServer]:
    """A server over a database (a URI of SQLAlchemy) and a store (a folder, or s3://…).

    ``env`` are variables for the server alone: credentials of the store.
    """
    given = {
        **os.environ,
        **(env or {}),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": backend,
        "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
    }
    given.pop("MLFLOW_TRACKING_URI", None)
    with child("tests.servers.mlflow", host, env=given, seconds=300) as server:
        yield MlflowServer(server.hello["uri"], Path(server.hello["log"]))


def main(host: str) -> None:
    parent = Parent()
    with socket.create_server((host, 0)) as free:
        port = free.getsockname()[1]
    with tempfile.NamedTemporaryFile(prefix="mlflow-", suffix=".log") as log:
        words = ["--host", host, "--port", str(port), "--workers", "1"]
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            uri = f"http://{host}:{port}"
            while not _answers(uri):
                if server.poll() is not None:
                    parent.send(error=Path(log.name).read_text()[-2000:])
                    return
                time.sleep(0.1)
            parent.send(uri=uri, log=log.name)
            for _ in parent.requests():
                pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _answers(uri: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    main(*sys.argv[1:])
