"""Clusters of several Ray nodes: a job outlives a node that is killed in the middle."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.clusters import namespaced_nodes, several_nodes, why_no_namespaces
from tests.servers.child import ROOT

pytestmark = pytest.mark.slow

JOB = """
import sys, time
from pathlib import Path
import ray

done = Path(sys.argv[1])
ray.init(address="auto", log_to_driver=False)

@ray.remote(num_cpus=1, max_retries=-1)
def task(i):
    time.sleep(0.2)
    (done / str(i)).touch()
    context = ray.get_runtime_context()
    return i, context.get_node_id(), ray.util.get_node_ip_address()

for result in ray.get([task.remote(i) for i in range(24)]):
    print("result", *result)
"""


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "done").mkdir()
    return [sys.executable, str(tmp_path / "job.py"), str(tmp_path / "done")]


def wait_for(folder: str, count: int, job: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 180
    while len(list(Path(folder).iterdir())) < count:
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)


def results(job: subprocess.Popen[str]) -> list[tuple[int, str, str]]:
    output = job.communicate(timeout=240)[0]
    assert job.returncode == 0, output
    lines = [line.split() for line in output.splitlines() if line.startswith("result ")]
    return [(int(i), node, ip) for _, i, node, ip in lines]


def current_address() -> str | None:
    """What Ray takes for this machine's cluster: no test's."""
    from ray._common.utils import get_ray_address_file

    file = Path(get_ray_address_file(None))
    return file.read_text() if file.exists() else None


def test_a_job_outlives_a_node_beside_another_ray(local_ray, job) -> None:
    import ray

    before = current_address()
    with several_nodes(2) as cluster:
        first, second = cluster.nodes
        running = cluster.start(job)
        wait_for(job[-1], 6, running)
        cluster.kill(first)
        third = cluster.add()
        answers = results(running)
        assert [i for i, _, _ in answers] == list(range(24))
        assert Counter(node for _, node, _ in answers).keys() <= {first, second, third}
        assert cluster.nodes == [second, third]

        # Another token is refused, so tokens are on.
        other = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_NUM_REDIS_GET_RETRIES": "1"}
        refused = cluster.driver(job, env=other, timeout=120)
        assert refused.returncode != 0
        assert "InvalidAuthToken" in refused.stdout

        # The tests' own Ray is another one, and runs on.
        assert ray.get(ray.remote(lambda: 7).remote()) == 7
        assert ray.get_runtime_context().gcs_address != cluster.address
        assert current_address() == before
    assert ray.get(ray.remote(lambda: 8).remote()) == 8
    assert not cluster.folder.exists()


def test_a_cluster_ends_with_a_test_run_that_is_killed() -> None:
    code = (
        "import time\nfrom tests.clusters import several_nodes\n"
        "with several_nodes(0) as c:\n    print(c.folder, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as run:
        assert run.stdout is not None
        folder = Path(run.stdout.readline().decode().strip())
        assert list(folder.glob("ray/session_2*"))
        processes = psutil.Process(run.pid).children(recursive=True)
        assert {"raylet", "gcs_server"} <= {process.name() for process in processes}
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
