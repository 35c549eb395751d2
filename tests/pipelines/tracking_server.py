"""A real `mlflow server` on loopback that tests can stop, restart and freeze."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from mlflow import MlflowClient

from tests.mlflow_store import new_store

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Ten processes that run jobs, none of which a tracking server of tests needs.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


class TrackingServer:
    """A server that keeps its port, its SQLite file and its artifact folder over restarts."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        new_store(folder)
        self.database = folder / "mlflow.db"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri",
            f"sqlite:///{self.database}", "--artifacts-destination", str(self.folder / "artifacts"),
            "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **QUIET}, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while not self.answers():
            assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """Kill the server, like a crash."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(timeout=60)
        self._process = None

    def freeze(self) -> None:
        """Make the server accept connections without answering."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def stored(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """All steps and values of a metric, with duplicates, straight from the table."""
        with sqlite3.connect(self.database) as database:
            rows = database.execute(
                "SELECT step, value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step",
                (run_id, key),
            )
            return list(rows)

    def images(self, run_id: str) -> list[str]:
        """The artifact paths of a run's pictures."""
        return [item.path for item in self.client().list_artifacts(run_id, "images")]

    def _signal(self, which: signal.Signals) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, which)
