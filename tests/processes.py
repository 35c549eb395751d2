"""Processes of commands: one that runs to its end, where others listen, and what they leave."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

AGENTS = ("DashboardAgent", "RuntimeEnvAgent")
"""Ray's idle agents outlive a killed driver by a while; what trains must not."""


def run_cc(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; the fixture ``cc`` runs it in this one, sooner."""
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=cwd, timeout=120,
    )  # fmt: skip


def remaining(family: list[psutil.Process], seconds: float = 60) -> list[str]:
    """What still runs after that time, but for the agents, which are ended here."""
    own = [process for process in family if not _is_agent(process)]
    _, alive = psutil.wait_procs(own, timeout=seconds)
    left = [" ".join(process.cmdline()) for process in alive if process.is_running()]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return left


def _is_agent(process: psutil.Process) -> bool:
    try:
        return any(agent in " ".join(process.cmdline()) for agent in AGENTS)
    except psutil.NoSuchProcess:
        return False


def listening(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Addresses and ports at which processes take TCP connections."""
    wanted = set(pids)
    return {
        (each.laddr.ip.removeprefix("::ffff:"), each.laddr.port)
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.pid in wanted
    }
