"""What the use of Ray's private names is for, with Ray itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.ray_internals import has_autoscaler, lean_trainer

pytestmark = pytest.mark.slow


def _actors() -> dict[str, str]:
    """All actors that this Ray has had: class names by id."""
    from ray._private.state import actors

    return {key: each["ActorClassName"] for key, each in actors().items()}


def test_a_training_starts_no_actor_that_has_nothing_to_do(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`TorchTrainer` itself adds a DatasetManager and an _AutoscalingCoordinatorActor."""
    from ray.train import RunConfig, ScalingConfig

    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # as `run_workers` sets it
    before = _actors().keys()
    lean_trainer()(
        lambda: None,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(storage_path=str(tmp_path)),
    ).fit()
    started = {name for key, name in _actors().items() if key not in before}
    expected = {"TrainController", "RayTrainWorker", "SynchronizationActor"}
    assert started == {*expected, "PlacementGroupCleaner"}


def test_a_ray_of_ones_own_has_no_autoscaler(local_ray: None) -> None:
    assert not has_autoscaler()
