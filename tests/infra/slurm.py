"""A three-node Slurm on this machine, whose processes end with the test."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n1", "n2", "n3")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
{nodes}
PartitionName=low Nodes={names} Default=YES PriorityTier=1 GraceTime=60 PreemptMode=REQUEUE
PartitionName=high Nodes={names} PriorityTier=2 PreemptMode=OFF
{more}
"""


def why_no_slurm() -> str:
    """Why Slurm cannot run on this machine; empty if it can."""
    missing = [name for name in DAEMONS if shutil.which(name, path=PATH) is None]
    if missing:
        return f"no {', '.join(missing)} found; install slurmctld, slurmd and slurm-client"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


@dataclass(frozen=True)
class Slurm:
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *words: str | Path, **more: str) -> str:
        """Runs a Slurm command and returns its stdout."""
        done = subprocess.run(
            [*map(str, words)], cwd=self.folder, env={**os.environ, **self.env, **more},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """A job's fields, as reported by `scontrol show job`."""
        words = self.call("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, there: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < end, self.call("squeue")
            time.sleep(0.1)


@contextmanager
def slurm(folder: Path, more: str = "") -> Iterator[Slurm]:
    """Starts Slurm in an empty folder; ``more`` is appended to its configuration."""
    here = Slurm(folder)
    ports = [_free_port() for _ in range(len(NODES) + 1)]
    host = socket.gethostname()
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2"
        for name, port in zip(NODES, ports[1:], strict=True)
    ]
    (folder / "slurm.conf").write_text(
        CONF.format(
            host=host, port=ports[0], user=getpass.getuser(), folder=folder, more=more,
            nodes="\n".join(nodes), names=",".join(NODES),
        )
    )  # fmt: skip
    (folder / "state").mkdir()
    for name in NODES:
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    commands = [
        [
            "munged", "--foreground", "--force", f"--socket={folder}/munge.socket",
            f"--key-file={key}", f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/seed",
            f"--log-file={folder}/munge.log",
        ],
        ["slurmctld", "-D", "-i"],
        *(["slurmd", "-D", "-N", name] for name in NODES),
    ]  # fmt: skip
    with ExitStack() as running:
        for command in commands:
            running.enter_context(_daemon(command, here))
            if command[0] == "munged":
                here.wait_for((folder / "munge.socket").exists)
        here.wait_for(
            lambda: here.call("sinfo", "-h", "-t", "idle", "-o", "%D", "-p", "low") == "3\n"
        )
        try:
            yield here
        finally:  # a failed test may leave a job behind
            here.call("scancel", "--user", getpass.getuser())
            here.wait_for(lambda: not here.call("squeue", "-h"))


@contextmanager
def _daemon(command: list[str], here: Slurm) -> Iterator[None]:
    with (here.folder / f"{command[0]}-{command[-1]}.log".replace("/", "_")).open("wb") as log:
        process = subprocess.Popen(
            command, cwd=here.folder, env={**os.environ, **here.env, "PATH": PATH},
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
