"""The task of one unit: read its photos, write its files, publish them."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from colorcore.dataset.layout import (
    ShardSettings,
    UnitResult,
    unit_name,
)
from colorcore.dataset.unit import publish_unit, write_unit
from colorcore.storage.locks import try_lock
from colorcore.storage.store import Store
from pipelines.sharding.plan_file import PlanFile
from pipelines.sources.reading import read_photos
from pipelines.sources.source import Source

if TYPE_CHECKING:
    pass


TASK_RETRIES = 4
"""Times a unit's task is started again after its worker or node died, or its storage failed."""
SCRATCH_AGE_S = 60.0
"""A scratch folder that nobody holds and that is older was left by a worker that was killed."""


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
        try_lock(Path(folder)),
    ):
        yield Path(folder)


def _sweep_temporary() -> None:
    """Remove what killed workers left of units of remote datasets on this machine."""
    for folder in Path(tempfile.gettempdir()).glob(".unit-*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < SCRATCH_AGE_S:
                continue  # perhaps just made, and about to be locked
            with try_lock(folder) as abandoned:
                if abandoned:
                    shutil.rmtree(folder)
