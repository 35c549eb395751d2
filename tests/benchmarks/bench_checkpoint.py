"""An epoch's end with checkpoints in the background, beside one that waits for them.

A U-Net of 64 channels and its optimizer: 124 MB of averaged weights and 372 MB of training state,
written as ``best`` and ``last``. Ours is the time until the training may go on, with the previous
write over, as it is after an epoch; the other is the whole write. Both sync to the disk of the
temporary folder (TMPDIR), whose kind decides about the second.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from colorcore.checkpoints.checkpoint import Checkpoint, save_checkpoint
from colorcore.checkpoints.optimizer_state import optimizer_state
from colorcore.checkpoints.writer import CheckpointWriter
from colorcore.models import build_model
from colorcore.step.average import Average
from colorcore.storage.local import LocalStore
from tests.benchmarks.bench_sync import made_up_checkpoint
from tests.benchmarks.paired import cpu_ms, measure, row


def run(work: Path, *, rounds: int) -> None:
    """Print the ratios of an epoch's end and of the average, and the bytes on disk."""
    checkpoint = _unet()
    background, waiting = LocalStore(work / "background"), LocalStore(work / "waiting")
    writer = CheckpointWriter(torch.device("cpu"))

    def ours() -> float:
        writer.wait()
        started = time.perf_counter()
        writer.submit(checkpoint, background.below("last"), background.below("best"))
        return (time.perf_counter() - started) * 1e3

    def other() -> float:
        writer.wait()
        started = time.perf_counter()
        save_checkpoint(replace(checkpoint, training={}), waiting.below("best"))
        save_checkpoint(checkpoint, waiting.below("last"))
        return (time.perf_counter() - started) * 1e3

    found = measure({"ours": ours, "other": other}, rounds=rounds)
    row("epoch's end, U-Net 64, wall-ms: waits for the write", found["ours"], found["other"])
    writer.wait()
    writer.close()
    for name, store in (("shared", background), ("apart", waiting)):
        print(f"best and last on disk, {name}: {_bytes(store.path) / 1e6:.0f} MB")
    print(f"host memory of the copies: {writer._copies.size / 1e6:.0f} MB")
    writer = CheckpointWriter(torch.device("cpu"))
    writer.submit(checkpoint, background.below("last"))
    longest, whole = _held(lambda: writer.is_busy)
    writer.close()
    print(f"longest that a write kept other threads waiting: {longest:.0f} of {whole:.0f} ms")
    shutil.rmtree(background.path)
    shutil.rmtree(waiting.path)
    _average(rounds)


def _held(is_busy: Callable[[], bool]) -> tuple[float, float]:
    """The longest time that this thread did not run meanwhile, and the whole time, in ms.

    A training's thread launches the next steps; a library that keeps the interpreter while it
    writes would stop it.
    """
    started = last = time.perf_counter()
    longest = 0.0
    while is_busy():
        time.sleep(0.0005)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest * 1e3, (last - started) * 1e3


def _average(rounds: int) -> None:
    model, average = (build_model("unet", channels=64) for _ in range(2))
    following = Average(average, model)

    def one_by_one() -> None:
        with torch.no_grad():
            now = model.state_dict()
            for name, value in average.state_dict().items():
                if value.dtype.is_floating_point:
                    value.lerp_(now[name], 0.001)
                else:
                    value.copy_(now[name])

    found = measure(
        {"ours": cpu_ms(lambda: following.update(0.999)), "other": cpu_ms(one_by_one)},
        rounds=rounds,
    )
    row("average of a U-Net 64, CPU-ms: tensor by tensor", found["ours"], found["other"])


def _unet() -> Checkpoint:
    model = build_model("unet", channels=64).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors, numbers = optimizer_state(optimizer)
    tensors |= {f"model.{name}": value for name, value in model.state_dict().items()}
    return replace(
        made_up_checkpoint(1), weights=model.state_dict(), training=tensors, optimizer=numbers
    )


def _bytes(folder: Path) -> int:
    """What files take, those with several names once."""
    files = {(status := path.stat()).st_ino: status.st_size for path in folder.rglob("*.*")}
    return sum(files.values())
