"""Ray's private names. No other file uses any; tested with Ray 2.60, to which pyproject caps it.

Ray is imported inside the functions, because `pipelines.cluster` sets its environment first.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

_PRESTART = "RAY_prestart_worker_first_driver"
"""The variable by which Ray starts a worker per CPU before there is anything to do."""


@contextmanager
def private_node() -> Iterator[None]:
    """Let a Ray that starts in the block serve this process alone, and quickly."""
    with _on_loopback(), _without_services():
        yield


@contextmanager
def _without_services() -> Iterator[None]:
    """Leave out processes that have nothing to do without a cluster and a dashboard.

    Each costs seconds of CPU time to start: the autoscaler's monitor, the one that would send
    workers' logs here (`log_to_driver` is off), the dashboard's process, which without the
    dashboard only sends usage statistics (they are off, too), and one idle worker per CPU.
    """
    node: Any = importlib.import_module("ray._private.node").Node

    def no_dashboard(self: Any, **_: Any) -> None:
        self._webui_url = ""

    instead = {
        "start_monitor": lambda _: None,
        "start_log_monitor": lambda _: None,
        "start_api_server": no_dashboard,
    }
    before = {name: getattr(node, name) for name in instead}
    asked = os.environ.get(_PRESTART)
    os.environ.setdefault(_PRESTART, "0")
    for name, method in instead.items():
        setattr(node, name, method)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(node, name, method)
        if asked is None:
            del os.environ[_PRESTART]


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Make a Ray that starts in the block listen on 127.0.0.1 only.

    By default Ray's services listen on all addresses of a Linux machine, but not on macOS and
    Windows. Ray reads this switch between the two when it is imported.
    """
    import ray._private.ray_constants as constants

    before = constants.ENABLE_RAY_CLUSTER, os.environ.get(constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
    constants.ENABLE_RAY_CLUSTER = False
    os.environ[constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that Ray starts
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before[0]
        if before[1] is None:
            del os.environ[constants.ENABLE_RAY_CLUSTERS_ENV_VAR]
        else:
            os.environ[constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = before[1]


def uses_token_auth() -> bool:
    """Whether this process's Ray authenticates by token; Ray has no public way to ask."""
    raylet: Any = importlib.import_module("ray._raylet")  # compiled, so without types
    return bool(raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN)


def is_private() -> bool:
    """Whether this process started its Ray by :func:`private_node`, and not otherwise."""
    worker: Any = importlib.import_module("ray._private.worker")
    constants: Any = importlib.import_module("ray._private.ray_constants")
    node = worker._global_node
    return (
        node is not None
        and bool(node.head)
        and constants.PROCESS_TYPE_MONITOR not in node.all_processes
    )


def lean_trainer() -> type[TorchTrainer]:
    """A `TorchTrainer` that leaves Ctrl-C alone and starts faster; its class is made on each call.

    - Ray's own handler of Ctrl-C aborts the workers at once, before they can save a checkpoint;
      `pipelines.training.interrupts` has ours. ``controller`` is the actor, for the second Ctrl-C.
    - Actors of Ray Train that have nothing to do are left out: the one that serves Ray Data's
      datasets, and in a private Ray the one that asks an autoscaler for nodes, for which the
      workers would wait, and the one that asks the dashboard whether the controller still lives.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    base: Any = TorchTrainer  # Ray declares it as the one of Ray Train 1

    class FixedWorkers(FixedScalingPolicy):
        """As many workers as asked for, from the nodes that there are."""

        def after_controller_start(self, train_run_context: Any) -> None:
            """Do not start the actor."""

        def _maybe_send_resource_request(self) -> None:
            """Do not ask for nodes."""

    class Trainer(base):  # type: ignore[misc]
        controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            self.controller = controller

        def _create_default_callbacks(self) -> Any:
            idle = (DatasetsCallback, *((PlacementGroupCleanerCallback,) if is_private() else ()))
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if not isinstance(each, idle)]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            if type(parts["scaling_policy"]) is FixedScalingPolicy and is_private():
                parts["scaling_policy"] = FixedWorkers(self.scaling_config)
            return super()._initialize_and_run_controller(**parts)

    return Trainer


def run_tune_here(trainable: type, folder: str, **options: Any) -> None:
    """`ray.tune.run` in this process, also when it is connected by ``ray://``.

    By itself Ray Tune would move to the cluster's head then, with a pickled copy of everything
    that it is given.

    folder  for Ray Tune's own records
    """
    import ray
    from ray import tune

    if ray.util.client.ray.is_connected():
        # No node of Ray runs here, so there is no folder of its session.
        storage: Any = importlib.import_module("ray.train._internal.storage")
        storage._get_ray_train_session_dir = lambda: folder
    tune.run(trainable, storage_path=folder, _remote=False, **options)


def drop_trials(controller: Any) -> None:
    """Kill the processes of Ray Tune's trials, and free what they hold.

    `ray.tune.run` does this for an Exception only: after Ctrl-C they would stay until Python
    collects the controller.
    """
    controller._actor_manager.cleanup()


def set_rank_variables() -> None:
    """In a worker: set LOCAL_RANK and what else torch needs to know from Ray Train."""
    from ray.train.torch.config import _set_torch_distributed_env_vars

    _set_torch_distributed_env_vars()


def join_process_group(backend: str, rank: int, world: int) -> None:
    """In a worker: join the process group at MASTER_ADDR, with Ray Train's settings of NCCL."""
    from ray.train.torch.config import _setup_torch_process_group

    _setup_torch_process_group(backend, rank, world, "env://")
