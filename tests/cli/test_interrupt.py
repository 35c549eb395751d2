"""Ctrl-C and SIGKILL in the middle of a training: it says so, leaves nothing, and goes on."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from colorcore.checkpoint import load_checkpoint
from pipelines.priors import make_palette

SETTINGS = {
    "model.channels": 4,
    "model.depth": 2,
    "data.batch": 4,
    "train.epochs": 400,
    "train.eval_every": 2,
}


@pytest.fixture
def command(dataset: Path, tmp_path: Path) -> list[str]:
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    make_palette(copy, bins=16)
    overrides = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    return [
        sys.executable, "-m", "cli.main", "train", str(copy), "--recipe", "unet-l1", *overrides,
        "--out", "model", "--json",
    ]  # fmt: skip


AGENTS = ("DashboardAgent", "RuntimeEnvAgent")
"""Ray's idle agents outlive a killed driver by a while; what trains must not."""


def stop(
    command: list[str], how: signal.Signals, folder: Path
) -> tuple[int, str, list[psutil.Process]]:
    """Send a signal once a checkpoint is there; returns exit code, stderr and all processes."""
    process = subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 120
    while not (folder / "model" / "last" / "checkpoint.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors, family


def remaining(family: list[psutil.Process], seconds: float) -> list[str]:
    """What still runs after that time, but for the agents, which are ended here."""
    _, alive = psutil.wait_procs(
        [process for process in family if not is_agent(process)], timeout=seconds
    )
    left = [" ".join(process.cmdline()) for process in alive if process.is_running()]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return left


def is_agent(process: psutil.Process) -> bool:
    try:
        return any(agent in " ".join(process.cmdline()) for agent in AGENTS)
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_says_so_and_the_training_can_be_resumed(command: list[str], tmp_path: Path) -> None:
    code, errors, family = stop(command, signal.SIGINT, tmp_path)
    assert code == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not remaining(family, 20)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs(["1"])
    assert run.info.status == "KILLED"
    epoch = load_checkpoint(tmp_path / "model" / "last").epoch
    assert 0 < epoch < SETTINGS["train.epochs"]
    shorter = [word.replace("train.epochs=400", f"train.epochs={epoch}") for word in command]
    refused = subprocess.run(
        [*shorter, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert f"train.epochs is 400 there, {epoch} asked" in refused.stderr


def test_a_killed_training_leaves_no_processes_and_a_whole_checkpoint(
    command: list[str], tmp_path: Path
) -> None:
    code, _, family = stop(command, signal.SIGKILL, tmp_path)
    assert code == -signal.SIGKILL
    assert not remaining(family, 40)
    before = load_checkpoint(tmp_path / "model" / "last").epoch
    # Resumed and interrupted again: it went on from there, in the same run.
    (tmp_path / "model" / "last" / "seen").touch()
    process = subprocess.Popen(
        [*command, "--resume"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while (tmp_path / "model" / "last" / "seen").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert load_checkpoint(tmp_path / "model" / "last").epoch > before
    assert len(MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"])) == 1
