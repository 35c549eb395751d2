"""Ctrl-C, SIGTERM and SIGKILL in the middle of a training: it says so, leaves nothing running, and
goes on as if nothing had been.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.dataset.samples import Samples
from colorcore.recipes.recipe import load_recipe
from colorcore.training.events import Observer, StepEvent
from pipelines.priors import make_palette
from tests.mlflow_store import new_store
from tests.processes import remaining
from tests.trainings import fit_here

pytestmark = pytest.mark.slow

SETTINGS = {
    "model.channels": 6,
    "model.depth": 3,
    "model.dropout": 0.1,
    "data.batch": 4,
    "data.crop": 0.7,
    "train.epochs": 30,
    "train.eval_every": 15,
    "train.save_every": 11,
}
STEPS_AN_EPOCH = 6
OVERRIDES = [f"{key}={value}" for key, value in SETTINGS.items()]


@pytest.fixture
def command(dataset: Path, tmp_path: Path) -> list[str]:
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    make_palette(copy, bins=16)
    assert len(Samples(copy, "train")) // SETTINGS["data.batch"] == STEPS_AN_EPOCH
    new_store(tmp_path)
    overrides = [word for override in OVERRIDES for word in ("--set", override)]
    return [
        sys.executable, "-m", "cli.main", "train", str(copy), "--recipe", "unet-l1", *overrides,
        "--out", "model", "--json",
    ]  # fmt: skip


class Run:
    """A `cc train` in a session of its own, as a terminal starts it."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.folder = folder
        # Under nohup it is ignored, and a suspended worker would go on once Ray has gone.
        hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        self.process = subprocess.Popen(
            command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        signal.signal(signal.SIGHUP, hangup)
        self.family: list[psutil.Process] = []

    def wait_for(self, there: Callable[[], object]) -> None:
        deadline = time.monotonic() + 240
        while not there():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def close(self) -> None:
        """Leave nothing behind, whatever failed."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def send(self, how: signal.Signals) -> None:
        """A signal: SIGINT to all in the terminal, as Ctrl-C does, others to `cc` alone."""
        if how is signal.SIGINT:
            os.killpg(self.process.pid, how)
        else:
            self.process.send_signal(how)

    def end(self) -> tuple[int, str, str]:
        """Its exit code, what it printed and what it said."""
        output, errors = self.process.communicate(timeout=240)
        return self.process.returncode, output, errors

    def worker(self) -> psutil.Process:
        """The one that trains."""
        (one,) = [each for each in self.family if "RayTrainWorker" in " ".join(each.cmdline())]
        return one


def step_of(folder: Path) -> int:
    """The step that ``last`` is of; 0 if there is none, or it is being replaced."""
    try:
        record = json.loads((folder / "model/last/checkpoint.json").read_text())
    except FileNotFoundError:
        return 0
    return int(record["epoch"] * STEPS_AN_EPOCH + record["step"])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str]], Run]]:
    runs = []

    def _start(command: list[str]) -> Run:
        runs.append(Run(command, tmp_path))
        return runs[-1]

    yield _start
    for run in runs:
        run.close()


class Losses(Observer):
    """The loss of every step."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_step(self, event: StepEvent) -> None:
        self.by_step[event.step] = event.loss


def said_where(errors: str) -> tuple[int, int]:
    """After which step of how many a training stopped, as its last line says."""
    (said,) = [line for line in errors.splitlines() if line.startswith("interrupted")]
    found = re.fullmatch(r"interrupted: stopped after step (\d+) of (\d+); .*--resume.*", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


def assert_same(one_out: Path, other_out: Path) -> None:
    """Two trainings' weights, optimiser states, scores and signs, bit for bit."""
    for name in ("best", "last"):
        mine, theirs = (
            load_checkpoint(out / name, training=name == "last") for out in (one_out, other_out)
        )
        for one, other in ((mine.weights, theirs.weights), (mine.training, theirs.training)):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)
        assert (mine.scores, mine.decoded, mine.signs) == (
            theirs.scores, theirs.decoded, theirs.signs
        )  # fmt: skip


@pytest.mark.timeout(1200)  # four starts of Ray
def test_a_training_that_is_interrupted_again_and_again_is_that_which_never_was(
    command: list[str],
    start: Callable[[list[str]], Run],
    tmp_path: Path,
) -> None:
    # Killed: what was saved is there, and nothing runs on.
    run = start(command)
    run.wait_for(lambda: step_of(tmp_path) > 0)
    run.send(signal.SIGKILL)
    assert run.end()[0] == -signal.SIGKILL
    assert not remaining(run.family)
    killed = step_of(tmp_path)
    assert killed > 0

    # Resumed, and Ctrl-C: it says at which step it stopped, and last is of that very step.
    run = start([*command, "--resume"])
    run.wait_for(lambda: step_of(tmp_path) > killed)
    run.send(signal.SIGINT)
    code, output, errors = run.end()
    assert code == 130, errors
    assert json.loads(output)["exit_code"] == 130
    assert "Traceback" not in errors
    stopped, total = said_where(errors)
    assert not remaining(run.family)
    assert killed < step_of(tmp_path) == stopped < total
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (stored,) = client.search_runs(["1"])  # the same run
    assert stored.info.status == "KILLED"

    # Its worker hangs, so that it cannot stop in order after SIGTERM; Ctrl-C ends it at once.
    run = start([*command, "--resume"])
    run.wait_for(lambda: step_of(tmp_path) > stopped)
    run.worker().suspend()
    run.send(signal.SIGTERM)
    time.sleep(1)
    assert run.process.poll() is None
    hung = step_of(tmp_path)
    run.send(signal.SIGINT)
    code, _, errors = run.end()
    assert code == 130, errors
    assert "stopping after this step" in errors
    assert "interrupted; rerun the same command with --resume to continue" in errors
    assert "Traceback" not in errors
    assert not remaining(run.family)
    assert step_of(tmp_path) == hung

    # Resumed once more, saving at other steps: its worker is killed, replaced, and it ends.
    run = start([*command, "--resume", "--set", "train.save_every=9"])
    run.wait_for(lambda: step_of(tmp_path) > hung)
    run.worker().kill()
    code, output, errors = run.end()
    assert code == 0, errors
    assert f'"steps": {total}' in output
    assert not remaining(run.family)

    assert client.get_run(stored.info.run_id).info.status == "FINISHED"
    logged = client.get_metric_history(stored.info.run_id, "train/loss")
    # A killed process may have been about to send its last few seconds' points.
    assert {point.step for point in logged} >= {*range(10, killed - 10, 10), total}

    # The same weights and the same losses as if nothing had been.
    whole = Losses()
    fit_here(
        load_recipe("unet-l1", OVERRIDES), tmp_path / "dataset", tmp_path / "whole", whole
    )  # fmt: skip
    assert_same(tmp_path / "model", tmp_path / "whole")
    assert all(point.value == whole.by_step[point.step] for point in logged)
