"""A training step on two CPU threads next to the naive loop's: the same network, loss and photos.

The naive loop is fp32, NCHW and eager (tests/benchmarks/gpu/naive.py). Each side has a process of
its own, because memory and waiting threads are set per process, and they take turns. The target is
a ratio of 1.5.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np

from colorcore.cpu import WAITING, wait_passively
from tests.benchmarks.paired import Side, measure, row
from tests.servers.child import Child, Parent

SIZE, BATCH, BASE, STEPS, THREADS = 128, 16, 32, 2, 2
WHAT = {"wall": "passed", "cpu": "CPU"}


def run(*, rounds: int) -> None:
    """Print the ratios of the time that passes, and of CPU time; without bf16, too."""
    # Not this process's variable, which may be set: the naive loop has none.
    env = {name: value for name, value in os.environ.items() if name != WAITING}
    ours = {who: Child("tests.benchmarks.bench_step", who, env=env) for who in ("auto", "fp32")}
    naive = Child("tests.benchmarks.bench_step", "naive", env=env)
    sides = {**ours, "naive": naive}
    try:
        for each in sides.values():
            each.receive(300)
        for clock, name in WHAT.items():
            passed = measure(
                {who: _turn(each, clock) for who, each in sides.items()}, rounds=rounds
            )
            for who in ours:
                row(f"step, {name} ms per photo, {who}: naive", passed[who], passed["naive"])
    finally:
        for each in sides.values():
            each.close()


def _turn(child: Child, clock: str) -> Side:
    return lambda: float(child.ask(600)[clock])


def main(who: str) -> None:
    """One side: steps on request."""
    parent = Parent()
    if who != "naive":
        wait_passively()
    import torch

    from colorcore.color.fit_palette import fit_palette
    from colorcore.recipes.recipe import load_recipe
    from colorcore.training.fit import train_step
    from colorcore.training.state import FitData, Training
    from tests.benchmarks.bench_train import Noise
    from tests.benchmarks.gpu.naive import Naive

    torch.set_num_threads(THREADS)
    settings = [f"model.channels={BASE}", f"data.batch={BATCH}"]
    if who != "naive":
        settings.append(f"train.precision={who}")
    recipe = load_recipe("unet-l1", settings)
    palette = fit_palette(np.ones((256, 256), np.int64), bins=8, dataset="0123456789abcdef")
    samples: Any = Noise(BATCH * STEPS, SIZE)
    cpu = torch.device("cpu")
    if who == "naive":
        naive = Naive(recipe, palette, cpu)

        def steps() -> None:
            for batch in samples.lab_u8.split(BATCH):
                naive.step(batch)
    else:
        data = FitData(samples, samples, palette, (0.0, 0.0), "0123456789abcdef")
        training = Training(recipe, data, cpu, None)

        def steps() -> None:
            for batch in training.loader.epoch(0):
                train_step(training, batch)

    parent.send()
    for _ in parent.requests():
        wall, cpu_s = time.perf_counter(), time.process_time()
        steps()
        parent.send(
            wall=(time.perf_counter() - wall) * 1e3 / (STEPS * BATCH),
            cpu=(time.process_time() - cpu_s) * 1e3 / (STEPS * BATCH),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
