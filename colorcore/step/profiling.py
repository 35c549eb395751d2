"""Where the time of a step goes: a table per phase, and a trace for Chrome or Perfetto."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

if TYPE_CHECKING:
    from colorcore.storage.store import Store

WARM_STEPS = 5
"""Steps before the first that is measured: compilation, and caches that fill."""
TRACE = "profile/trace.json.gz"
TABLE = "profile/table.txt"
IN_STEP = ("data wait", "copy", "forward", "backward", "optimizer", "EMA")
BETWEEN = ("validation", "checkpoint")
"""Phases that are measured once each and then shared out over the steps between two of them."""


@dataclass(slots=True)
class _Time:
    """Seconds of a phase: of the host, and of events on a GPU."""

    host: float = 0.0
    events: list[tuple[Any, Any]] = field(default_factory=list)
    count: int = 0

    def device_ms(self) -> float:
        return float(sum(begin.elapsed_time(end) for begin, end in self.events))


class Profile:
    """Measures steps after the first few, and then the next validation and its checkpoints.

    Without steps to measure it does nothing.

    Args:
        steps: how many to measure.
        device: where the training runs.
        between: steps between two validations.
        out: where trace and table are written.
        report: receives the table, line by line.
    """

    def __init__(
        self,
        steps: int,
        device: torch.device,
        between: int,
        out: Store | None,
        report: Callable[[str], None],
    ) -> None:
        self._steps, self._device, self._between = steps, device, between
        self._out, self._report = out, report
        self._times: dict[str, _Time] = {}
        self._taken, self._wall, self._started = 0, 0.0, 0.0
        self._profiler: profile | None = None
        self._is_done = steps == 0
        self._pausing = 0.0

    @contextlib.contextmanager
    def phase(self, name: str, *, again: bool = False) -> Iterator[None]:
        """Count the time in this context towards a phase, ``again`` if it is the rest of one."""
        tracing = self._profiler is not None
        is_between = name in BETWEEN
        if self._is_done or not (tracing or (is_between and self._taken > WARM_STEPS)):
            yield
            return
        events = self._events()
        started = time.perf_counter()
        try:
            with record_function(name) if tracing else contextlib.nullcontext():
                yield
        finally:
            spent = self._times.setdefault(name, _Time())
            passed = time.perf_counter() - started
            spent.host += passed
            self._pausing += passed if tracing and is_between else 0.0  # of no step in particular
            spent.count += not again
            if events is not None:
                events[1].record()
                spent.events.append(events)

    def batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; waiting for each is the phase "data wait"."""
        while True:
            with self.phase("data wait"):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    def step_taken(self) -> None:
        """Count a step; the first and the last that are measured start and end the trace."""
        if self._is_done:
            return
        self._taken += 1
        if self._taken == WARM_STEPS:
            kinds = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                kinds.append(ProfilerActivity.CUDA)
            self._wait()
            self._profiler = profile(activities=kinds)
            self._profiler.start()
            self._started = time.perf_counter()
        elif self._taken == WARM_STEPS + self._steps and self._profiler is not None:
            self._wait()
            self._wall = time.perf_counter() - self._started - self._pausing
            profiler, self._profiler = self._profiler, None
            profiler.stop()
            self._store_trace(profiler)

    def finish(self, *, is_end: bool = False) -> None:
        """Report, once the steps and a validation with its checkpoints were measured.

        ``is_end`` reports what there is: the training ends.
        """
        if self._is_done or not self._wall:
            if is_end and not self._is_done:
                self._is_done = True
                if self._profiler is not None:
                    self._profiler.stop()
                self._report(
                    f"profile: expected at least {WARM_STEPS + self._steps} steps to measure "
                    f"{self._steps} of them after {WARM_STEPS}, got {self._taken}"
                )
            return
        if not is_end and any(name not in self._times for name in BETWEEN):
            return
        self._is_done = True
        self._wait()
        lines = self._table()
        for line in lines:
            self._report(line)
        if self._out is not None:
            self._out.write(TABLE, "\n".join([*lines, ""]).encode())
            self._report(f"the trace is in {self._out.show(TRACE)}; open it at ui.perfetto.dev")

    def _table(self) -> list[str]:
        per_step = self._wall / self._steps * 1e3
        rows: list[tuple[str, float, float | None]] = []
        known = 0.0
        for name in IN_STEP:
            if (spent := self._times.get(name)) is None:
                continue
            device = spent.device_ms() / self._steps if spent.events else None
            rows.append((name, spent.host / self._steps * 1e3, device))
            known += spent.host / self._steps * 1e3
        rows.append(("other", max(per_step - known, 0.0), None))
        total = per_step
        for name in BETWEEN:
            if (spent := self._times.get(name)) is None:
                continue
            shared = spent.count * self._between
            device = spent.device_ms() / shared if spent.events else None
            rows.append((name, spent.host / shared * 1e3, device))
            total += spent.host / shared * 1e3
        on_gpu = self._device.type == "cuda"
        head = f"{'ms per step':<12} {'host':>9} {'%':>6}" + (f" {'GPU':>9}" if on_gpu else "")
        lines = [f"profile of {self._steps} steps", head]
        for name, host, device in rows:
            line = f"{name:<12} {host:>9.2f} {host / total:>6.1%}"
            lines.append(line + (f" {device:>9.2f}" if device is not None else ""))
        return [*lines, f"{'total':<12} {total:>9.2f} {1:>6.1%}"]

    def _store_trace(self, profiler: profile) -> None:
        if self._out is None:
            return
        with tempfile.TemporaryDirectory(prefix="colorcore-profile-") as scratch:
            path = Path(scratch) / "trace.json.gz"
            profiler.export_chrome_trace(str(path))
            # Not put: that renames, and the scratch folder may be on another disk.
            self._out.write(TRACE, path.read_bytes())

    def _events(self) -> tuple[Any, Any] | None:
        if self._device.type != "cuda":
            return None
        events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        events[0].record()
        return events

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def no_profile() -> Profile:
    """A profile that measures nothing."""
    return Profile(0, torch.device("cpu"), 1, None, lambda _: None)
