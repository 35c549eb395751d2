"""What a step costs beside the training itself: observers, and the exchange between ranks.

The step is made up: it waits 100 ms, and what is measured is the CPU and the clock time that its
observers take in the training's own thread. So the figures hold on a busy machine, too, where
clock times are upper bounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from colorcore.recipes.recipe import load_recipe
from colorcore.training.events import Observer, StepEvent, ValidationEvent
from pipelines.cluster import ray_session

STEP_S = 0.1
STEPS = 100
VALIDATE_EVERY = 50
Sides = Mapping[str, Callable[[], Observer]]
"""Observers by name, each made when its turn comes; ``close()`` is called where there is one."""


def run(*, rounds: int, more: Sides | None = None) -> None:
    """Print each observer's clock and CPU time a step, and the longest that a step waited."""
    print(f"{'observer, at steps of 100 ms':<40} {'ms/step':>8} {'share':>7} {'longest ms':>11}")
    with ray_session(cpus=2):
        sides: dict[str, Callable[[], Observer]] = {
            "none": Observer,
            "board (progress, Ctrl-C)": _board,
            **(more or {}),
        }
        for name, make in sides.items():
            shares, longest = [], 0.0
            for _ in range(rounds):
                spent = _steps(make())
                shares.append(sum(spent) / len(spent))
                longest = max(longest, *spent)
            middle = statistics.median(shares)
            print(
                f"{name:<40} {middle * 1e3:>8.3f} {middle / STEP_S:>7.2%} {longest * 1e3:>11.2f}",
                flush=True,
            )


def _steps(observer: Observer) -> list[float]:
    """Seconds of this thread that each step's observer took."""
    spent = []
    pairs = torch.zeros(8, 2, 3, 64, 64)
    observer.on_start(STEPS, 0)
    for step in range(1, STEPS + 1):
        time.sleep(STEP_S)
        terms = {"ab_l1": 1.0 / step}
        started = time.perf_counter()
        observer.on_step(StepEvent(0, step, STEPS, 1.0 / step, terms, 1e-3, 1.0, 80.0))
        if step % VALIDATE_EVERY == 0:
            scores = {"psnr": 20.0, "auc_balanced": 0.8}
            event = ValidationEvent(1, step, scores, is_best=True, pairs=pairs)
            observer.on_validation(event)
        spent.append(time.perf_counter() - started)
    if callable(close := getattr(observer, "close", None)):
        close()
    return spent


def _board() -> Observer:
    import ray

    from pipelines.training.board import Board
    from pipelines.training.worker import _BoardObserver

    board = ray.remote(num_cpus=0)(Board).remote()
    return _BoardObserver(board, load_recipe("simple").train.epochs, 1)
