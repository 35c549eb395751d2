"""CPU, memory, disk, network and GPUs of a node, under the names that MLflow's pages look for.

MLflow's own monitors measure. MLflow's thread that logs them is not used: it asks the server before
every sample whether the run still exists, and ends for good when that call fails.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

from pipelines.tracking.mlflow_internals import node_monitors

if TYPE_CHECKING:
    from pipelines.run_log.log import RunLog

EVERY_S = 10.0
"""Seconds between two samples, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL sets others."""
SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
"""If this variable is "false", nothing is sampled."""


class SystemMetrics:
    """Samples this node in a thread, until :meth:`stop`."""

    def __init__(self, log: RunLog, *, started_ms: int, node: int | None = None) -> None:
        """Begin.

        started_ms  when the run started; samples are numbered from there, also after a resume
        node        this node's number if there are several; it becomes part of the names
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
        """Stop sampling; a sample in progress may take a moment longer."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _sample(self) -> None:
        monitors = node_monitors()
        while not self._stop.wait(self._every_s):
            values: dict[str, float] = {}
            for monitor in monitors:
                with contextlib.suppress(Exception):  # a device that is gone: log the others
                    monitor.collect_metrics()
                    values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            step = max(0, int((time.time() * 1e3 - self._started_ms) / (self._every_s * 1e3)))
            named = {self._prefix + name: float(value) for name, value in values.items()}
            self._log.metrics(named, step)
