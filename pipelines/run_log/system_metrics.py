"""CPU, memory, disk, network and GPUs of a node, under the names that MLflow's pages look for.

MLflow's own monitors measure; its thread that logs them is not used, for it asks the server at
every sample whether the run still runs, and ends for good when that fails.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.run_log.log import RunLog

EVERY_S = 10.0
"""Seconds between two samples; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL, as with MLflow itself."""
SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
"""Set to "false", nothing is sampled."""


class SystemMetrics:
    """Samples this node in a thread, from now until :meth:`stop`."""

    def __init__(self, log: RunLog, *, started_ms: int, node: int | None = None) -> None:
        """Begin.

        started_ms  when the run started: samples are numbered from there, also of a resumed one
        node        this node's number where there are several, which is part of the names then
        """
        self._log, self._started_ms = log, started_ms
        self._prefix = "system/" if node is None else f"system/node_{node}/"
        asked = os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL")
        self._every_s = max(0.1, float(asked)) if asked else EVERY_S
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if os.environ.get(SWITCH, "true").lower() not in {"false", "0"}:
            self._thread = threading.Thread(target=self._sample, name="system", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the sampling; the last sample may still be under way for a moment."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _sample(self) -> None:
        monitors = _monitors()
        while not self._stop.wait(self._every_s):
            values: dict[str, float] = {}
            for monitor in monitors:
                with contextlib.suppress(Exception):  # a device that went away: the rest is told
                    monitor.collect_metrics()
                    values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            step = max(0, int((time.time() * 1e3 - self._started_ms) / (self._every_s * 1e3)))
            named = {self._prefix + name: float(value) for name, value in values.items()}
            self._log.metrics(named, step)


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    kinds: list[Callable[[], Any]] = [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor]
    monitors = []
    for kind in kinds:
        with contextlib.suppress(Exception):  # no GPU, or no nvidia-ml-py to ask it with
            monitors.append(kind())
    return monitors
