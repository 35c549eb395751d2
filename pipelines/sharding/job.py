"""The job of `cc shard`: photos from anywhere -> a dataset anywhere, one Ray task per unit.

The driver cuts the listed photos into units (``pipelines.sharding.plan``) and keeps a constant
number of unit tasks in flight. A task reads its photos, writes the unit's files into a scratch
folder and moves them into the dataset, the index last (``pipelines.sharding.task``). There is no
other coordination: after any kill, the same command does the units that have no index. When all
are done, totals and copies are computed from the units' files
(``pipelines.sharding.merge_tasks``).

The driver's memory grows by one number per unit, never by photos.
"""

from __future__ import annotations

import functools
import queue
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.dataset.layout import (
    SPLITS,
    DatasetInfo,
    ShardSettings,
    done_units,
    read_info,
    write_info,
)
from colorcore.dataset.merge import MERGED
from colorcore.photos.refusal import DAMAGED
from colorcore.storage.location import absolute_store, open_store
from colorcore.storage.locks import WRITER, claim
from colorcore.storage.store import StorageError, Store
from pipelines.cluster import ray_session, say_if_busy
from pipelines.errors import JobError, WrongCallError, differences
from pipelines.sharding.merge_tasks import merge_units, units_in_flight
from pipelines.sharding.plan import Listing, PlannedUnit, planning
from pipelines.sharding.plan_file import plans
from pipelines.sharding.skipped import Skipped, TaskResult, add, kinds, read_total
from pipelines.sharding.task import TASK_RETRIES, shard_unit
from pipelines.sources.lists import check_lists
from pipelines.sources.overlap import refuse_overlap
from pipelines.sources.source import Source, Tally, no_photos_in, open_sources

if TYPE_CHECKING:
    from concurrent.futures import Future

DEFAULTS = ShardSettings()
FAILURES_IN_A_ROW = 20
"""Failed units without a success between them after which the job gives up: the photos cannot be
the cause, and the next thousand units would fail too."""
_POLL_S = 0.2
_COUNT_CPUS_EVERY_S = 5.0
_EndedUnit = tuple[PlannedUnit, "Future[tuple[TaskResult, float]]"]


@dataclass(slots=True)
class ShardProgress:
    """Progress of a running job.

    photos   photos listed so far (a tar counts as one until it is done)
    done     photos in finished units; ``new`` counts those that this call did
    kept, refused  photos that this call did, by split and by reason
    listing  whether more photos may still be found
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
    """Result of `cc shard`; if units failed, all counts are of this call only.

    ignored       files that are not photos, by kind, in the sources' folders and tars
    empty         one sentence for each source without photos: what was in it instead
    new_photos    photos that this call did; 0 if the dataset was complete before
    failed        the error of each failed unit
    worker_cpu_s  CPU time of this call's unit tasks, without imports
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
    empty: tuple[str, ...] = ()

    @property
    def damaged(self) -> int:
        """Photos whose file is damaged."""
        return sum(self.refused.get(reason.value, 0) for reason in DAMAGED)


def shard(
    sources: Sequence[str | Path],
    dataset: str | Path,
    settings: ShardSettings = DEFAULTS,
    *,
    address: str | None = None,
    on_progress: Callable[[ShardProgress], None] = lambda _: None,
    on_failure: Callable[[int, str], None] = lambda _unit, _error: None,
) -> ShardReport:
    """Turn the photos of ``sources`` into ``dataset``, or continue an unfinished one.

    The same call continues an interrupted job, and adds photos that are new. Sources and dataset
    may be paths or URIs; on a cluster every node must be able to open them.

    Raises:
        WrongCallError: a source is missing or lies in the dataset, no file of a list exists, or
            the dataset was made with other settings.
        JobError: there are no photos, or too many units fail.
        BusyError: another process writes to the dataset.
        StorageError: a store does not answer, or denies access.
    """
    opened = [source.absolute() for source in open_sources(sources)]
    target = open_store(dataset)
    refuse_overlap(opened, target)
    if not plans(target):  # photos that are done may be removed, and their rows must stay
        check_lists(opened)
    with claim(target, "cc shard"), ExitStack() as stack:

        @functools.cache
        def connect() -> None:
            # Ray starts only when a unit or the merge needs it, and ends with the stack.
            stack.enter_context(ray_session(address))
            say_if_busy(1)

        info = _begin(target, settings, tuple(map(str, sources)))
        job = ShardJob(absolute_store(target), opened, settings, info, on_progress, on_failure)
        ignored: Counter[str] = Counter()
        tallies = [Tally() for _ in opened]
        listing = stack.enter_context(
            planning(job.dataset, opened, settings.photos_per_unit, ignored, tallies=tallies)
        )
        job.do_units(listing, connect)
        if not job.progress.units:
            raise JobError("; ".join([*no_photos_in(opened, tallies)[:3], "check the sources"]))
        finished = job.complete(connect)
        in_tars = job.skipped()
        _sweep(target)
    ignored.update(kinds(in_tars))
    add(in_tars, dict(enumerate(tallies)))
    all_tallies = [in_tars[root] for root in range(len(opened))]
    # A dataset with failed units has no totals yet; the report then counts this call's photos.
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
        empty=() if job.failed else tuple(no_photos_in(opened, all_tallies)),
    )


def _begin(dataset: Store, settings: ShardSettings, sources: tuple[str, ...]) -> DatasetInfo:
    """Create ``dataset.json``, or check that an existing one has the same settings."""
    asked = DatasetInfo(settings=settings, sources=sources)
    if not dataset.exists("dataset.json"):
        # The first is left by a call that was killed while writing this file.
        ours = {".dataset.json.part", WRITER}
        if dataset.kind() != "nothing" and {entry.name for entry in dataset.entries()} - ours:
            raise WrongCallError(
                f"expected a new or empty folder or a dataset, found other files in "
                f"{dataset.show()}; choose another folder"
            )
        write_info(dataset, asked)
        return asked
    there = read_info(dataset, finished=False)
    asked_values = {**settings.model_dump(), "sources": sources}
    there_values = {**there.settings.model_dump(), "sources": there.sources}
    if changes := differences(there_values, asked_values):
        raise WrongCallError(
            f"{dataset.show()} was made with other settings: {changes}; "
            "use the same settings or choose another folder"
        )
    return there


class ShardJob:
    """Runs the tasks of a dataset's units, and counts what is planned, done and failed."""

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
        self._ended = queue.SimpleQueue[_EndedUnit]()
        self._failures_in_a_row = 0
        self._window, self._count_cpus_at = 0, 0.0
        self.progress = ShardProgress()
        self.failed: dict[int, str] = {}
        self.cpu_s = 0.0
        self._skipped: Skipped = {}

    def do_units(self, listing: Listing, connect: Callable[[], object]) -> None:
        """Run a task for each listed unit without an index, while the listing continues.

        ``connect`` reaches Ray. It is called for the first such unit only, so a call that finds
        nothing to do starts no Ray.
        """
        start: Callable[[PlannedUnit], Any] | None = None
        running = 0
        while running or not listing.ended:
            # Start units while there is room, otherwise wait for one to end: the window keeps
            # Ray's queue, and the driver's memory, constant for any number of photos.
            unit = None
            if start is None or running < self._room():
                unit = self._next_to_do(listing, wait=not running)
            if unit is not None:
                if start is None:
                    # Units are in order, so the first is the only one that may lie below the
                    # number of units of the finished dataset.
                    self._mark_unfinished(unit.unit)
                    connect()
                    start = self._start_task()
                self._watch(unit, start(unit))
                running += 1
            elif running:
                running -= self._collect()
        self._on_progress(self.progress)

    def _next_to_do(self, listing: Listing, *, wait: bool) -> PlannedUnit | None:
        """The next listed unit that is not done, or None if none is listed at the moment.

        With ``wait`` it returns only when there is one or the listing has ended: nothing runs,
        so there is nothing else to wait for.
        """
        while not listing.ended:
            # While units run, don't block here: their ends have to be collected.
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
        """A function that starts a unit's task."""
        import ray

        options: Any = {
            "num_cpus": 1,
            "max_retries": TASK_RETRIES,
            # A full disk or a store that is down may recover. Other errors repeat themselves.
            "retry_exceptions": [OSError, StorageError],
        }
        task = ray.remote(**options)(shard_unit)
        # Stored once: as plain arguments they would be serialized again for every task.
        fixed = ray.put((self.dataset, self._sources, self._settings))
        return lambda unit: task.remote(fixed, unit.unit, unit.plan)

    def _watch(self, unit: PlannedUnit, task: Any) -> None:
        """Put the unit into the queue when its task ends.

        ``ray.wait`` would scan every task in flight each time one ends.
        """
        task.future().add_done_callback(lambda future: self._ended.put((unit, future)))

    def _room(self) -> int:
        """How many units may be in flight; counted anew because a cluster may grow."""
        # Not each time: asking Ray takes milliseconds, and this runs once per unit.
        now = time.monotonic()
        if now >= self._count_cpus_at:
            self._window = units_in_flight()
            self._count_cpus_at = now + _COUNT_CPUS_EVERY_S
        return self._window

    def _collect(self) -> int:
        """Wait briefly for a unit to end and count its photos; return how many units ended."""
        import ray

        try:
            unit, future = self._ended.get(timeout=_POLL_S)
        except queue.Empty:
            self._on_progress(self.progress)
            return 0
        try:
            result, cpu_s = future.result()
        except ray.exceptions.RayError as error:
            # Not fatal: the other units are worth finishing, and the next call retries this one.
            self._fail(unit.unit, error)
            return 1
        self._failures_in_a_row = 0
        self.cpu_s += cpu_s
        self.progress.units_done += 1
        self.progress.photos += result.photos - unit.photos  # a tar was listed as one photo
        self.progress.done += result.photos
        self.progress.new += result.photos
        self.progress.kept.update(result.kept)
        self.progress.refused.update(result.refused)
        add(self._skipped, result.skipped)
        self._on_progress(self.progress)
        return 1

    def _fail(self, unit: int, error: Exception) -> None:
        # Ray wraps the task's own error, whose first line is what the user needs to see.
        cause = getattr(error, "cause", None) or error
        lines = str(cause).strip().splitlines() or [""]
        line = f"{type(cause).__name__}: {lines[0]}"
        self.failed[unit] = line
        self._on_failure(unit, line)
        self._failures_in_a_row += 1
        if self._failures_in_a_row == FAILURES_IN_A_ROW:
            raise JobError(
                f"{FAILURES_IN_A_ROW} units in a row failed, the last with {line}; "
                "fix the cause and rerun the same command"
            )

    def _mark_unfinished(self, unit: int) -> None:
        """Mark a finished dataset as unfinished before a unit of it is done again.

        A kill in between must not leave a dataset that claims to be complete.
        """
        if unit < (self._info.counts or {}).get("units", 0):
            self._info = DatasetInfo(settings=self._info.settings, sources=self._info.sources)
            write_info(self.dataset, self._info)

    def complete(self, connect: Callable[[], object]) -> DatasetInfo:
        """Write the dataset's totals, unless a unit failed or nothing has changed."""
        # Missing merged files count as a change: someone removed them to have them made again.
        counts = self._info.counts or {}
        unchanged = (
            not self.progress.new
            and counts.get("units") == self.progress.units
            and self._info.fingerprint is not None
            and all(self.dataset.exists(name) for name in MERGED)
        )
        if self.failed or unchanged:
            return self._info
        return merge_units(self.dataset, self._info, connect=connect)

    def skipped(self) -> Skipped:
        """What the dataset's tars held besides photos; call it after :meth:`complete`.

        If units failed, those of this call only: there is no total, and the store may be down.
        """
        return self._skipped if self.failed else read_total(self.dataset)


def _sweep(dataset: Store) -> None:
    """Remove what killed calls left in a dataset, now that no unit is running."""
    if dataset.local is None:
        dataset.drop_uploads()
        return
    for scratch in dataset.local.glob(".unit-*"):
        shutil.rmtree(scratch, ignore_errors=True)
    for part in dataset.local.rglob(".*.part"):
        part.unlink(missing_ok=True)
