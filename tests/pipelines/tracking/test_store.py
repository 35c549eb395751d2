"""Tracking stores that cannot work: the error comes at once, and says what to do."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.errors import JobError
from pipelines.tracking.store import client_for
from tests.mounts import mounted


def refused(uri: str, match: str) -> None:
    since = time.monotonic()
    with pytest.raises(JobError, match=match):
        client_for(uri)
    assert time.monotonic() - since < 2.0


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(
        f"sqlite:///{tmp_path}/file/mlflow.db",
        r"cannot write the tracking store sqlite:.*: (File exists|Not a directory); choose another",
    )
    refused("sqlite:////proc/mlflow.db", r"cannot write .*; choose another with --tracking-uri")


def test_a_read_only_file_system_is_an_error_at_once(tmp_path: Path) -> None:
    with mounted(tmp_path, "ro,size=1m"):
        refused(f"sqlite:///{tmp_path}/mlflow.db", "Read-only file system; choose another")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"0" * 4096)
    refused(f"sqlite:///{tmp_path}/mlflow.db", r"expected an SQLite file in .*mlflow\.db, found")
    assert (tmp_path / "mlflow.db").read_bytes() == b"0" * 4096


def test_a_server_that_does_not_listen_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        refused(
            f"http://127.0.0.1:{port}", r"cannot reach .*: Connection refused; start the server"
        )


def test_the_check_needs_no_mlflow() -> None:
    code = (
        "import sys\nfrom pipelines.tracking.store import client_for\n"
        "try: client_for('sqlite:////proc/mlflow.db')\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print('mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["JobError", "False"], done.stderr
