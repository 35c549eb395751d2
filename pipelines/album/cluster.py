"""Colourize on a Ray cluster: a task per slice of photos, a bounded number of them in flight.

The driver holds the list of photos and what became of them. A task whose process or node dies is
run again by Ray; one whose processes keep dying is cut into its photos, to find the one that kills
them. Ctrl-C ends what is in flight; what it had written by then is found on the disk.
"""

from __future__ import annotations

import queue
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.storage.store import StorageError
from pipelines.album.settings import ColorizeReport
from pipelines.album.slices import (
    STOP,
    Fixed,
    Slice,
    SliceResult,
    colorize_slice,
    cut,
    here,
    pictures_of,
    slice_size,
)
from pipelines.album.works import GIVE_UP_AFTER, Item, Works
from pipelines.cluster import ray_session, say_if_busy
from pipelines.errors import JobError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from colorcore.colorizing.colorizer import Colorizer

RETRIES = 3
"""Retries of a task whose process or node died, or whose store of photos failed."""
IN_FLIGHT = 2
"""Tasks per place for one: the next one waits in Ray's queue, so that nothing idles in between."""
DEAD_IN_A_ROW = 10
"""Photos in a row that no process survived, after which the photos cannot be the cause."""
STOP_S = 20.0
"""Seconds that tasks have to end the photos in their hands after Ctrl-C."""
_POLL_S = 0.2
_COUNT_EVERY_S = 5.0
_PART = re.compile(r"\..*\.[0-9a-f]{8}\.part")
_EndedSlice = tuple[Slice, "Future[SliceResult]"]


def colorize_on_cluster(
    address: str,
    colorizer: Colorizer,
    works: Works,
    items: Iterator[Item],
    tars: Iterable[Item],
    on_progress: Callable[[int], None],
) -> None:
    """Colourize the photos of a job that have no picture; if all have one, no cluster is needed.

    tars         those among the items
    on_progress  receives the number of photos that are done

    Raises:
        JobError: the cluster cannot be reached or has no such nodes, or the disk is full.
        StorageError: a store of photos does not answer.
    """
    report, total = works.report, works.report.left
    out = report.out.absolute()
    todo = works.to_do(items)
    try:
        if (first := next(todo, None)) is None:
            return
        with ray_session(address):
            places = Places(works.settings.device, works.settings.threads)
            places.say_if_busy()
            size = slice_size(report.left, places.count())
            slices = cut(chain([first], todo), size, tars, works)
            job = SliceJob(works, lambda: on_progress(total - report.left))
            job.run(colorizer, places, slices)
    finally:
        if out != report.out:  # tasks have other current folders
            report.written = [report.out / path.relative_to(out) for path in report.written]
            report.kept = [report.out / path.relative_to(out) for path in report.kept]


class Places:
    """Where tasks run in the connected cluster, and what each one takes.

    device   of the network
    threads  of a task
    """

    def __init__(self, device: str | None, threads: int | None) -> None:
        """Choose GPUs if there are any, else CPUs.

        Raises:
            JobError: the cluster has no GPU or no node with so many CPUs, but they are asked for.
        """
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
        self.device = device or ("cuda" if with_gpu else "cpu")
        self._kind = "GPU" if self.device.startswith("cuda") else "CPU"
        if self._kind == "GPU" and not with_gpu:
            raise JobError(
                f"expected GPUs for --device {self.device}, found none in the cluster; add a node "
                "that has some, or use --device cpu"
            )
        most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        if threads is not None and 0 < most < threads:
            raise JobError(
                f"expected a node with {threads} CPUs for --threads {threads}, found at most "
                f"{most}; lower --threads"
            )
        if self._kind == "GPU":
            self.device = "cuda"  # Ray shows each task its own one only
            each = min(int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu)
            cpus = min(threads or each, each)
        else:
            cpus = threads or 1
        self.threads = max(1, cpus)
        self.resources = {"num_cpus": cpus, "num_gpus": int(self._kind == "GPU")}
        self._count, self._count_at = 0, 0.0

    def say_if_busy(self) -> None:
        """Log what the job waits for, if all places are taken."""
        if self._kind == "GPU":
            say_if_busy(1, gpus=True)
        else:
            say_if_busy(self.threads)

    def count(self) -> int:
        """How many tasks run at a time; counted anew because a cluster may grow."""
        import ray

        now = time.monotonic()
        if now >= self._count_at:
            each = self.threads if self._kind == "CPU" else 1
            self._count = max(1, int(ray.cluster_resources().get(self._kind, 0)) // each)
            self._count_at = now + _COUNT_EVERY_S
        return self._count


class SliceJob:
    """Runs the tasks of a job's slices, and sums up what became of them.

    works   its report receives the results, in the order of the slices, however the job ends
    """

    def __init__(
        self,
        works: Works,
        on_progress: Callable[[], None],
    ) -> None:
        self._works, self._on_progress = works, on_progress
        self._settings, self._report = works.settings, works.report
        self._running: dict[tuple[int, ...], tuple[Slice, Any]] = {}
        self._again: deque[Slice] = deque()
        self._ended = queue.SimpleQueue[_EndedSlice]()
        self._parts: dict[tuple[int, ...], ColorizeReport] = {}
        self._folders: set[Path] = set()
        self._failed_writes = self._dead = 0
        self._stop_file = works.report.out.absolute() / STOP

    def run(self, colorizer: Colorizer, places: Places, slices: Iterator[Slice]) -> None:
        """Run a task for each slice.

        Raises:
            JobError: the disk is full, or Ray failed.
            StorageError: a store of photos does not answer.
        """
        import ray

        self._stop_file.unlink(missing_ok=True)  # of a driver that was killed
        options: Any = {
            **places.resources,
            "max_calls": 0,  # Ray ends processes with a GPU after one task, unless told otherwise
            "max_retries": RETRIES,
            "retry_exceptions": [StorageError],
        }
        task = ray.remote(**options)(colorize_slice)
        box = (ray.put(colorizer),)
        settings = replace(self._settings, device=places.device)
        out = self._report.out.absolute()
        sources = [source.absolute() for source in self._works.sources]
        fixed = ray.put(Fixed(box, places.device, sources, settings, out, places.threads, here()))
        try:
            part = self._next(slices)
            while part is not None or self._running:
                if part is not None and len(self._running) < IN_FLIGHT * places.count():
                    self._start(part, task.remote(fixed, part))
                    part = self._next(slices)
                else:
                    self._collect()
                    part = part or self._next(slices)
        except BaseException:
            self._stop()
            raise
        finally:
            self._sum_up()

    def _next(self, slices: Iterator[Slice]) -> Slice | None:
        return self._again.popleft() if self._again else next(slices, None)

    def _start(self, part: Slice, reference: Any) -> None:
        self._running[part.order] = (part, reference)
        reference.future().add_done_callback(lambda future: self._ended.put((part, future)))
        self._folders |= {item.target.parent for item in part.items if item.target is not None}
        if part.folder is not None:
            self._folders.add(part.folder)

    def _collect(self) -> None:
        """Wait briefly for a slice to end, and record what became of it."""
        import ray.exceptions as failures

        try:
            part, future = self._ended.get(timeout=_POLL_S)
        except queue.Empty:
            return
        try:
            result = future.result()
        except failures.RayTaskError as error:
            raise getattr(error, "cause", None) or error from None
        except (
            failures.WorkerCrashedError,
            failures.OutOfMemoryError,
            failures.NodeDiedError,
            failures.ObjectLostError,
        ) as error:
            self._lost(part, error)
        except failures.RayError as error:
            raise JobError(f"Ray failed: {_line(error)}; rerun the same command") from error
        else:
            self._record(part, result)
        self._on_progress()

    def _record(self, part: Slice, result: SliceResult) -> None:
        del self._running[part.order]
        self._dead = 0
        report = self._parts[part.order] = result.report
        self._report.left -= len(part.items) - report.left
        self._report.ignored += report.ignored
        for root, tally in result.tallies.items():
            self._works.tallies[root].add(tally)
        if report.written:
            self._failed_writes = 0
        self._failed_writes += result.failed_writes
        if self._failed_writes >= GIVE_UP_AFTER:
            raise JobError(
                f"expected to write to {self._report.out}, the last {self._failed_writes} pictures "
                f"failed: {result.last_failure}"
            )

    def _lost(self, part: Slice, error: Exception) -> None:
        """Cut a slice whose processes keep dying into its photos; give up on a single one."""
        del self._running[part.order]
        if len(part.items) > 1 and part.folder is None:
            self._again.extend(
                replace(part, order=(*part.order, number), items=(item,))
                for number, item in enumerate(part.items)
            )
            return
        for item in self._take(part):
            self._parts[part.order].refused[item.place] = (
                f"the process that colourized it died {RETRIES + 1} times ({_line(error)}); "
                "it may need more memory than a node has: pass a smaller copy"
            )
            self._report.left -= 1
        self._dead += 1
        if self._dead >= DEAD_IN_A_ROW:
            raise JobError(
                f"the processes of {self._dead} photos in a row died, the last with "
                f"{_line(error)}; look at the nodes' memory and Ray's logs, and rerun the same "
                "command"
            )

    def _take(self, part: Slice) -> list[Item]:
        """Report the pictures that there are of a slice that did not end; returns what is left."""
        found, left = pictures_of(part, self._settings)
        self._parts[part.order] = ColorizeReport(self._report.out, written=found)
        self._report.left -= len(part.items) - len(left)
        return left

    def _stop(self) -> None:
        """End what is in flight, and wait until nothing writes any more."""
        import ray

        references = [reference for _, reference in self._running.values()]
        try:
            # A file, because all tasks see this folder, and ray.cancel may end this process
            # instead: Ray 2.60 aborts where a task is cancelled just before it is handed out.
            with suppress(OSError):  # the disk may be full
                self._stop_file.touch()
            with suppress(Exception):  # the cluster may be gone
                _, references = ray.wait(
                    references, num_returns=len(references), timeout=STOP_S, fetch_local=False
                )
        finally:
            for reference in references:
                with suppress(Exception):
                    ray.cancel(reference, force=True)
            self._take_all()
            with suppress(OSError):
                self._stop_file.unlink(missing_ok=True)

    def _take_all(self) -> None:
        """Report the slices in flight: the results of those that ended, the pictures of others."""
        with suppress(queue.Empty, JobError):  # the disk may be full, which is known
            while True:
                part, future = self._ended.get_nowait()
                if not future.cancelled() and future.exception() is None:
                    self._record(part, future.result())
        for part, _ in self._running.values():
            self._take(part)

    def _sum_up(self) -> None:
        for _, part in sorted(self._parts.items()):
            self._report.written += part.written
            self._report.kept += part.kept
            self._report.colored += part.colored
            self._report.refused |= part.refused
        for folder in self._folders:
            _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left of pictures they were writing."""
    with suppress(OSError):
        for path in folder.glob(".*.part"):
            if _PART.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].partition('. ')[0]}"
