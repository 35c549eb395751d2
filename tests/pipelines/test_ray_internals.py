"""What the use of Ray's private names is for, with Ray itself."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipelines.ray_internals import is_private, lean_trainer

pytestmark = pytest.mark.slow


def _actors() -> dict[str, str]:
    """All actors that this Ray has had: class names by id."""
    from ray._private.state import actors

    return {key: each["ActorClassName"] for key, each in actors().items()}


def test_a_training_starts_no_actor_that_has_nothing_to_do(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`TorchTrainer` starts a DatasetManager, an _AutoscalingCoordinatorActor and a
    PlacementGroupCleaner besides.
    """
    from ray.train import RunConfig, ScalingConfig

    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # as `run_workers` sets it
    before = _actors().keys()
    lean_trainer()(
        lambda: None,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(storage_path=str(tmp_path)),
    ).fit()
    started = [name for key, name in _actors().items() if key not in before]
    assert sorted(started) == ["RayTrainWorker", "SynchronizationActor", "TrainController"]


def test_a_private_ray_runs_no_process_for_clusters(local_ray: None) -> None:
    assert is_private()
    commands = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # one that has just ended
            commands.append(" ".join(each.cmdline()))
    text = "\n".join(commands)
    assert "/gcs_server" in text  # else the names below may have changed
    assert "/raylet" in text
    for name in ("monitor.py", "dashboard.py", "UsageStats"):
        assert name not in text


def test_a_ray_that_the_user_started_is_not_private() -> None:
    """It has a dashboard, perhaps, and lasts longer than a training."""
    code = (
        "import ray\n"
        "from pipelines.ray_internals import is_private\n"
        "assert not is_private()\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "print(is_private())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False"]
