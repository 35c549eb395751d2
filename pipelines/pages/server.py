"""MLflow's server as a child of this process, on a free port, for stores that are no server."""

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

from pipelines.errors import JobError
from pipelines.tracking.mlflow_env import SERVER_QUIET
from pipelines.tracking.redact import without_secrets

PORT = 5000
START_S = 120.0
"""Seconds that the server may take to start."""


def is_server(uri: str) -> bool:
    """Whether the tracking store is a server, which has pages of its own."""
    return uri.startswith(("http://", "https://"))


def page_address(uri: str, host: str, port: int) -> str:
    """The address of the store's pages: its own if it is a server, else host and port."""
    return without_secrets(uri).rstrip("/") if is_server(uri) else f"http://{joined(host, port)}"


def free_port(host: str, asked: int | None) -> int:
    """The port asked for; by default 5000 if it is free, else any free one.

    Raises:
        JobError: the port asked for is taken, or there is no such host.
    """
    for port in (PORT, 0) if asked is None else (asked,):
        try:
            with socket.create_server((host, port), family=family(host)) as server:
                return int(server.getsockname()[1])
        except OSError as error:
            reason = error.strerror or error
    raise JobError(
        f"cannot serve on {joined(host, asked or PORT)}: {reason}; choose another --port"
    )


@contextmanager
def served(uri: str, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Serve MLflow's pages of a store for the duration of the block, which begins when they answer.

    The store's URI is passed through the environment, because other users of this machine can read
    command lines.

    Raises:
        JobError: the server does not start.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*command, "--host", host, "--port", str(port)],
            env={**os.environ, **SERVER_QUIET, "MLFLOW_BACKEND_STORE_URI": uri},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if reason := _wait(process, f"http://{joined(host, port)}/health"):
                output.seek(0)
                lines = output.read().decode(errors="replace").strip().splitlines()
                last = without_secrets(lines[-1]) if lines else "nothing"
                raise JobError(f"{reason}; its last output: {last}")
            yield process
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], url: str) -> str:
    """Wait until the server answers; returns what went wrong, or "" if nothing did."""
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
    """End the server and the processes that it started, which share its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)


def family(host: str) -> socket.AddressFamily:
    """The kind of address that a host is."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def joined(host: str, port: int) -> str:
    """Host and port as they stand in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def has_display() -> bool:
    """Whether a browser opened here would appear in front of the user."""
    if "SSH_CONNECTION" in os.environ:
        return False
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
