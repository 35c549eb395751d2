"""Training on two CPU workers vs. one: photos per second, one thread and eight photos per worker.

What `cc train` does on each worker, in two processes that are joined by gloo: Ray starts them, and
has no part in a step but for the observers (see bench_observers). Both sides are there all the
time and take turns, so their ratio holds when the machine drifts. It wants two quiet cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from colorcore.color.fit_palette import fit_palette
from colorcore.recipes.recipe import load_recipe
from colorcore.training.fit import train_step
from colorcore.training.state import FitData, Training
from tests.benchmarks.paired import Side, measure, row
from tests.servers.child import Child, Parent

SIZE, BATCH, BASE, STEPS = 128, 8, 32, 4


def run(*, rounds: int) -> None:
    """Print the ratio of their photos per second; the target is 1.7."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [_rank(folder, 2, rank) for rank in range(2)]
        alone = [_rank(folder, 1, 0)]
        try:
            for each in (*ranks, *alone):
                each.receive(300)
            passed = measure({"two": _turn(ranks), "one": _turn(alone)}, rounds=rounds)
        finally:
            for each in (*ranks, *alone):
                each.close()
    row("train, ms per photo, 2 workers: 1 worker", passed["two"], passed["one"])


def _turn(ranks: list[Child]) -> Side:
    """Milliseconds per photo of some steps, from the first rank's start to the last's end."""

    def side() -> float:
        started = time.perf_counter()
        for each in ranks:
            assert each.process.stdin is not None
            each.process.stdin.write(b'{"steps": %d}\n' % STEPS)
            each.process.stdin.flush()
        for each in ranks:
            each.receive(600)
        return (time.perf_counter() - started) * 1e3 / (STEPS * BATCH * len(ranks))

    return side


def _rank(folder: str, world: int, rank: int) -> Child:
    return Child("tests.benchmarks.bench_train", folder, str(world), str(rank))


class Noise:
    """What a training asks of its samples: random photos, held in memory."""

    def __init__(self, count: int, size: int = SIZE) -> None:
        self.lab_u8 = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
        self.size, self.cache = size, None
        self.shard_counts = np.array([count])

    def __len__(self) -> int:
        return len(self.lab_u8)

    def read(self, positions: Any) -> torch.Tensor:
        return self.lab_u8[torch.from_numpy(positions)]

    def shards_of(self, positions: Any) -> Any:
        return np.zeros_like(positions)


def main(folder: str, world: str, rank: str) -> None:
    """One worker: steps on request."""
    parent = Parent()
    torch.set_num_threads(1)
    if int(world) > 1:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{Path(folder) / 'meeting'}",
            rank=int(rank),
            world_size=int(world),
        )
    settings = [f"model.channels={BASE}", f"data.batch={BATCH * int(world)}"]
    recipe = load_recipe("simple", settings)
    palette = fit_palette(np.ones((256, 256), np.int64), bins=8, dataset="0123456789abcdef")
    samples: Any = Noise(BATCH * int(world) * STEPS)
    data = FitData(samples, samples, palette, (0.0, 0.0), "0123456789abcdef")
    training = Training(recipe, data, torch.device("cpu"), None)
    parent.send()
    for request in parent.requests():
        for batch in training.loader.epoch(0):
            if batch.step == request["steps"]:
                break
            training.exchange(*train_step(training, batch), stop=False).tensor()
        parent.send()


if __name__ == "__main__":
    main(*sys.argv[1:])
