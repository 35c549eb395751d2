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

import queue
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.dataset.layout import (
    SPLITS,
    DatasetInfo,
    ShardSettings,
    UnitResult,
    done_units,
    read_info,
    write_info,
)
from colorcore.dataset.merge import MERGED
from colorcore.photos.refusal import DAMAGED
from colorcore.storage.location import absolute_store, open_store
from colorcore.storage.locks import try_lock
from colorcore.storage.store import StorageError, Store
from pipelines.cluster import ray_session
from pipelines.errors import JobError, WrongCallError
from pipelines.sharding.merge_tasks import finish, units_in_flight
from pipelines.sharding.plan import Listing, PlannedUnit, planning
from pipelines.sharding.task import TASK_RETRIES, shard_unit
from pipelines.sources.source import Source, open_sources

if TYPE_CHECKING:
    from concurrent.futures import Future


FAILURES_IN_A_ROW = 20
"""After so many failed units and no good one, the cause is not in the photos."""
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
    with try_lock(dataset.local) as held:
        if not held:
            raise JobError(
                f"another cc shard is writing {dataset.local}; wait for it or choose another folder"
            )
        yield


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
            self._window = units_in_flight()
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


def _sweep(dataset: Store) -> None:
    """Remove what a killed call left behind in a local dataset; no unit is running any more."""
    if dataset.local is None:
        return
    for scratch in dataset.local.glob(".unit-*"):
        shutil.rmtree(scratch, ignore_errors=True)
    for part in dataset.local.rglob(".*.part"):
        part.unlink(missing_ok=True)
