"""The Ray task of one unit: read its photos, write its files, move them into the dataset."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from colorcore.dataset.layout import ShardSettings, unit_name
from colorcore.dataset.unit import publish_unit, write_unit
from colorcore.storage.local import LocalStore
from colorcore.storage.locks import try_lock
from colorcore.storage.store import Store
from pipelines.sharding.plan_file import PlanFile
from pipelines.sharding.skipped import Skipped, TaskResult, write_unit_skipped
from pipelines.sources.reading import read_photos
from pipelines.sources.source import Source, Tally

TASK_RETRIES = 4
"""Retries of a task whose worker or node died, or whose storage failed."""
SCRATCH_AGE_S = 60.0
"""Age from which an unlocked scratch folder counts as left by a killed worker."""


def shard_unit(
    job: tuple[Store, Sequence[Source], ShardSettings], unit: int, plan: int
) -> tuple[TaskResult, float]:
    """Do one unit from start to end; return its result and the CPU seconds it took."""
    import cv2

    dataset, sources, settings = job
    cv2.setNumThreads(1)  # Ray runs one task per CPU; OpenCV's own threads would compete
    photos = PlanFile(dataset, plan).slice(unit)
    started = time.process_time()  # after the imports, which are no part of the throughput
    tallies: Skipped = {photo.root: Tally() for photo in photos}
    read = read_photos(sources, photos, settings.max_bytes, tallies=tallies)
    with _scratch(dataset, unit) as scratch:
        behind = isinstance(dataset, LocalStore) and dataset.sync
        result = write_unit(scratch, unit, read, settings, write_behind=behind)
        write_unit_skipped(scratch, dataset, unit, tallies)
        publish_unit(scratch, dataset, unit)
    done = TaskResult(unit, result.kept, result.refused, tallies)
    return done, time.process_time() - started


@contextmanager
def _scratch(dataset: Store, unit: int) -> Iterator[Path]:
    """A temporary folder for a unit's files; inside a local dataset, to move them by renaming.

    Each attempt gets a new name: a worker that Ray gave up on may still be writing to its own.
    The lock tells other tasks on this machine that the folder is in use.
    """
    if dataset.local is None:
        _sweep_temporary()
    prefix = f".unit-{unit_name(unit)}-"
    with (
        tempfile.TemporaryDirectory(
            prefix=prefix, dir=dataset.local, ignore_cleanup_errors=True
        ) as folder,
        try_lock(Path(folder)),
    ):
        yield Path(folder)


def _sweep_temporary() -> None:
    """Remove scratch folders that killed workers left on this machine (remote datasets only)."""
    for folder in Path(tempfile.gettempdir()).glob(".unit-*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < SCRATCH_AGE_S:
                continue  # perhaps just made, and about to be locked
            with try_lock(folder) as abandoned:
                if abandoned:
                    shutil.rmtree(folder)
