"""What compiling a network costs and saves on a CPU, whole and block by block.

::

    python -m tests.experiments.compiling

For the resnet-unet of the recipe ``bins``, with 16 channels at 64 px on one thread. Each way has a
process and an empty cache of its own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch

from colorcore.color.fit_palette import fit_palette
from colorcore.recipes.recipe import load_recipe
from colorcore.training import network
from colorcore.training.fit import train_step
from colorcore.training.state import FitData, Training
from tests.benchmarks.bench_train import Noise

WAYS = ("eager", "whole", "blocks")
SETTINGS = ("model.channels=16", "data.batch=4", "train.precision=fp32")
STEPS = 8


def measure(way: str) -> None:
    """Print the CPU seconds until the first step has ended, and the time of later ones."""
    torch.set_num_threads(1)
    if way == "whole":
        network.RepeatsBlocks = ()  # type: ignore[assignment, attr-defined]  # no model is one
    palette = fit_palette(np.ones((256, 256), np.int64), bins=64, dataset="0123456789abcdef")
    samples: Any = Noise(4 * (STEPS + 1), 64)
    data = FitData(samples, samples, palette, (0.0, 0.0), "0123456789abcdef")
    setting = f"train.compile={'off' if way == 'eager' else 'on'}"
    training = Training(
        load_recipe("bins", [*SETTINGS, setting]), data, torch.device("cpu"), None, notice=print
    )
    passed: list[float] = []
    for batch in training.loader.epoch(0):
        wall, cpu = time.perf_counter(), _cpu_s()
        train_step(training, batch)
        passed.append(time.perf_counter() - wall)
        if len(passed) == 1:
            print(f"{way}: first step after {_cpu_s() - cpu:.0f} CPU-s", flush=True)
    print(f"{way}: {statistics.median(passed[1:]) * 1e3:.0f} ms per later step")


def _cpu_s() -> float:
    """CPU seconds of this process and the compilers that it has waited for."""
    return sum(os.times()[:4])


def main() -> None:
    """Measure all ways, or the one that is named."""
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    for way in WAYS:
        with tempfile.TemporaryDirectory() as cache:
            subprocess.run(
                [sys.executable, "-m", __spec__.name, way],
                env={**os.environ, "COLORCORE_CACHE": cache},
                check=True,
            )


if __name__ == "__main__":
    main()
