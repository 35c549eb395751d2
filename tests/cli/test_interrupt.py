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
    """Send a signal once a new checkpoint is there, one without "seen"; returns exit code, stderr
    and all processes.
    """
    last = folder / "model" / "last"
    process = subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 240
    while (last / "seen").exists() or not (last / "checkpoint.json").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors, family


def remaining(family: list[psutil.Process], seconds: float = 60) -> list[str]:
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


def test_a_training_is_killed_then_resumed_and_interrupted(
    command: list[str], tmp_path: Path
) -> None:
    last = tmp_path / "model" / "last"
    code, _, family = stop(command, signal.SIGKILL, tmp_path)
    assert code == -signal.SIGKILL
    assert not remaining(family)
    before = load_checkpoint(last).epoch
    assert 0 < before < SETTINGS["train.epochs"]

    # Resumed: it goes on from there. Ctrl-C says what it did, and leaves nothing running either.
    (last / "seen").touch()
    code, errors, family = stop([*command, "--resume"], signal.SIGINT, tmp_path)
    assert code == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not remaining(family)
    epoch = load_checkpoint(last).epoch
    assert before < epoch < SETTINGS["train.epochs"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs(["1"])  # the same run
    assert run.info.status == "KILLED"

    # As it was asked for, or not at all.
    shorter = [word.replace("train.epochs=400", f"train.epochs={epoch}") for word in command]
    refused = subprocess.run(
        [*shorter, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert f"train.epochs is 400 there, {epoch} asked" in refused.stderr
