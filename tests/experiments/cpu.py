"""What makes a training step on a CPU fast, and whether bf16 learns the same.

::

    python -m tests.experiments.cpu layouts            memory layout, bf16, fused AdamW
    python -m tests.experiments.cpu recipes            bf16 next to fp32, whole steps of recipes
    python -m tests.experiments.cpu waiting            threads that spin or sleep, alone and not
    python -m tests.experiments.cpu seeds DATASET      scores in fp32 and bf16, three seeds each
    python -m tests.experiments.cpu scores DATASET     scores of a model on it in each precision

``layouts --compile`` takes minutes. ``seeds`` wants a small dataset with a palette: 744 photos of
64 px take 25 CPU minutes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from colorcore.allocator import keep_freed_memory
from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.checkpoints.shipped import START
from colorcore.color.fit_palette import fit_palette
from colorcore.color.palette import load_palette, mean_ab
from colorcore.cpu import WAITING
from colorcore.dataset.layout import read_histogram, read_info
from colorcore.dataset.loader import val_batches
from colorcore.dataset.samples import Samples
from colorcore.inference.evaluate import evaluate
from colorcore.models import build_model
from colorcore.recipes.recipe import load_recipe
from colorcore.training.events import Observer, StepEvent
from colorcore.training.fit import fit, train_step
from colorcore.training.state import FitData, Training
from tests.benchmarks.bench_train import Noise

ROUNDS = 4
SMALL = {
    "unet-l1": ["model.channels=32"],
    "lite0": [],
    "lite0-bins": [],
    "bins": ["model.channels=32"],
    "gan": ["model.channels=32", "discriminator.channels=32"],
}
TRAINED = {
    "unet-l1": ["model.channels=32", "data.batch=16", "train.epochs=5"],
    "lite0-bins": ["data.batch=16", "train.epochs=8"],
}
WAITS: tuple[dict[str, str], ...] = (
    {},
    {WAITING: "PASSIVE"},
    {"GOMP_SPINCOUNT": "1000"},
    {"GOMP_SPINCOUNT": "30000"},
)


def unet_step(
    *, last: bool, half: bool, fused: bool = False, whole: bool = False, size: int = 128
) -> Callable[[], None]:
    """A step of a U-Net of 32 channels on 16 photos: channels last, bf16, fused, compiled."""
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    model = build_model("unet", channels=32).to(memory_format=layout)  # type: ignore[call-overload]
    network: Any = torch.compile(model) if whole else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, fused=fused)
    L_norm = (torch.rand(16, 1, size, size) * 2 - 1).contiguous(memory_format=layout)
    ab = torch.randn(16, 2, size, size) * 20

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            answer = network(L_norm)["ab"]
        F.l1_loss(answer.float(), ab).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(steps: Mapping[str, Callable[[], Any]], photos: int) -> None:
    """Print photos per second of steps that take turns; the ratios are to the first."""
    for name, step in steps.items():
        started = time.perf_counter()
        step()
        print(f"{name}: first step after {time.perf_counter() - started:.1f} s", flush=True)
    passed: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            passed[name].append(time.perf_counter() - started)
    first, *_ = middle = {name: statistics.median(each) for name, each in passed.items()}
    for name, seconds in middle.items():
        print(f"{name:<24} {photos / seconds:6.1f} photos/s  {middle[first] / seconds:.2f}")


def layouts(*, compiled: bool) -> None:
    """Which part of the gain is whose."""
    keep_freed_memory()
    kinds: dict[str, dict[str, bool]] = {
        "fp32, NCHW": {"last": False, "half": False},
        "fp32, channels_last": {"last": True, "half": False},
        "bf16, NCHW": {"last": False, "half": True},
        "bf16, channels_last": {"last": True, "half": True},
        "the same, fused AdamW": {"last": True, "half": True, "fused": True},
    }
    if compiled:
        kinds["fp32, compiled"] = {"last": True, "half": False, "whole": True}
        kinds["bf16, compiled"] = {"last": True, "half": True, "whole": True}
    compare({name: unet_step(**kind) for name, kind in kinds.items()}, 16)


def recipes() -> None:
    """Steps of the loop itself, on one thread."""
    torch.set_num_threads(1)
    palette = fit_palette(np.ones((256, 256), np.int64), bins=64, dataset="0123456789abcdef")
    samples: Any = Noise(8)
    data = FitData(samples, samples, palette, (0.0, 0.0), "0123456789abcdef")
    for name, settings in SMALL.items():
        print(name)
        steps = {}
        for precision in ("fp32", "bf16"):
            recipe = load_recipe(name, [*settings, "data.batch=8", f"train.precision={precision}"])
            training = Training(recipe, data, torch.device("cpu"), None)
            (batch,) = training.loader.epoch(0)
            steps[precision] = lambda training=training, batch=batch: train_step(training, batch)
        compare(steps, 8)


def waiting() -> None:
    """Steps on two threads, in processes with and without a busy neighbour."""
    for busy in (False, True):
        neighbour = subprocess.Popen([sys.executable, "-c", f"while {busy}: pass"])
        for _ in range(2):
            for more in WAITS:
                env = {k: v for k, v in os.environ.items() if k not in (WAITING, "GOMP_SPINCOUNT")}
                words = [sys.executable, "-m", __spec__.name, "wait"]
                done = subprocess.run(
                    words, env={**env, **more}, check=True, capture_output=True, text=True
                )
                print(f"{'busy' if busy else 'free'} {more or 'default'}: {done.stdout.strip()}")
        neighbour.kill()
        neighbour.wait()


def wait() -> None:
    """One process of :func:`waiting`."""
    torch.set_num_threads(2)
    step = unet_step(last=True, half=True)
    for _ in range(2):
        step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(4):
        step()
    print(f"{time.perf_counter() - wall:.2f} s, {time.process_time() - cpu:.2f} CPU-s")


class Losses(Observer):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def on_step(self, event: StepEvent) -> None:
        self.all.append(event.loss)


def seeds(dataset: Path) -> None:
    """Train with the same seeds in both formats; print losses by quarter, and scores."""
    torch.set_num_threads(1)
    mean = mean_ab(read_histogram(dataset))
    for name, settings in TRAINED.items():
        for seed in range(3):
            for precision in ("fp32", "bf16"):
                data = FitData(
                    Samples(dataset, "train"), Samples(dataset, "val"),
                    load_palette(dataset / "palette"), (float(mean[0]), float(mean[1])),
                    read_info(dataset).fingerprint or "",
                )  # fmt: skip
                fixed = ["train.ema=0.99", "train.eval_every=100", f"train.seed={seed}"]
                recipe = load_recipe(name, [*settings, *fixed, f"train.precision={precision}"])
                losses = Losses()
                with tempfile.TemporaryDirectory() as out:
                    scores = fit(recipe, data, Path(out), observers=[losses])
                quarters = [round(float(each.mean()), 4) for each in np.array_split(losses.all, 4)]
                shown = {k: round(v, 4) for k, v in scores.items()}
                print(name, seed, precision, quarters, shown, flush=True)


def scores(dataset: Path, model: str) -> None:
    """What validation in another precision changes: scores in fp32, and differences to them."""
    val = Samples(dataset, "val")
    exact: dict[str, float] = {}
    for precision in ("fp32", "tf32", "fp16", "bf16"):
        start = load_checkpoint(model)
        network = start.model()
        if precision == "tf32":
            _round_as_tf32(network)
        kind = "fp32" if precision == "tf32" else precision
        found, _ = evaluate(network, val_batches(val, 32), start.palette, precision=kind)
        row = found.compute()
        if not exact:
            exact = row
            print(precision, {name: round(value, 5) for name, value in row.items()}, flush=True)
            continue
        apart = {name: f"{row[name] / value - 1:+.1e}" for name, value in exact.items() if value}
        print(precision, apart, flush=True)


def _round_as_tf32(network: nn.Module) -> None:
    """Round what goes into products as a GPU does where TF32 is allowed: to 10 bits, half to even.

    (NVIDIA's PTX, cvt.rna.tf32 rounds half away from zero; the difference is one in 8,192 values.)
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.weight.data = _tf32(layer.weight.data)
            layer.register_forward_pre_hook(lambda _, given: (_tf32(given[0]), *given[1:]))


def _tf32(values: torch.Tensor) -> torch.Tensor:
    bits = values.contiguous().view(torch.int32)
    rounded: torch.Tensor = (bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF
    return rounded.view(torch.float32)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "part", choices=("layouts", "recipes", "waiting", "wait", "seeds", "scores")
    )
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--model", default=START, help="checkpoint that `scores` scores")
    asked = parser.parse_args()
    if asked.part in ("seeds", "scores"):
        if asked.dataset is None:
            parser.error("expected a dataset")
        if asked.part == "seeds":
            seeds(asked.dataset)
        else:
            scores(asked.dataset, asked.model)
    elif asked.part == "layouts":
        layouts(compiled=asked.compile)
    else:
        {"recipes": recipes, "waiting": waiting, "wait": wait}[asked.part]()


if __name__ == "__main__":
    main()
