"""How long a training keeps its user waiting before a worker runs, and what that costs in CPU.

Ours are `ray_session` and `lean_trainer`; the other is Ray's own `ray.init` and `TorchTrainer` with
the same options. Each is a process of its own, whose worker does nothing. CPU seconds are those of
all its processes, sampled until they end.

Predicted before the first measurement: 1.7 times the time, 1.8 times the CPU seconds.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.paired import Side, measure, row

SAMPLE_S = 0.2


def run(*, rounds: int) -> None:
    """Print the ratios."""
    cpu: dict[str, list[float]] = {"ours": [], "other": []}

    def side_of(who: str) -> Side:
        def side() -> float:
            seconds, spent = _measured(who)
            cpu[who].append(spent)
            return seconds

        return side

    passed = measure({who: side_of(who) for who in cpu}, rounds=rounds)
    row("start of a training, s: TorchTrainer", passed["ours"], passed["other"])
    row("start of a training, CPU-s: TorchTrainer", cpu["ours"][1:], cpu["other"][1:])


def _measured(who: str) -> tuple[float, float]:
    """Seconds until the worker of a fresh process ran, and CPU seconds of it and its children."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_start", who]
    spent: dict[int, float] = {}
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            with suppress(psutil.Error):
                parent = psutil.Process(process.pid)
                for each in (parent, *parent.children(recursive=True)):
                    with suppress(psutil.Error):
                        spent[each.pid] = sum(each.cpu_times()[:2])
            time.sleep(SAMPLE_S)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
        out.seek(0)
        return float(out.read().split()[-1]), sum(spent.values())


def _start(who: str) -> None:
    """Start a training that does nothing, and print the seconds until its worker ran."""
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        ran = Path(folder, "ran")
        if who == "ours":
            from pipelines.cluster import ray_session
            from pipelines.ray_internals import lean_trainer

            with ray_session():
                _train(lean_trainer(), ran)
        else:
            import ray
            from ray.train.torch import TorchTrainer

            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            _train(TorchTrainer, ran)
            ray.shutdown()
        print(float(ran.read_text()) - started)


def _train(trainer: Any, ran: Path) -> None:
    from ray.train import RunConfig, ScalingConfig

    trainer(
        lambda: ran.write_text(str(time.time())),
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(storage_path=str(ran.parent)),
    ).fit()


if __name__ == "__main__":
    _start(sys.argv[1])
