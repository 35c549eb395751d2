"""Assign photos to units, once and for all.

Photos are listed in a fixed order (``pipelines.sources.listing``) and cut into slices of
``photos_per_unit``; a tar is a slice of its own. The slices are written to the dataset before
their units are done, ``PLAN_UNITS`` per file, so an interrupted listing continues with the same
slices. A later call lists the sources again and merges the result with the plan. Both are in
the same order, so it holds one slice per earlier call, however many photos there are. New photos
get new units.
"""

from __future__ import annotations

import heapq
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from colorcore.storage.store import Store
from pipelines.errors import WrongCallError
from pipelines.sharding.plan_file import PLAN_UNITS, PlanFile, plans, write_plan
from pipelines.sources.listing import is_tar, list_photos
from pipelines.sources.source import PlannedPhoto, Source, Tally

LISTED_AHEAD = 4 * PLAN_UNITS
"""Units held in memory while the listing is ahead of the work."""

_Order = tuple[int, list[bytes]]


@dataclass(frozen=True, slots=True)
class PlannedUnit:
    """A unit: its number, the plan file that holds its slice, and the slice's length."""

    unit: int
    plan: int
    photos: int


def plan_units(
    dataset: Store,
    sources: Sequence[Source],
    photos_per_unit: int,
    ignored: Counter[str],
    stopped: Callable[[], bool] = lambda: False,
    *,
    tallies: Sequence[Tally] | None = None,
) -> Iterator[PlannedUnit]:
    """Every unit of the dataset: first the planned ones, then those of new photos.

    ``ignored`` and ``tallies`` are those of ``list_photos``. ``stopped`` is asked once per slice.
    Slices that are listed but not yet written are listed again by the next call.

    Raises:
        DatasetError: a file of the plan is damaged.
        WrongCallError: a list no longer has the planned rows.
        StorageError: a store does not answer.
    """
    files = [PlanFile(dataset, first) for first in plans(dataset)]
    for file in files:
        for number, photos in enumerate(file.photos):
            yield PlannedUnit(file.first + number, file.first, photos)
    first = files[-1].first + len(files[-1].photos) if files else 0
    waiting: list[list[PlannedPhoto]] = []
    listed = list_photos(sources, ignored, skip=dataset, tallies=tallies)
    for photos in _slices(_new_photos(listed, sources, files), photos_per_unit):
        if stopped():  # the job failed: don't list millions of photos nobody waits for
            return
        waiting.append(photos)
        if len(waiting) == PLAN_UNITS:
            yield from _write(dataset, first, waiting)
            first += len(waiting)
            waiting = []
    yield from _write(dataset, first, waiting)


@contextmanager
def planning(
    dataset: Store,
    sources: Sequence[Source],
    photos_per_unit: int,
    ignored: Counter[str],
    *,
    tallies: Sequence[Tally] | None = None,
) -> Iterator[Listing]:
    """:func:`plan_units` in a thread, so that units are done while photos are listed."""
    stop = threading.Event()
    units = plan_units(dataset, sources, photos_per_unit, ignored, stop.is_set, tallies=tallies)
    listing = Listing(units, stop)
    try:
        yield listing
    finally:
        listing.stop()


class Listing:
    """The units that a thread lists, handed over through a bounded queue."""

    def __init__(self, units: Iterator[PlannedUnit], stop: threading.Event | None = None) -> None:
        self.ended = False
        self._ready: queue.Queue[PlannedUnit | BaseException | None] = queue.Queue(LISTED_AHEAD)
        self._stop = stop or threading.Event()
        # A daemon: a store that does not answer must not keep an interrupted process alive.
        self._thread = threading.Thread(target=self._work, args=[units], daemon=True)
        self._thread.start()

    def next(self, timeout: float | None) -> PlannedUnit | None:
        """The next unit, or None after ``timeout`` seconds or at the end (see ``ended``).

        Raises:
            Exception: the error that stopped the listing.
        """
        if self.ended:
            return None
        try:
            item = self._ready.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(item, PlannedUnit):
            return item
        self.ended = True
        if item is not None:
            raise item
        return None

    def stop(self) -> None:
        """Stop listing; the slices written so far stay."""
        self._stop.set()
        self._thread.join()

    def _work(self, units: Iterator[PlannedUnit]) -> None:
        last: BaseException | None = None
        try:
            for unit in units:
                if not self._put(unit):
                    return
        except BaseException as error:  # raised again by next(), in the consumer's thread
            last = error
        self._put(last)

    def _put(self, item: PlannedUnit | BaseException | None) -> bool:
        # With a timeout, because a consumer that has stopped never makes room.
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def _write(
    dataset: Store, first: int, slices: Sequence[Sequence[PlannedPhoto]]
) -> Iterator[PlannedUnit]:
    if slices:  # written before any of them is yielded: no unit is done without a plan
        write_plan(dataset, first, slices)
    for number, photos in enumerate(slices):
        yield PlannedUnit(first + number, first, len(photos))


def _slices(photos: Iterator[PlannedPhoto], size: int) -> Iterator[list[PlannedPhoto]]:
    current: list[PlannedPhoto] = []
    for photo in photos:
        if is_tar(photo):  # its photos are unknown until it is read, so it is a unit by itself
            if current:
                yield current
                current = []
            yield [photo]
            continue
        current.append(photo)
        if len(current) == size:
            yield current
            current = []
    if current:
        yield current


def _new_photos(
    listed: Iterator[PlannedPhoto], sources: Sequence[Source], files: Sequence[PlanFile]
) -> Iterator[PlannedPhoto]:
    """The listed photos that are in no unit, by merging two sequences in the same order."""
    planned = _planned(sources, files)
    known = next(planned, None)
    for photo in listed:
        if known is None:
            yield photo
            continue
        order = _order(sources, photo)
        while known is not None and _order(sources, known) < order:
            _gone(sources, known)
            known = next(planned, None)
        if known is None or _order(sources, known) > order:
            yield photo
            continue
        if known != photo:  # rows of a list: all compare equal, so they must match one by one
            raise WrongCallError(
                f"the list {sources[photo.root].location} has changed: expected {known.source}, "
                f"found {photo.source}; "
                "keep its rows and add new ones at the end, or choose another dataset"
            )
        known = next(planned, None)
    while known is not None:
        _gone(sources, known)
        known = next(planned, None)


def _gone(sources: Sequence[Source], photo: PlannedPhoto) -> None:
    """Handle a planned photo that is no longer listed; its unit will refuse it by name.

    In a folder it was removed, or an earlier version took litter for photos: a unit that is done
    stays as it is either way.
    """
    source = sources[photo.root]
    if source.names_photos:
        raise WrongCallError(
            f"the list {source.location} has changed: {photo.source} is missing; "
            "keep its rows and add new ones at the end, or choose another dataset"
        )


def _planned(sources: Sequence[Source], files: Sequence[PlanFile]) -> Iterator[PlannedPhoto]:
    """All planned photos in listing order; holds one slice of each earlier call."""
    # Within a call, slices are in listing order. A later call starts over, with new photos only:
    # where the order steps back, the next call begins.
    calls: list[list[PlanFile]] = []
    last: _Order | None = None
    for file in files:
        opening = _order(sources, file.slice(file.first)[0])
        if last is None or opening < last:
            calls.append([])
        calls[-1].append(file)
        last = _order(sources, file.slice(file.first + len(file.photos) - 1)[-1])
    return heapq.merge(
        *(_of_call(call) for call in calls), key=lambda photo: _order(sources, photo)
    )


def _of_call(files: Sequence[PlanFile]) -> Iterator[PlannedPhoto]:
    for file in files:
        for number in range(len(file.photos)):
            yield from file.slice(file.first + number)


def _order(sources: Sequence[Source], photo: PlannedPhoto) -> _Order:
    """A key that sorts as ``list_photos`` lists; names in a list are equal and keep their order."""
    if sources[photo.root].names_photos:
        return photo.root, []
    return photo.root, photo.path.split(b"/")
