"""Complete a dataset from its units' files: totals, and copies of photos across units.

Few units are read by the driver. Many are summed up by Ray tasks of ``GROUP_UNITS`` units each,
which also cut the photos' hashes by prefix into pieces. One task per piece then finds the copies
in it, so no process ever holds all hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from colorcore.dataset.layout import DatasetInfo, done_units
from colorcore.dataset.merge import Summary, find_copies, summarise, write_finished
from colorcore.storage.store import Store
from pipelines.sharding.skipped import (
    Skipped,
    add,
    sum_of_units,
    units_with_skipped,
    write_total,
)
from pipelines.sharding.task import TASK_RETRIES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNITS_IN_FLIGHT_PER_CPU = 2
"""One unit runs while the next one waits in Ray's queue, so that no CPU idles in between."""
GROUP_UNITS = 1000
"""Units that one task sums up."""
PIECE_SAMPLES = 5_000_000
"""Samples whose hashes one task compares (28 bytes each)."""


def units_in_flight() -> int:
    """Number of tasks to keep in flight on the connected Ray."""
    import ray

    return UNITS_IN_FLIGHT_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))


def merge_units(
    dataset: Store, info: DatasetInfo, *, connect: Callable[[], object] | None = None
) -> DatasetInfo:
    """Add up the units' files, find copies across units and complete ``dataset.json``.

    ``connect`` reaches Ray; without it, or for few units, this process does all of it.
    """
    # From the files, not from the driver's memory: units of earlier calls count as well.
    units = done_units(dataset)
    groups = [units[start : start + GROUP_UNITS] for start in range(0, len(units), GROUP_UNITS)]
    total, skipped = Summary(), Skipped()
    recorded = units_with_skipped(dataset)
    if connect is None or len(groups) <= 1:
        hashes = []
        for group in groups:
            (summary, record), *found = _summary_and_pieces(dataset, group, recorded, 1)
            total.add(summary)
            add(skipped, record)
            hashes += found
        copies = find_copies(hashes)
    else:
        connect()
        # An upper bound is enough to choose the number of pieces.
        samples = len(units) * info.settings.photos_per_unit
        pieces = 1 + samples // PIECE_SAMPLES
        copies = _merge_in_tasks(dataset, groups, recorded, pieces, total, skipped)
    write_total(dataset, skipped)
    return write_finished(dataset, info, total, copies)


def _merge_in_tasks(
    dataset: Store,
    groups: Sequence[Sequence[int]],
    recorded: frozenset[int],
    pieces: int,
    total: Summary,
    skipped: Skipped,
) -> NDArray[np.void]:
    """Add up groups of units in place, then find copies piece by piece, all in tasks."""
    import numpy as np
    import ray

    reduced = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(_copies_of_piece)
    parts: list[list[Any]] = [[] for _ in range(pieces)]
    for (summary, record), hashes in _in_order(_summary_tasks(dataset, groups, recorded, pieces)):
        total.add(summary)
        add(skipped, record)
        for part, reference in zip(parts, hashes, strict=True):
            part.append(reference)
    found = [reduced.remote(*part) for part in parts]
    parts.clear()  # Ray keeps a task's result as long as the driver holds a reference to it
    return np.concatenate([task_result(reference) for reference in found])


def _summary_tasks(
    dataset: Store, groups: Sequence[Sequence[int]], recorded: frozenset[int], pieces: int
) -> Iterator[tuple[Any, list[Any]]]:
    """Start one task per group; yield references to its summary and to its hashes by piece."""
    import ray

    # A return value per piece: the hashes then go from task to task, never through the driver.
    options: Any = {"num_cpus": 1, "num_returns": 1 + pieces, "max_retries": TASK_RETRIES}
    task: Any = ray.remote(**options)(_summary_and_pieces)
    for group in groups:
        summary, *hashes = task.remote(dataset, group, recorded & {*group}, pieces)
        yield summary, hashes


def _in_order(
    tasks: Iterator[tuple[Any, list[Any]]],
) -> Iterator[tuple[tuple[Summary, Skipped], list[Any]]]:
    """The summaries in order of units, with a constant number of tasks in flight.

    In order, because the dataset's files must not depend on which task ends first.
    """
    # islice starts the tasks, as the generator creates each one when it is asked for it.
    running = list(islice(tasks, units_in_flight()))
    while running:
        summary, hashes = running.pop(0)
        yield task_result(summary), hashes
        running += islice(tasks, 1)


def task_result(reference: Any) -> Any:
    """A task's result; or raise its own error, without Ray's traceback in the message."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _summary_and_pieces(
    dataset: Store, units: Sequence[int], recorded: frozenset[int], pieces: int
) -> tuple[Any, ...]:
    summary, hashes = summarise(dataset, units, pieces)
    skipped = sum_of_units(dataset, [unit for unit in units if unit in recorded])
    return (summary, skipped), *hashes


def _copies_of_piece(*hashes: NDArray[np.void]) -> NDArray[np.void]:
    return find_copies(hashes)
