"""What logging into MLflow costs a training whose steps take 100 ms, and its longest block.

Steps are real ones of a small network, with a validation's pictures (8 photos at 256 px) every
``VALIDATE_EVERY`` steps, against a real `mlflow server` on this machine. Off is the same loop
without the observer. The log's own threads share the cores with the steps, as they would.

Predicted before the first measurement: 0.5% of step time where a second core is free (a batch a
second costs the sender about 10 ms, the observer's own call 0.05 ms per step), 1.5% where none is;
the longest block 15 ms, two or three switches of Python's lock while a picture is drawn.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from colorcore.models import build_model
from colorcore.recipes.recipe import load_recipe
from colorcore.training.events import Observer, StepEvent, ValidationEvent
from pipelines.run_log.observer import RunObserver
from pipelines.run_log.runs import end_run, start_run
from tests.benchmarks.paired import Side, measure, row
from tests.pipelines.tracking_server import TrackingServer

STEP_MS = 100.0
STEPS = 150
VALIDATE_EVERY = 50
THREADS = {
    "run-log-send": "sending",
    "run-log-write": "drawing and writing",
    "system": "system metrics",
}


def run(work: Path, *, rounds: int) -> None:
    """Print the ratio of step times off : on, and the longest time that the observer took."""
    torch.set_num_threads(1)
    folder = work / "tracking"
    folder.mkdir()
    server = TrackingServer(folder)
    server.start()
    step = _step()
    blocks: list[float] = []
    threads: dict[str, list[float]] = {name: [] for name in THREADS}

    def on() -> float:
        began = start_run(server.uri, "bench", {}, {}, None)
        observer = RunObserver(began, load_recipe("simple"), folder / "out")
        try:
            passed = _steps(step, observer, blocks)
            for name, cpu_ms in _threads_cpu_ms().items():
                threads[name].append(cpu_ms / STEPS)
            return passed
        finally:
            observer.close()
            end_run(began, "FINISHED", {}, folder / "out")

    try:
        sides: dict[str, Side] = {"on": on, "off": lambda: _steps(step, Observer(), [])}
        passed = measure(sides, rounds=rounds)
    finally:
        server.stop()
    row(f"tracking, ms per step of about {STEP_MS:.0f} ms, on: off", passed["on"], passed["off"])
    blocks.sort()
    print(
        f"the observer kept a step for at most {blocks[-1]:.1f} ms, in the middle "
        f"{blocks[len(blocks) // 2]:.3f} ms, in {len(blocks):,} calls"
    )
    for name, what in THREADS.items():
        print(
            f"beside a step of {statistics.median(passed['off']):.0f} ms, {what} takes "
            f"{min(threads[name]):.2f} to {max(threads[name]):.2f} CPU-ms"
        )


def _step() -> Callable[[], float]:
    """A training step of about ``STEP_MS`` on this machine, which returns its loss."""
    torch.manual_seed(0)
    model = build_model("unet", channels=8, depth=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    photos = 1

    def step() -> float:
        # Random targets: of a loss that vanished, gradients would be denormal and steps slow.
        grey, ab = torch.rand(photos, 1, 64, 64), torch.rand(photos, 2, 64, 64)
        loss = (model(grey)["ab"] - ab).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    while (took := _median_cpu_ms(step)) < 0.75 * STEP_MS:
        photos = max(photos + 1, round(photos * STEP_MS / took))
    return step


def _threads_cpu_ms() -> dict[str, float]:
    """CPU milliseconds of the observer's threads so far; all else is done in their absence."""
    ids = {thread.native_id: thread.name for thread in threading.enumerate()}
    return {
        ids[row.id]: (row.user_time + row.system_time) * 1e3
        for row in psutil.Process().threads()
        if ids.get(row.id) in THREADS
    }


def _median_cpu_ms(step: Callable[[], float]) -> float:
    passed = []
    for _ in range(5):
        started = time.process_time()
        step()
        passed.append((time.process_time() - started) * 1e3)
    return sorted(passed)[2]


def _steps(step: Callable[[], float], observer: Observer, blocks: list[float]) -> float:
    """Milliseconds per step; ``blocks`` gets those of each call of the observer."""
    pairs = torch.rand(8, 2, 3, 256, 256) * 50
    terms = {"ab_l1": 0.5, "perceptual": 0.25}
    scores = dict.fromkeys(("psnr", "ssim", "ab_l1", "cf", "auc", "auc_balanced"), 0.5)
    begun = time.perf_counter()
    for number in range(1, STEPS + 1):
        loss = step()
        event = StepEvent(0, number, STEPS, loss, terms, 1e-4, 1.0, 80.0)
        started = time.perf_counter()
        observer.on_step(event)
        if number % VALIDATE_EVERY == 0:
            observer.on_validation(ValidationEvent(0, number, scores, True, pairs, scores))
        blocks.append((time.perf_counter() - started) * 1e3)
    return (time.perf_counter() - begun) * 1e3 / STEPS
