"""colorcore.sbatch, first with stand-ins for Slurm and Ray that really run the commands they get.

The last tests use a real Slurm, with the same stand-in for Ray.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.infra.files import INFRA, options_of, program, ray_start_options, run
from tests.infra.slurm import Slurm, slurm, why_no_slurm
from tests.infra.test_entrypoint import CC, wait_for

SCRIPT = INFRA / "slurm" / "colorcore.sbatch"

# Starts the command once per node of the step, and forwards SIGTERM to each.
SRUN = """#!/usr/bin/env bash
set -m
while [[ ${1-} == --* ]]; do
    case $1 in --nodes=*) nodes=${1#*=} ;; esac
    shift
done
pids=()
for _ in $(seq "$nodes"); do "$@" & pids+=($!); done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM
code=0
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || code=$?; done
done
exit "$code"
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
"show hostnames") printf 'node1\\nnode2\\nnode3\\n' ;;
"show job") echo "JobId=$3 JobState=$(cat state)" ;;
"requeue "*) echo "$2" >>requeued ;;
esac
"""
# A node exists as long as its process; `ray status` prints the format of Ray 2.60.
RAY = """#!/usr/bin/env bash
case $1 in
start)
    [ "$(stat -c %a "$RAY_AUTH_TOKEN_PATH")" = 600 ] || exit 9
    [ ! -e broken ] || exit 1
    echo "$*" >>started
    env >environment
    mkdir -p nodes && touch nodes/$$
    trap 'rm -f nodes/$$; exit 0' TERM
    while true; do sleep 0.05; done
    ;;
status)
    printf 'Node status\\n----\\nActive:\\n'
    for node in $(ls nodes); do echo " 1 node_$node"; done
    printf 'Pending:\\n (no pending nodes)\\n'
    ;;
esac
"""


@dataclass(frozen=True)
class Job:
    folder: Path
    env: dict[str, str]

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SCRIPT, *words], cwd=self.folder, env={**self.env, **more},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def left(self) -> list[str]:
        """Nodes and tokens that remain, although the job should have removed them."""
        tokens = self.folder.glob("home/.colorcore/*")
        return [path.name for path in [*self.folder.glob("nodes/*"), *tokens]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    programs = {"srun": SRUN, "scontrol": SCONTROL, "ray": RAY, "cc": CC}
    programs["hostname"] = "#!/bin/sh\necho 127.0.0.1 10.0.0.1\n"
    for name, text in programs.items():
        program(tmp_path / "bin" / name, text)
    (tmp_path / "home").mkdir()
    (tmp_path / "state").write_text("RUNNING")
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_GPUS_ON_NODE": "4",
        "RAY_AUTH_TOKEN": "from-elsewhere",
    }
    return Job(tmp_path, env)


ADDRESS = f"127.0.0.1:{20000 + 4711 % 1500 * 8}"


@pytest.mark.slow
def test_a_cluster_of_all_nodes_runs_the_command_and_goes(job: Job) -> None:
    process = job.start("cc", "0", "a b")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert job.lines("log") == [
        f"0 a b --address {ADDRESS} --resume",  # nothing to resume: exit code 2
        f"0 a b --address {ADDRESS}",
    ]
    head, *workers = sorted(job.lines("started"), key=lambda line: "--head" not in line)
    assert "--head" in head
    assert len(workers) == 2
    assert all(f"--address={ADDRESS}" in worker for worker in workers)
    for line in [head, *workers]:
        assert {"--num-cpus=16", "--num-gpus=4"} <= set(line.split())
        assert options_of(line.split()) <= ray_start_options()
    assert job.left == []
    assert job.lines("requeued") == []


def test_the_token_is_a_file_and_nowhere_else(job: Job) -> None:
    process = job.start("cc", "wait")
    try:
        wait_for(job.folder / "running")
        (token,) = (job.folder / "home" / ".colorcore").iterdir()
        assert token.stat().st_mode & 0o777 == 0o600
        text = token.read_text()
        assert re.fullmatch(r"[0-9a-f]{64}", text)
        environment = dict(line.partition("=")[::2] for line in job.lines("environment"))
        assert environment["RAY_AUTH_TOKEN_PATH"] == str(token)
        assert environment["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" not in environment
        assert text not in "\n".join([*environment.values(), *job.lines("started")])
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert text not in said
    assert process.returncode == 130
    assert job.left == []
    assert job.lines("requeued") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "state", "again"),
    [
        (signal.SIGUSR1, "RUNNING", True),  # the time limit is near
        (signal.SIGTERM, "RUNNING", True),  # preempted by another job
        (signal.SIGTERM, "COMPLETING", False),  # scancel
    ],
)
def test_a_signal_makes_a_checkpoint_from_which_the_job_goes_on(
    job: Job, sent: signal.Signals, state: str, again: bool
) -> None:
    process = job.start("cc", "wait")
    wait_for(job.folder / "running")
    (job.folder / "state").write_text(state)
    process.send_signal(sent)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert (job.folder / "checkpoint").exists()
    assert job.lines("requeued") == (["4711"] if again else [])
    assert job.left == []
    if sent is signal.SIGUSR1:
        (job.folder / "log").unlink()
        (job.folder / "bin" / "cc").write_text(
            CC.replace('mode == "wait"', "False").replace("int(mode)", "0")
        )
        process = job.start("cc", "wait")
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert job.lines("log") == [f"wait --address {ADDRESS} --resume"]


def test_a_command_that_fails_is_not_queued_again(job: Job) -> None:
    (job.folder / "checkpoint").touch()
    process = job.start("cc", "1")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert len(job.lines("log")) == 1
    assert job.lines("requeued") == []


def test_ray_that_does_not_start_is_an_error_and_not_a_wait(job: Job) -> None:
    (job.folder / "broken").touch()
    before = time.monotonic()
    process = job.start("cc", "0")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: a Ray step ended" in said
    assert time.monotonic() - before < 60
    assert job.left == []


def test_nodes_that_do_not_join_are_waited_for_so_long(job: Job) -> None:
    process = job.start("cc", "0", SLURM_JOB_NUM_NODES="3", COLORCORE_NODES_WAIT_S="0")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "within 0 s" in said
    assert job.left == []


def test_a_dry_run_prints_the_steps_and_starts_nothing(job: Job) -> None:
    answer = run(
        SCRIPT, "cc", "train", "photos", cwd=job.folder, env={**job.env, "COLORCORE_DRY_RUN": "1"}
    )
    assert answer.returncode == 0, answer.stderr
    head, workers, command = (shlex.split(line) for line in answer.stdout.splitlines())
    assert head[0] == workers[0] == "srun"
    assert "GRPC_ENABLE_FORK_SUPPORT=0" in head  # or clients of ray:// are turned away at random
    assert "--nodes=2" in workers
    assert "--exclude=node1" in workers
    assert command == ["cc", "train", "photos", "--address", ADDRESS, "--resume"]
    assert job.lines("started") == []
    assert job.left == []


def test_tls_is_rays_own_by_three_files(job: Job) -> None:
    job.start("cc", "0", COLORCORE_TLS="/certificates").communicate(timeout=120)
    environment = job.lines("environment")
    assert "RAY_USE_TLS=1" in environment
    assert "RAY_TLS_CA_CERT=/certificates/ca.crt" in environment
    assert "RAY_TLS_SERVER_KEY=/certificates/node.key" in environment


def test_jobs_that_share_a_node_have_ports_of_their_own(job: Job) -> None:
    def ports(number: int) -> set[int]:
        env = {**job.env, "COLORCORE_DRY_RUN": "1", "SLURM_JOB_ID": str(number)}
        text = run(SCRIPT, "cc", "0", cwd=job.folder, env=env).stdout
        return {int(port) for port in re.findall(r"port=(\d+)", text)}

    one, next_one = ports(4711), ports(4712)
    assert len(one) == 6
    assert not one & next_one
    assert max(ports(1499)) < 32768  # below the system's ephemeral ports
    assert min(ports(1500)) >= 20000


def test_outside_a_job_it_says_how_to_call_it(job: Job) -> None:
    env = {key: value for key, value in job.env.items() if not key.startswith("SLURM")}
    answer = run(SCRIPT, "cc", "0", env=env)
    assert answer.returncode != 0
    assert "sbatch" in answer.stderr
    assert run(SCRIPT, env=job.env).returncode == 2


def test_slurm_is_told_to_warn_and_to_queue_again() -> None:
    options = re.findall(r"^#SBATCH (\S+)$", SCRIPT.read_text(), flags=re.MULTILINE)
    assert {"--requeue", "--signal=B:USR1@180", "--open-mode=append"} <= set(options)
    assert "--ntasks-per-node=1" in options


# -- on a real Slurm ------------------------------------------------------------------------------

# Fails when Ray is gone, as `cc` does, and ends once the file `finish` exists.
ENDLESS = (
    CC.replace('mode == "wait"', 'not pathlib.Path("finish").exists()')
    .replace(
        "time.sleep(60)",
        "while any(pathlib.Path('nodes').iterdir()): time.sleep(0.05)\n        mode = '1'",
    )
    .replace("sys.exit(int(mode))", "sys.exit(mode == '1')")
)
USER_SIGNAL = "SlurmctldParameters=preempt_send_user_signal"


@pytest.fixture
def real_job(job: Job) -> Job:
    """The job with Slurm's own srun and scontrol instead of the stand-ins."""
    if reason := why_no_slurm():  # no Slurm, or not root
        pytest.skip(reason)
    for name in ("srun", "scontrol"):
        (job.folder / "bin" / name).unlink()
    program(job.folder / "bin" / "cc", ENDLESS)
    return job


def submit(here: Slurm, job: Job) -> str:
    """Submits a job on all nodes, waits until its command runs, and returns its number."""
    words = (SCRIPT, "cc", "wait")
    number = here.call(
        "sbatch", "--parsable", *nodes(job), "--output=job.log", *words,
        PATH=job.env["PATH"], HOME=job.env["HOME"],
    ).strip()  # fmt: skip
    here.wait_for((job.folder / "running").exists)
    return number


def processes(job: Job) -> list[psutil.Process]:
    """The job's processes that still run; Slurm kills those that did not end in time."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(job.folder):
                found.append(process)
    return found


def nodes(job: Job) -> tuple[str, ...]:
    return ("--nodes=3", "--cpus-per-task=2", f"--chdir={job.folder}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("taken_by", "conf", "in_order"),
    [
        ("another job", USER_SIGNAL, True),
        ("another job", "", False),  # kills the steps, and Ray with them
        ("its time", "", True),  # sent by the test, because limits are whole minutes
    ],
)
def test_a_job_whose_nodes_are_taken_queues_again_and_goes_on(
    real_job: Job,
    taken_by: str,
    conf: str,
    in_order: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    job = real_job
    with slurm(tmp_path_factory.mktemp("slurm"), conf) as here:
        number = submit(here, job)
        address = f"127.0.0.1:{20000 + int(number) % 1500 * 8}"
        assert len(job.lines("started")) == 3
        if taken_by == "another job":
            more = ("--partition=high", "--output=/dev/null", "--wrap=true")
            here.call("sbatch", *nodes(job), *more)
        else:
            here.call("scancel", "--batch", "--signal=USR1", number)
        here.wait_for(lambda: here.job(number)["Restarts"] == "1")
        here.wait_for(lambda: here.job(number)["JobState"] == "PENDING")
        assert (job.folder / "checkpoint").exists() == in_order
        (job.folder / "checkpoint").touch()  # as if written earlier
        (job.folder / "finish").touch()
        # To tell the requeued job from the revoked one, Slurm waits two minutes; shorten that.
        here.call("scontrol", "update", f"JobId={number}", "StartTime=now+3")
        here.wait_for(lambda: here.job(number)["JobState"] == "COMPLETED")
    assert job.lines("log") == [
        f"wait --address {address} --resume",  # nothing to resume yet
        f"wait --address {address}",
        f"wait --address {address} --resume",
    ]
    assert len(job.lines("started")) == 6
    assert processes(job) == []
    assert not list((job.folder / "home" / ".colorcore").iterdir())


@pytest.mark.slow
def test_a_job_that_is_cancelled_ends(
    real_job: Job, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with slurm(tmp_path_factory.mktemp("slurm")) as here:
        number = submit(here, real_job)
        here.call("scancel", number)
        here.wait_for(lambda: here.job(number)["JobState"] == "CANCELLED")
        here.wait_for(lambda: not here.call("squeue", "--noheader"))
        assert here.job(number)["Restarts"] == "0"
    assert processes(real_job) == []
    assert not list((real_job.folder / "home" / ".colorcore").iterdir())
