"""What it costs that done work survives a power cut, and that every sample has a checksum.

The waits for the disk are timed as well, because the ratio of wall times drowns in the noise of a
shared machine.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch

from colorcore.checkpoints.checkpoint import Checkpoint, save_checkpoint
from colorcore.color.fit_palette import fit_palette
from colorcore.dataset import unit
from colorcore.dataset.layout import ShardSettings
from colorcore.models import build_model
from colorcore.recipes.recipe import load_recipe
from colorcore.storage import atomic
from colorcore.storage.local import LocalStore
from tests.benchmarks.job import PlainJob
from tests.benchmarks.paired import Side, cpu_ms, measure, row, wall_ms

WEIGHTS = 25_000_000
"""Parameters of the checkpoint: 300 MB with the optimizer's state."""


class Waits:
    """Seconds that this process spends in waits for the disk and in advice to it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        atomic._together = self._timed(atomic._together)
        atomic.os.posix_fadvise = self._timed(os.posix_fadvise)  # type: ignore[attr-defined]

    def _timed(self, call: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: object) -> None:
            started = time.perf_counter()
            call(*arguments)
            self.seconds += time.perf_counter() - started

        return timed


def run(photos: Path, work: Path, *, size: int, rounds: int) -> None:
    """Print the ratios, and the share of the waits."""
    cv2.setNumThreads(1)
    job = PlainJob(photos, work / "synced", ShardSettings(size=size))
    waits, shares = Waits(), []

    def shard(*, sync: bool, crc32: bool = True) -> Callable[[], None]:
        def work() -> None:
            job.target = LocalStore(job.target.local or Path(), sync=sync)
            unit.zlib = zlib if crc32 else SimpleNamespace(crc32=lambda *_: 0)  # type: ignore
            job.do_units()

        return work

    def clean(side: Side) -> Side:
        def cleaned() -> float:
            for folder in ("train", "val", "index", "rejected", "histogram"):
                shutil.rmtree((job.target.local or Path()) / folder, ignore_errors=True)
            os.sync()
            return side()

        return cleaned

    def synced() -> float:
        waits.seconds = 0.0
        spent = wall_ms(shard(sync=True), per=len(job.units))()
        shares.append(waits.seconds * 1e5 / spent / len(job.units))
        return spent

    unsynced = wall_ms(shard(sync=False), per=len(job.units))
    found = measure({"on": clean(synced), "off": clean(unsynced)}, rounds=rounds)
    row("shard a unit, wall-ms: not synced", found["on"], found["off"])
    waited = f"{statistics.median(shares):.2g}% of it ({min(shares):.2g} to {max(shares):.2g})"
    print(f"waits for the disk, per unit of {job.photos / len(job.units):.0f} photos: {waited}")
    found = measure(
        {
            "on": clean(cpu_ms(shard(sync=False), per=job.photos)),
            "off": clean(cpu_ms(shard(sync=False, crc32=False), per=job.photos)),
        },
        rounds=rounds,
    )
    row("shard a photo, CPU-ms: no checksum", found["on"], found["off"])
    checkpoint = made_up_checkpoint()

    def save(*, sync: bool) -> Side:
        store = LocalStore(work / f"saved-{sync}", sync=sync)
        return wall_ms(lambda: save_checkpoint(checkpoint, store))

    found = measure({"on": save(sync=True), "off": save(sync=False)}, rounds=rounds)
    row("save a checkpoint of 300 MB, wall-ms: not synced", found["on"], found["off"])


def made_up_checkpoint(weights: int = WEIGHTS) -> Checkpoint:
    """A small model, and the state of an optimizer of one with so many weights."""
    recipe = load_recipe("simple", ["model.channels=4", "model.depth=2"])
    small = build_model(recipe.model.name, **recipe.model.options()).state_dict()
    histogram = np.zeros((256, 256), np.int64)
    histogram[100:160:10, 100:160:10] = 1
    palette = fit_palette(histogram, bins=5)
    training = {f"optimizer.{i}": torch.rand(weights) for i in range(3)}
    return Checkpoint(recipe, small, palette, (0.0, 0.0), 32, "0" * 16, training=training)
