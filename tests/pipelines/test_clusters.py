"""Clusters of several Ray nodes leave nothing behind, and other clusters alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.clusters import namespaced_nodes, why_no_namespaces
from tests.servers.child import ROOT

pytestmark = pytest.mark.slow


def current_address() -> str | None:
    """What Ray takes for this machine's cluster: no test's."""
    from ray._common.utils import get_ray_address_file

    file = Path(get_ray_address_file(None))
    return file.read_text() if file.exists() else None


def test_a_cluster_ends_with_a_test_run_that_is_killed() -> None:
    code = (
        "import time\nfrom tests.clusters import several_nodes\n"
        "with several_nodes(0) as c:\n    print(c.folder, flush=True)\n    time.sleep(60)\n"
    )
    before = current_address()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as run:
        assert run.stdout is not None
        folder = Path(run.stdout.readline().decode().strip())
        assert list(folder.glob("ray/session_2*"))
        processes = psutil.Process(run.pid).children(recursive=True)
        assert {"raylet", "gcs_server"} <= {process.name() for process in processes}
        assert current_address() == before
        os.kill(run.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive
    assert not folder.exists()


@pytest.fixture
def namespaces() -> None:
    if reason := why_no_namespaces():  # not Linux, no iproute2, or no right to make them
        pytest.skip(reason)


def listed() -> str:
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True)
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    ours = [line for line in spaces.stdout.splitlines() if f"colorcore-{os.getpid()}-" in line]
    return "\n".join([*ours, *(x for x in links.stdout.splitlines() if f"cc{os.getpid()}n" in x)])


def test_namespaces_are_cleared_after_an_error(namespaces, monkeypatch) -> None:
    folders = []

    def fail(network, *_) -> None:
        folders.append(network.folder)
        raise RuntimeError("no Ray today")

    monkeypatch.setattr("tests.clusters._start_ray", fail)
    with pytest.raises(RuntimeError, match="no Ray today"), namespaced_nodes(2):
        pass
    assert listed() == ""
    assert not any(folder.exists() for folder in folders)
