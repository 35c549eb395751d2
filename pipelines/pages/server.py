"""MLflow's server as a child of this process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pipelines.errors import JobError
from pipelines.tracking.redact import without_secrets

if TYPE_CHECKING:
    pass


PORT = 5000
START_S = 120.0
SERVER_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Judges of chat traces, in a handful of processes.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


# -- what serves the pages ------------------------------------------------------------------------


def is_server(uri: str) -> bool:
    """Whether the store has pages of its own already."""
    return uri.startswith(("http://", "https://"))


def free_port(host: str, asked: int | None) -> int:
    """The port asked for; if none was, 5000 or whichever is free.

    Raises:
        JobError: the one asked for is taken, or there is no such host.
    """
    for port in (PORT, 0) if asked is None else (asked,):
        try:
            with socket.create_server((host, port), family=_family(host)) as server:
                return int(server.getsockname()[1])
        except OSError as error:
            reason = error.strerror or error
    raise JobError(
        f"cannot serve on {_joined(host, asked or PORT)}: {reason}; choose another --port"
    )


def place(uri: str, host: str, port: int) -> str:
    """Where the store's pages are: at its own server, else at host and port."""
    return without_secrets(uri).rstrip("/") if is_server(uri) else f"http://{_joined(host, port)}"


@contextmanager
def served(uri: str, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's pages of a store that is no server, ready when the block begins; ends with it.

    The store's URI goes through the environment: others on this machine see commands.

    Raises:
        JobError: it does not start.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*command, "--host", host, "--port", str(port)],
            env={**os.environ, **SERVER_QUIET, "MLFLOW_BACKEND_STORE_URI": uri},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if reason := _wait(process, f"http://{_joined(host, port)}/health"):
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines()
                raise JobError(
                    f"{reason}; it said last: {without_secrets(lines[-1] if lines else 'nothing')}"
                )
            yield process
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], url: str) -> str:
    """Until the server answers; what went wrong if it does not."""
    end = time.monotonic() + START_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end:
        if process.poll() is not None:
            return f"MLflow's server ended with code {process.returncode}"
        with suppress(OSError), direct.open(url, timeout=5):
            return ""
        time.sleep(0.1)
    return f"MLflow's server did not answer within {START_S:.0f} s"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def has_display() -> bool:
    """Whether a browser that is opened here would be seen by who asked for it."""
    if "SSH_CONNECTION" in os.environ:
        return False
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
