"""What OpenMP is told, as libgomp itself reports it when torch loads it."""

import os
import subprocess
import sys

import pytest

from colorcore.cpu import WAITING

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux")
COMMAND = "from cli.main import main; main(['colorcore', 'recipes']); import torch"


def spins(script: str, **more: str) -> int:
    """How often a waiting thread looks before it sleeps, in a process that runs the script."""
    env = {name: value for name, value in os.environ.items() if name != WAITING}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**env, "OMP_DISPLAY_ENV": "verbose", **more},
        capture_output=True,
        text=True,
        check=True,
    )
    # Not the policy's own line: it says PASSIVE for a policy that is not set, too.
    line = next(line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line)
    return int(line.partition("= ")[2].strip("'"))


@pytest.mark.slow
def test_a_commands_threads_wait_passively_unless_the_user_says_otherwise():
    assert spins("import torch") > 0
    assert spins(COMMAND) == 0
    assert spins(COMMAND, OMP_WAIT_POLICY="ACTIVE") > 0


@pytest.mark.slow
def test_workers_of_a_local_ray_inherit_it():
    script = (
        "import os, ray\n"
        "from pipelines.cluster import ray_session\n"
        "with ray_session(cpus=1):\n"
        f"    print('it is', ray.get(ray.remote(lambda: os.environ.get({WAITING!r})).remote()))\n"
    )
    env = {name: value for name, value in os.environ.items() if name != WAITING}
    for asked, expected in (({}, "PASSIVE"), ({WAITING: "ACTIVE"}, "ACTIVE")):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**env, **asked},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"it is {expected}" in done.stdout
