"""The job of `cc shard`: photos from anywhere -> a dataset anywhere, one Ray task a unit.

The driver lists the photos into slices (``pipelines.sharding.plan``) and keeps a constant number
of unit
tasks in flight. A task reads its slice, writes the unit's files into a scratch folder and moves
them into the dataset, the index last. Nothing else coordinates: whatever is killed, the same
command again does the units that have no index. When all are done, what they add up to is
computed from their files (``colorcore.dataset.merge``), in tasks too when they are many.

The driver holds a number a unit that is done and one a failed unit; never the photos.
"""

from __future__ import annotations

import fcntl
import os
import queue
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.dataset.layout import (
    SPLITS,
    DatasetInfo,
    PlanFile,
    ShardSettings,
    UnitResult,
    done_units,
    read_info,
    unit_name,
    write_info,
)
from colorcore.dataset.merge import MERGED, Summary, find_copies, summarise, write_finished
from colorcore.dataset.unit import publish_unit, write_unit
from colorcore.photos.refusal import DAMAGED
from colorcore.storage.store import StorageError, Store, absolute_store, open_store
from pipelines.cluster import ray_session
from pipelines.errors import JobError, WrongCallError
from pipelines.sharding.plan import Listing, PlannedUnit, planning
from pipelines.sources.source import Source, open_sources, read_photos

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

UNITS_IN_FLIGHT_PER_CPU = 2
TASK_RETRIES = 4
"""Times a unit's task is started again after its worker or node died, or its storage failed."""
FAILURES_IN_A_ROW = 20
"""After so many failed units and no good one, the cause is not in the photos."""
GROUP_UNITS = 1000
"""Units that are summed up by one task at the end."""
PIECE_SAMPLES = 5_000_000
"""Samples whose hashes one task compares at the end (28 bytes each)."""
SCRATCH_AGE_S = 60.0
"""A scratch folder that nobody holds and that is older was left by a worker that was killed."""
_POLL_S = 0.2
_COUNT_CPUS_EVERY_S = 5.0


@dataclass(slots=True)
class ShardProgress:
    """Where a running job stands.

    photos   listed so far (a tar counts as one until it is done); listing: more may come
    done     photos of units that are done; new: of those, by this call
    kept, refused  photos done by this call, by split and by reason
    """

    photos: int = 0
    units: int = 0
    units_done: int = 0
    done: int = 0
    new: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    listing: bool = True


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What `cc shard` did; when units failed, kept and refused are those of this call alone.

    new_photos is 0 when the dataset was finished before; failed maps a unit to its error;
    worker_cpu_s is the CPU time of this call's unit tasks, imports aside.
    """

    dataset: str
    photos: int
    kept: dict[str, int]
    refused: dict[str, int]
    duplicates: int
    ignored: dict[str, int]
    units: int
    new_photos: int
    failed: dict[int, str]
    worker_cpu_s: float
    fingerprint: str | None

    @property
    def damaged(self) -> int:
        """Photos whose file itself is bad."""
        return sum(self.refused.get(reason.value, 0) for reason in DAMAGED)


def shard(
    sources: Sequence[str | Path],
    dataset: str | Path,
    settings: ShardSettings,
    *,
    address: str | None = None,
    on_progress: Callable[[ShardProgress], None] = lambda _: None,
    on_failure: Callable[[int, str], None] = lambda _unit, _error: None,
) -> ShardReport:
    """Turn the photos of ``sources`` into the dataset ``dataset``; resumes what is there.

    Both may be local or URIs; on a cluster every node must be able to open them.

    Raises:
        WrongCallError: a source is missing, or the dataset was made with other settings.
        JobError: there are no photos, another job is writing the dataset, or every unit fails.
        StorageError: a store does not answer, or refuses.
    """
    opened = [source.absolute() for source in open_sources(sources)]
    target = open_store(dataset)
    with _only_writer(target), ExitStack() as stack:
        info = _begin(target, settings, tuple(map(str, sources)))
        job = _Job(absolute_store(target), opened, settings, info, on_progress, on_failure)
        ignored: Counter[str] = Counter()
        listing = stack.enter_context(
            planning(job.dataset, opened, settings.photos_per_unit, ignored)
        )
        job.do_units(listing, lambda: stack.enter_context(ray_session(address)))
        if not job.progress.units:
            raise JobError(
                f"found no photos in {', '.join(map(str, sources))} "
                f"({ignored.total()} other files); "
                "expected files such as .jpg, .png, .webp or .tif, or .tar of them"
            )
        finished = job.finish(lambda: stack.enter_context(ray_session(address)))
        _sweep(target)
    counts = {} if job.failed else (finished.counts or {})
    kept, refused = (
        (job.progress.kept, job.progress.refused)
        if job.failed
        else ({split: counts[split] for split in SPLITS}, finished.refused or {})
    )
    return ShardReport(
        dataset=target.show(),
        photos=counts.get("photos", job.progress.photos),
        kept={split: count for split, count in kept.items() if count},
        refused=dict(refused),
        duplicates=counts.get("duplicates", 0),
        ignored=dict(ignored),
        units=job.progress.units,
        new_photos=job.progress.new,
        failed=job.failed,
        worker_cpu_s=job.cpu_s,
        fingerprint=finished.fingerprint,
    )


# -- before ------------------------------------------------------------------------------------


@contextmanager
def _only_writer(dataset: Store) -> Iterator[None]:
    """Hold a local dataset's folder locked against a second job on this machine.

    Two jobs on one remote dataset do the same units to the same bytes: a waste, no damage.
    """
    if dataset.local is None:
        yield
        return
    dataset.local.mkdir(parents=True, exist_ok=True)
    folder = os.open(dataset.local, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise JobError(
            f"another cc shard is writing {dataset.local}; wait for it or choose another folder"
        ) from error
    finally:
        os.close(folder)


def _begin(dataset: Store, settings: ShardSettings, sources: tuple[str, ...]) -> DatasetInfo:
    asked = DatasetInfo(settings=settings, sources=sources)
    if not dataset.exists("dataset.json"):
        ours = {".dataset.json.part"}  # of a call that was killed while it wrote the very first
        if dataset.kind() != "nothing" and {entry.name for entry in dataset.entries()} - ours:
            raise WrongCallError(
                f"expected an empty or new folder or a dataset, found other files in "
                f"{dataset.show()}"
            )
        write_info(dataset, asked)
        return asked
    there = read_info(dataset, finished=False)
    asked_values = {**settings.model_dump(), "sources": sources}
    there_values = {**there.settings.model_dump(), "sources": there.sources}
    differences = [
        f"{name} is {there_values[name]} there, {value} asked"
        for name, value in asked_values.items()
        if there_values[name] != value
    ]
    if differences:
        raise WrongCallError(
            f"{dataset.show()} was made with other settings: {'; '.join(differences)}; "
            "repeat them or choose another folder"
        )
    return there


# -- the units ---------------------------------------------------------------------------------


_Ended = tuple[PlannedUnit, "Future[tuple[UnitResult, float]]"]


def _report(
    ended: queue.SimpleQueue[_Ended], unit: PlannedUnit, future: Future[tuple[UnitResult, float]]
) -> None:
    ended.put((unit, future))


class _Job:
    """The running job: what is planned, done and failed so far."""

    def __init__(
        self,
        dataset: Store,
        sources: Sequence[Source],
        settings: ShardSettings,
        info: DatasetInfo,
        on_progress: Callable[[ShardProgress], None],
        on_failure: Callable[[int, str], None],
    ) -> None:
        self.dataset, self._sources, self._settings, self._info = dataset, sources, settings, info
        self._on_progress, self._on_failure = on_progress, on_failure
        self._done = set(done_units(dataset))
        self._failures_in_a_row = 0
        self._window, self._count_cpus_at = 0, 0.0
        self.progress = ShardProgress()
        self.failed: dict[int, str] = {}
        self.cpu_s = 0.0

    def do_units(self, listing: Listing, connect: Callable[[], object]) -> None:
        """Do every unit that has no index, as they are listed."""
        start: Callable[[PlannedUnit], Any] | None = None
        running, ended = 0, queue.SimpleQueue[_Ended]()
        while running or not listing.ended:
            unit = None
            if start is None or running < self._room():
                unit = self._next_to_do(listing, wait=not running)
            if unit is not None:
                if start is None:
                    self._mark_unfinished(unit.unit)
                    connect()
                    start = self._start_task()
                # A callback a task: ray.wait would look through all that are in flight each time.
                start(unit).future().add_done_callback(partial(_report, ended, unit))
                running += 1
            elif running:
                running -= self._collect(ended)
        self._on_progress(self.progress)

    def _next_to_do(self, listing: Listing, *, wait: bool) -> PlannedUnit | None:
        """The next listed unit that is not done, or None when there is none at the moment."""
        while not listing.ended:
            unit = listing.next(_POLL_S if wait else 0.0)
            self.progress.listing = not listing.ended
            if unit is None:
                if wait:
                    self._on_progress(self.progress)
                    continue
                return None
            self.progress.units += 1
            self.progress.photos += unit.photos
            if unit.unit not in self._done:
                return unit
            self.progress.units_done += 1
            self.progress.done += unit.photos
        return None

    def _start_task(self) -> Callable[[PlannedUnit], Any]:
        """How a unit's task is started."""
        import ray

        options: Any = {
            "num_cpus": 1,
            "max_retries": TASK_RETRIES,
            "retry_exceptions": [OSError, StorageError],
        }
        task = ray.remote(**options)(shard_unit)
        fixed = ray.put((self.dataset, self._sources, self._settings))
        return lambda unit: task.remote(fixed, unit.unit, unit.plan)

    def _room(self) -> int:
        """How many units may be in flight; a cluster may grow meanwhile."""
        now = time.monotonic()
        if now >= self._count_cpus_at:
            self._window = _units_in_flight()
            self._count_cpus_at = now + _COUNT_CPUS_EVERY_S
        return self._window

    def _collect(self, ended: queue.SimpleQueue[_Ended]) -> int:
        """Wait a moment for a unit to end, and count it; returns how many did."""
        import ray

        try:
            unit, future = ended.get(timeout=_POLL_S)
        except queue.Empty:
            self._on_progress(self.progress)
            return 0
        try:
            result, cpu_s = future.result()
        except ray.exceptions.RayError as error:
            self._fail(unit.unit, error)
            return 1
        self._failures_in_a_row = 0
        self.cpu_s += cpu_s
        self.progress.units_done += 1
        self.progress.photos += result.photos - unit.photos  # a tar holds many
        self.progress.done += result.photos
        self.progress.new += result.photos
        self.progress.kept.update(result.kept)
        self.progress.refused.update(result.refused)
        self._on_progress(self.progress)
        return 1

    def _fail(self, unit: int, error: Exception) -> None:
        cause = getattr(error, "cause", None) or error
        lines = str(cause).strip().splitlines() or [""]
        line = f"{type(cause).__name__}: {lines[0]}"
        self.failed[unit] = line
        self._on_failure(unit, line)
        self._failures_in_a_row += 1
        if self._failures_in_a_row == FAILURES_IN_A_ROW:
            raise JobError(
                f"{FAILURES_IN_A_ROW} units in a row failed, the last with {line}; "
                "mend the cause and run the same command again"
            )

    def _mark_unfinished(self, unit: int) -> None:
        """A finished dataset of which a unit is done again is unfinished until it is."""
        if unit < (self._info.counts or {}).get("units", 0):
            self._info = DatasetInfo(settings=self._info.settings, sources=self._info.sources)
            write_info(self.dataset, self._info)

    # -- after -----------------------------------------------------------------------------

    def finish(self, connect: Callable[[], object]) -> DatasetInfo:
        """Complete the dataset, unless a unit failed or nothing has changed."""
        counts = self._info.counts or {}
        unchanged = (
            not self.progress.new
            and counts.get("units") == self.progress.units
            and self._info.fingerprint is not None
            and all(self.dataset.exists(name) for name in MERGED)
        )
        if self.failed or unchanged:
            return self._info
        return finish(self.dataset, self._info, connect=connect)


def _units_in_flight() -> int:
    """Tasks that a connected Ray is given at a time."""
    import ray

    return UNITS_IN_FLIGHT_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))


def shard_unit(
    job: tuple[Store, Sequence[Source], ShardSettings], unit: int, plan: int
) -> tuple[UnitResult, float]:
    """Do one unit, start to end: the Ray task, and a plain function. Returns CPU seconds too."""
    import cv2

    dataset, sources, settings = job
    cv2.setNumThreads(1)
    photos = PlanFile(dataset, plan).slice(unit)
    started = time.process_time()  # from here on, nothing is imported any more
    with _scratch(dataset, unit) as scratch:
        result = write_unit(
            scratch, unit, read_photos(sources, photos, settings.max_bytes), settings
        )
        publish_unit(scratch, dataset, unit)
    return result, time.process_time() - started


@contextmanager
def _scratch(dataset: Store, unit: int) -> Iterator[Path]:
    """A folder to write a unit in: inside a local dataset, so that its files can be renamed.

    Its name is new each time: a worker that was given up may still be writing in its own.
    """
    if dataset.local is None:
        _sweep_temporary()
    prefix = f".unit-{unit_name(unit)}-"
    with (
        tempfile.TemporaryDirectory(
            prefix=prefix, dir=dataset.local, ignore_cleanup_errors=True
        ) as folder,
        _locked(Path(folder)),
    ):
        yield Path(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder locked, if nobody else does; the kernel drops the lock with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    held = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _sweep_temporary() -> None:
    """Remove what killed workers left of units of remote datasets on this machine."""
    for folder in Path(tempfile.gettempdir()).glob(".unit-*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < SCRATCH_AGE_S:
                continue  # perhaps just made, and about to be locked
            with _locked(folder) as abandoned:
                if abandoned:
                    shutil.rmtree(folder)


# -- after -------------------------------------------------------------------------------------


def finish(
    dataset: Store, info: DatasetInfo, *, connect: Callable[[], object] | None = None
) -> DatasetInfo:
    """Add up the units' files, find copies across units and complete ``dataset.json``.

    ``connect`` reaches Ray; without it, or for few units, all is done in this process.
    """
    units = done_units(dataset)
    groups = [units[start : start + GROUP_UNITS] for start in range(0, len(units), GROUP_UNITS)]
    total = Summary()
    if connect is None or len(groups) <= 1:
        hashes = []
        for group in groups:
            summary, pieces = summarise(dataset, group)
            total.add(summary)
            hashes += pieces
        copies = find_copies(hashes)
    else:
        connect()
        samples = len(units) * info.settings.photos_per_unit
        copies = _finish_in_tasks(dataset, groups, 1 + samples // PIECE_SAMPLES, total)
    return write_finished(dataset, info, total, copies)


def _finish_in_tasks(
    dataset: Store, groups: Sequence[Sequence[int]], pieces: int, total: Summary
) -> NDArray[np.void]:
    """Sum up groups of units in tasks, then find copies piece by piece; adds to ``total``."""
    import numpy as np
    import ray

    reduced = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(_copies_of_piece)
    parts: list[list[Any]] = [[] for _ in range(pieces)]
    for summary, hashes in _in_order(_summary_tasks(dataset, groups, pieces)):
        total.add(summary)
        for part, reference in zip(parts, hashes, strict=True):
            part.append(reference)
    found = [reduced.remote(*part) for part in parts]
    parts.clear()
    return np.concatenate([_result(reference) for reference in found])


def _summary_tasks(
    dataset: Store, groups: Sequence[Sequence[int]], pieces: int
) -> Iterator[tuple[Any, list[Any]]]:
    import ray

    options: Any = {"num_cpus": 1, "num_returns": 1 + pieces, "max_retries": TASK_RETRIES}
    task: Any = ray.remote(**options)(_summary_and_pieces)
    for group in groups:
        summary, *hashes = task.remote(dataset, group, pieces)
        yield summary, hashes


def _in_order(tasks: Iterator[tuple[Any, list[Any]]]) -> Iterator[tuple[Summary, list[Any]]]:
    """The summaries in order of units, a constant number of tasks in flight."""
    running = list(islice(tasks, _units_in_flight()))
    while running:
        summary, hashes = running.pop(0)
        yield _result(summary), hashes
        running += islice(tasks, 1)


def _result(reference: Any) -> Any:
    """A task's result, or its own error, without the traceback that Ray makes part of it."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _summary_and_pieces(dataset: Store, units: Sequence[int], pieces: int) -> tuple[Any, ...]:
    summary, hashes = summarise(dataset, units, pieces)
    return summary, *hashes


def _copies_of_piece(*hashes: NDArray[np.void]) -> NDArray[np.void]:
    return find_copies(hashes)


def _sweep(dataset: Store) -> None:
    """Remove what a killed call left behind in a local dataset; no unit is running any more."""
    if dataset.local is None:
        return
    for scratch in dataset.local.glob(".unit-*"):
        shutil.rmtree(scratch, ignore_errors=True)
    for part in dataset.local.rglob(".*.part"):
        part.unlink(missing_ok=True)
