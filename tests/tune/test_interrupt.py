"""A study's process killed and interrupted in the middle: what ended stays, the rest goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.training.events import Observer, ValidationEvent
from pipelines.priors import make_palette
from tests.mlflow_store import new_store
from tests.processes import remaining
from tests.trainings import fit_here, rows_of

pytestmark = pytest.mark.slow

SETTINGS = {
    "model.channels": 4,
    "model.depth": 2,
    "model.norm": "group",
    "data.batch": 4,
    "train.epochs": 8,
    "train.metric": "psnr",  # the study's goes before it
}


@pytest.fixture
def command(dataset: Path, tmp_path: Path) -> list[str]:
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    make_palette(copy, bins=16)
    new_store(tmp_path)
    space = "[study]\nprune_signs = false\n[optim.lr]\nlog = [1e-4, 1e-2]\n"
    (tmp_path / "space.toml").write_text(space)
    sets = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    return [
        sys.executable, "-m", "cli.main", "tune", str(copy), "--recipe", "unet-l1", *sets,
        "--space", "space.toml", "--trials", "3", "--concurrent", "1", "--scheduler", "none",
        "--json",
    ]  # fmt: skip


def stop(command: list[str], how: signal.Signals, last: Path) -> tuple[int, str]:
    """Send a signal once the trial has a new checkpoint, one without "seen"."""
    process = subprocess.Popen(
        command, cwd=last.parents[3], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 240
    while (last / "seen").exists() or not (last / "checkpoint.json").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    assert not remaining(family)
    return process.returncode, errors


class Curve(Observer):
    """Balanced AuC by step, as it would have been without an interruption."""

    def __init__(self) -> None:
        self.points: dict[int, float] = {}

    def on_validation(self, event: ValidationEvent) -> None:
        self.points[event.step] = event.scores["auc_balanced"]


def test_a_study_is_killed_then_interrupted_then_finished(
    command: list[str], tmp_path: Path
) -> None:
    study = tmp_path / "study"
    last = study / "trials" / "0001" / "last"
    code, _ = stop(command, signal.SIGKILL, last)
    assert code == -signal.SIGKILL
    assert load_checkpoint(last).epoch < SETTINGS["train.epochs"]
    (first,) = rows_of(study)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")

    # Not without --resume; then it goes on, and Ctrl-C ends it in order.
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "continue it with --resume" in again.stderr
    (last / "seen").touch()
    code, errors = stop([*command, "--resume"], signal.SIGINT, last)
    assert code == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    states = {run.info.run_name: run.info.status for run in client.search_runs(["1"])}
    assert states == {"study": "KILLED", "study-0000": "FINISHED", "study-0001": "KILLED"}

    done = subprocess.run(
        [*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["trials"] == {"finished": 3}
    rows = rows_of(study)
    assert rows[0] == first
    of_first = client.get_metric_history(first["run_id"], "val/psnr")
    assert len(of_first) == SETTINGS["train.epochs"]  # it was not trained again

    # The interrupted trial has the course of one that never was; nothing is missing, and at most
    # the epoch that each interruption fell into was validated twice.
    runs = client.search_runs(["1"], "attributes.run_name = 'study-0001'")
    (run,) = runs
    told = client.get_metric_history(run.info.run_id, "val/auc_balanced")
    whole = Curve()
    recipe = load_checkpoint(study / "trials" / "0001" / "best").recipe
    fit_here(recipe, tmp_path / "dataset", tmp_path / "whole", whole)
    assert {point.step: point.value for point in told} == pytest.approx(whole.points)
    assert len(told) <= len(whole.points) + 2
    assert float(rows[1]["auc_balanced"]) == pytest.approx(max(whole.points.values()))
