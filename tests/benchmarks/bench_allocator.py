"""Training on a CPU with freed memory kept in the process, beside glibc's way: CPU-ms per photo.

Guessed from one run each before: 17.3 and 19.5 photos per CPU second without, 23.5 and 24.4 with
(`lite0`, 128 px): a ratio of 1.25, and less for networks that compute more per byte.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
import torch

from colorcore.color.fit_palette import fit_palette
from colorcore.recipes.recipe import load_recipe
from colorcore.training.fit import train_step
from colorcore.training.state import FitData, Training
from tests.benchmarks.bench_train import Noise
from tests.benchmarks.paired import Side, measure, row
from tests.servers.child import Child, Parent

RECIPES = {"lite0": [], "unet-l1": ["model.channels=32"]}
BATCH, STEPS = 16, 3
DEFAULT = {"MALLOC_PERTURB_": "0"}
"""A variable that changes nothing, but with which :func:`keep_freed_memory` keeps out."""


def run(*, rounds: int) -> None:
    """Print the ratios of CPU time for two recipes at 128 px."""
    for recipe in RECIPES:
        kept = Child("tests.benchmarks.bench_allocator", recipe)
        default = Child("tests.benchmarks.bench_allocator", recipe, env={**os.environ, **DEFAULT})
        try:
            for each in (kept, default):
                each.receive(300)
            passed = measure({"kept": _turn(kept), "default": _turn(default)}, rounds=rounds)
        finally:
            for each in (kept, default):
                each.close()
        row(f"{recipe}, CPU-ms per photo, memory kept: returned", passed["kept"], passed["default"])


def _turn(child: Child) -> Side:
    def side() -> float:
        assert child.process.stdin is not None
        child.process.stdin.write(b"{}\n")
        child.process.stdin.flush()
        return float(child.receive(600)["ms"])

    return side


def main(name: str) -> None:
    """One side: steps on request."""
    parent = Parent()
    torch.set_num_threads(1)
    recipe = load_recipe(name, [f"data.batch={BATCH}", *RECIPES[name]])
    palette = fit_palette(np.ones((256, 256), np.int64), bins=8, dataset="0123456789abcdef")
    samples: Any = Noise(BATCH * STEPS)
    data = FitData(samples, samples, palette, (0.0, 0.0), "0123456789abcdef")
    training = Training(recipe, data, torch.device("cpu"), None)
    parent.send()
    for _ in parent.requests():
        started = time.process_time()
        for batch in training.loader.epoch(0):
            train_step(training, batch)
        parent.send(ms=(time.process_time() - started) * 1e3 / (STEPS * BATCH))


if __name__ == "__main__":
    main(*sys.argv[1:])
