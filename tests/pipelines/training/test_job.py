"""What trainings have in common before and after their workers: wrong settings, and retries."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray.exceptions import ActorDiedError, NodeDiedError, RayTaskError, WorkerCrashedError
from torch.distributed import TCPStore

from colorcore.checkpoints.checkpoint import CheckpointError
from colorcore.losses.term import LossError
from colorcore.recipes.recipe import load_recipe
from colorcore.storage.store import StorageError
from colorcore.training.events import TrainingDivergedError
from pipelines.errors import JobError, WrongCallError
from pipelines.training.job import (
    describe_error,
    is_worth_a_retry,
    parse_workers,
    with_absolute_files,
)

# Rank 1 dies. Rank 0 prints how each collective that a training uses reports that, each in a group
# of its own, because a group stays broken.
RANK = """
import os
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from pipelines.training.job import is_worth_a_retry

distributed.init_process_group("gloo")
ones, groups = torch.ones(100_000), [distributed.new_group() for _ in range(5)]
model = DistributedDataParallel(torch.nn.Linear(8, 8), process_group=groups[0])
loss = model(torch.ones(2, 8)).sum()
collectives = {
    "backward": loss.backward,
    "all_reduce": lambda: distributed.all_reduce(ones, group=groups[1]),
    "barrier": lambda: distributed.barrier(groups[2]),
    "broadcast": lambda: distributed.broadcast(ones, 1, group=groups[3]),
    "objects": lambda: distributed.broadcast_object_list([None], 1, group=groups[4]),
}
for group in groups:
    distributed.barrier(group)
if distributed.get_rank() == 1:
    os._exit(9)
for name, run in collectives.items():
    try:
        run()
    except Exception as error:
        print(name, type(error).__name__, is_worth_a_retry(error), flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_collectives_with_a_killed_rank_are_worth_a_retry() -> None:
    """Two real ranks over gloo, whose errors have no type of their own."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env={**meeting, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    printed = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert ranks[1].returncode == 9
    assert printed[0].splitlines() == [
        f"{collective} RuntimeError True"
        for collective in ("backward", "all_reduce", "barrier", "broadcast", "objects")
    ]


def _broken(function: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each is raised by torch itself
        function()
    return caught.value


FAULTS = {
    "shape": _broken(lambda: torch.ones(2, 3) @ torch.ones(2, 3)),
    "host memory": _broken(lambda: torch.empty(2**60)),
    "GPU memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "NCCL on a full GPU": torch.distributed.DistBackendError(
        "NCCL error: unhandled cuda error. Cuda failure 2 'out of memory'"
    ),
    "two ranks on a GPU": torch.distributed.DistBackendError(
        "NCCL error: ncclInvalidUsage: Duplicate GPU detected"
    ),
    "another RuntimeError": RuntimeError("element 0 of tensors does not require grad"),
    "diverged": TrainingDivergedError("the loss is nan"),
    "loss": LossError("no such term"),
    "checkpoint": CheckpointError("damaged"),
    "storage": StorageError("no answer"),
    "job": JobError("found another folder"),
    "a rank's own, through Ray": RayTaskError("run", "Traceback", ValueError("wrong")),
}
LOSSES = {
    "NCCL": torch.distributed.DistBackendError(
        "NCCL error: remote process exited or there was a network error"
    ),
    "rendezvous": torch.distributed.DistNetworkError("The client socket has timed out"),
    "store": torch.distributed.DistStoreError("wait timeout after 300000ms"),
    "actor": ActorDiedError(),
    "process": WorkerCrashedError(),
    "node": NodeDiedError("terminated"),
    "a broken connection, through Ray": RayTaskError(
        "run",
        "Traceback",
        RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"),
    ),
    "a silent peer": RuntimeError(
        "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 20000ms for recv operation"
    ),
}


@pytest.mark.parametrize("error", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_not_retried(error: Exception) -> None:
    assert not is_worth_a_retry(error)


@pytest.mark.parametrize("error", LOSSES.values(), ids=LOSSES)
def test_a_lost_process_or_connection_is_worth_a_retry(error: Exception) -> None:
    assert is_worth_a_retry(error)


def test_an_error_is_described_in_one_line() -> None:
    assert describe_error(JobError("found none; do this")) == "found none; do this"
    assert describe_error(RuntimeError("first\nsecond")) == "RuntimeError: first"
    assert describe_error(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("text", "workers"), [("1", 1), ("16", 16), ("2-8", (2, 8)), ("3-3", (3, 3))]
)
def test_numbers_of_workers(text: str, workers: object) -> None:
    assert parse_workers(text) == workers


@pytest.mark.parametrize("text", ["", "0", "0-2", "3-2", "two", "2-", "-2", "1-2-3", "1.5"])
def test_what_is_no_number_of_workers(text: str) -> None:
    with pytest.raises(WrongCallError, match=r"such as 4, or a range such as 2-8, got "):
        parse_workers(text)


def test_files_that_a_recipe_names_are_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("encoder.pth", "vgg.pth"):
        Path(name).touch()
    names = ["loss.perceptual=1", "loss_options.perceptual.weights=./vgg.pth"]
    relative = load_recipe("bins", ["model.encoder_weights=encoder.pth", *names])
    flat = with_absolute_files(relative).flat()
    assert flat["model.encoder_weights"] == str(tmp_path / "encoder.pth")
    assert flat["loss_options.perceptual.weights"] == str(tmp_path / "vgg.pth")
    changed = {key for key, value in relative.flat().items() if flat[key] != value}
    assert changed == {"model.encoder_weights", "loss_options.perceptual.weights"}
