"""Reaching a Ray: what is said, and how soon, when there is none."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_where_nothing_listens_it_is_said_at_once(form: str) -> None:
    """In a process of its own: in this one a Ray may be connected already."""
    code = (
        "import sys\nfrom pipelines.cluster import ray_session\n"
        "from pipelines.errors import JobError\n"
        "try:\n    with ray_session(sys.argv[1]): pass\n"
        "except JobError as error: print(error)\n"
    )
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # a port of ours that takes no connection
        address = form.format(port=closed.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", code, address],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,  # Ray itself would try for two minutes
        )
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"cannot reach {address}: ")
    assert "refused" in line
