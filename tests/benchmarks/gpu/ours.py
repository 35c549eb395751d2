"""One training in a process of its own, timed from outside the loop: ``fit`` with an observer.

A process of its own, because what is compiled once stays compiled, and because one that takes too
long can be ended. It prints a line of JSON after its first step, and one at its end.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from colorcore.cpu import wait_passively

LEAST_EPOCHS = 3
"""Epochs that are timed at least, after the first."""


class Times:
    """When steps and validations ended, in seconds.

    It has the methods of ``Observer``, which is not imported before the clock runs.
    """

    waits_for_files = False

    def __init__(self, clock: Any = time.perf_counter) -> None:
        self._clock = clock
        self.steps: dict[int, list[float]] = {}
        self.validations: list[float] = []

    def on_start(self, total_steps: int, first_step: int) -> None:
        """Nothing to note."""

    def on_notice(self, text: str) -> None:
        """Such as that the network is compiled."""
        print(text, file=sys.stderr, flush=True)

    def on_step(self, event: Any) -> None:
        if not self.steps:
            print(json.dumps({"first_step": self._clock()}), flush=True)
        self.steps.setdefault(event.epoch, []).append(self._clock())

    def on_validation(self, event: Any) -> None:
        self.validations.append(self._clock())

    def on_saved(self, event: Any) -> None:
        """Nothing to note: the next epoch may have begun."""

    def on_stop(self, step: int) -> None:
        """Nothing to note."""

    def on_decoding(self, event: Any) -> None:
        """Nothing to note."""

    def step_s(self) -> float:
        """Seconds per step: the median of the epochs' means, without the first epoch.

        An epoch's first step is not counted: before it lie the validation and the checkpoint.
        """
        epochs = [ends for epoch, ends in self.steps.items() if epoch and len(ends) > 1]
        return statistics.median((ends[-1] - ends[0]) / (len(ends) - 1) for ends in epochs)

    def epoch_s(self) -> float:
        """Seconds per epoch, validation and checkpoints included, without the first epoch."""
        return (self.validations[-1] - self.validations[0]) / (len(self.validations) - 1)


class Parts:
    """How long the host spends in parts of a training, in seconds; the latest of each counts.

    The first step waits for "built"; an epoch's end is the rest.
    """

    def __init__(self, clock: Any = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}

    def watch(self, kind: type, methods: Mapping[str, str]) -> None:
        """Time methods of a class from now on: name of the method -> of the part."""
        for method, name in methods.items():
            setattr(kind, method, self._timed(getattr(kind, method), name))

    def _timed(self, function: Any, name: str) -> Any:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self._clock() - started

        return timed


def main() -> None:
    """Train until enough is timed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--sizes", nargs=3, type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="0 stops after one step")
    asked = parser.parse_args()
    wait_passively()
    import torch

    from colorcore.recipes.recipe import load_recipe
    from colorcore.training.events import TrainingStoppedError
    from colorcore.training.fit import fit
    from colorcore.training.saving import Saving
    from colorcore.training.state import Training
    from tests.benchmarks.gpu.photos import Sizes, open_data

    parts = Parts()
    parts.watch(Training, {"__init__": "built", "begin_validation": "validation begun"})
    parts.watch(Saving, {"copy": "state copied"})
    parts.watch(Training, {"end_validation": "validation ended"})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fixed = ["train.epochs=1000", "train.eval_every=1", "train.patience=none", "train.seed=0"]
    recipe = load_recipe(asked.recipe, [*asked.set, *fixed])
    data = open_data(asked.folder, recipe.data.batch, Sizes(*asked.sizes))
    # A CUDA context takes seconds, and has nothing to do with the recipe.
    torch.zeros(1, device=device)
    started = time.perf_counter()
    times: Any = Times(lambda: time.perf_counter() - started)

    def is_enough() -> bool:
        if not asked.seconds:
            return bool(times.steps)
        done = times.validations
        # One step into the next epoch, so that no step of a timed epoch is cut off.
        return len(done) > LEAST_EPOCHS and done[-1] - done[0] >= asked.seconds

    with (
        tempfile.TemporaryDirectory(prefix="colorcore-suite-") as out,
        suppress(TrainingStoppedError),
    ):
        fit(recipe, data, Path(out), device=device, observers=[times], stop=is_enough)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"parts": {name: round(s, 4) for name, s in parts.seconds.items()}}))
    if asked.seconds:
        result = {"step_s": times.step_s(), "epoch_s": times.epoch_s(), "memory": memory}
        print(json.dumps({**result, "steps": asked.sizes[0], "batch": recipe.data.batch}))


if __name__ == "__main__":
    main()
