"""The job of `cc shard`: folders of photos -> a dataset, one Ray task a unit.

The driver lists the photos and writes each unit's slice (``units/``), then keeps a constant
number of unit tasks in flight. A task reads its slice, writes the unit's files into a scratch
folder inside the dataset and renames them into place, the index last. Nothing else
coordinates: whatever is killed, the same command again does the units that have no index.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from colorcore.dataset import (
    DatasetInfo,
    PlannedPhoto,
    ShardSettings,
    UnitResult,
    find_duplicates,
    fingerprint,
    index_path,
    plan_path,
    planned_units,
    read_info,
    read_plan,
    read_result,
    unit_name,
    write_info,
    write_plan,
    write_table,
)
from colorcore.refusal import DAMAGED, Reason
from colorcore.unit import publish_unit, write_unit
from pipelines.cluster import ray_session
from pipelines.errors import JobError, WrongCallError
from pipelines.sources import check_sources, list_photos, local_path, read_source

UNITS_IN_FLIGHT_PER_CPU = 2
UNIT_RETRIES = 2


@dataclass(slots=True)
class ShardProgress:
    """Where a running job stands: photos listed, done and refused by reason."""

    photos: int = 0
    done: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What `cc shard` did.

    new_photos is 0 when the dataset was finished before; failed maps a unit to its error;
    worker_cpu_s is the CPU time of this call's unit tasks, imports aside.
    """

    dataset: Path
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
    sources: Sequence[str],
    dataset: str,
    settings: ShardSettings,
    *,
    address: str | None = None,
    on_progress: Callable[[ShardProgress], None] = lambda _: None,
) -> ShardReport:
    """Turn the photos under ``sources`` into the dataset ``dataset``; resumes what is there.

    Raises:
        WrongCallError: a source is missing, or the dataset was made with other settings.
        JobError: there are no photos, or another job is writing the dataset.
    """
    roots = check_sources(sources)
    target = local_path(dataset, "DATASET")
    target.mkdir(parents=True, exist_ok=True)
    with _only_writer(target):
        info = _begin(target, settings, tuple(sources))
        ignored: Counter[str] = Counter()
        progress = ShardProgress()
        _plan(target, roots, settings.photos_per_unit, ignored, progress, on_progress)
        units = planned_units(target)
        if not units:
            raise JobError(
                f"found no photos in {', '.join(sources)} ({sum(ignored.values())} other files); "
                "expected files such as .jpg, .png, .webp or .tif"
            )
        results = {unit: read_result(target, unit) for unit in units if _is_done(target, unit)}
        for result in results.values():
            _count(progress, result)
        to_do = [unit for unit in units if unit not in results]
        new_photos, cpu_s, failed = 0, 0.0, {}
        if to_do:
            on_progress(progress)
            with ray_session(address):
                for outcome in _run_units(target, roots, settings, to_do):
                    if isinstance(outcome.result, str):
                        failed[outcome.unit] = outcome.result
                        continue
                    results[outcome.unit] = outcome.result
                    new_photos += outcome.result.photos
                    cpu_s += outcome.cpu_s
                    _count(progress, outcome.result)
                    on_progress(progress)
        ordered = [results[unit] for unit in sorted(results)]
        finished = finish(target, info, ordered) if not failed else info
        duplicates = (finished.counts or {}).get("duplicates", 0)
        _sweep(target)
    return ShardReport(
        dataset=target,
        photos=progress.photos,
        kept=dict(sum((Counter(result.kept) for result in ordered), Counter())),
        refused=dict(progress.refused),
        duplicates=duplicates,
        ignored=dict(ignored),
        units=len(units),
        new_photos=new_photos,
        failed=failed,
        worker_cpu_s=cpu_s,
        fingerprint=finished.fingerprint,
    )


# -- before ------------------------------------------------------------------------------------


@contextmanager
def _only_writer(dataset: Path) -> Iterator[None]:
    """Hold the dataset's folder locked against a second job on this machine."""
    folder = os.open(dataset, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise JobError(
            f"another cc shard is writing {dataset}; wait for it or choose another folder"
        ) from error
    finally:
        os.close(folder)


def _begin(dataset: Path, settings: ShardSettings, sources: tuple[str, ...]) -> DatasetInfo:
    asked = DatasetInfo(settings=settings, sources=sources)
    if not (dataset / "dataset.json").exists():
        if any(dataset.iterdir()):
            raise WrongCallError(
                f"expected an empty or new folder or a dataset, found other files in {dataset}"
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
            f"{dataset} was made with other settings: {'; '.join(differences)}; "
            "repeat them or choose another folder"
        )
    return there


def _plan(
    dataset: Path,
    roots: Sequence[Path],
    photos_per_unit: int,
    ignored: Counter[str],
    progress: ShardProgress,
    on_progress: Callable[[ShardProgress], None],
) -> None:
    """Write the slices of all photos that no unit has yet.

    Holds the paths of all photos of earlier calls (about 1.5 GB at 10⁷ photos) and
    one slice of new ones.
    """
    units = planned_units(dataset)
    known: set[tuple[int, bytes]] = set()
    for unit in units:
        known.update((photo.root, photo.path) for photo in read_plan(dataset, unit))
    progress.photos = sum(pq.read_metadata(plan_path(dataset, u)).num_rows for u in units)
    next_unit = units[-1] + 1 if units else 0
    slice_: list[PlannedPhoto] = []

    def flush() -> None:
        nonlocal next_unit
        if slice_:
            write_plan(dataset, next_unit, slice_)
            next_unit += 1
            progress.photos += len(slice_)
            slice_.clear()
            on_progress(progress)

    for photo in list_photos(roots, ignored, skip=dataset):
        if (photo.root, photo.path) in known:
            continue
        slice_.append(photo)
        if len(slice_) == photos_per_unit:
            flush()
    flush()


def _is_done(dataset: Path, unit: int) -> bool:
    return index_path(dataset, unit).exists()


def _count(progress: ShardProgress, result: UnitResult) -> None:
    progress.done += result.photos
    progress.refused.update(result.refused)


# -- the units ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A unit's result, or the one-line error of its last try; CPU seconds of the task."""

    unit: int
    result: UnitResult | str
    cpu_s: float


def _run_units(
    dataset: Path, roots: Sequence[Path], settings: ShardSettings, units: Sequence[int]
) -> Iterator[_Outcome]:
    """Run unit tasks with a constant number in flight; yields outcomes as they come."""
    import ray

    options: Any = {"num_cpus": 1, "max_retries": UNIT_RETRIES, "retry_exceptions": [OSError]}
    task = ray.remote(**options)(shard_unit)
    window = UNITS_IN_FLIGHT_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = deque(units)
    dataset, roots = dataset.absolute(), [root.absolute() for root in roots]
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < window:
            unit = waiting.popleft()
            running[task.remote(dataset, roots, settings, unit)] = unit
        ready, _ = ray.wait(list(running), num_returns=1)
        unit = running.pop(ready[0])
        try:
            result, cpu_s = ray.get(ready[0])
            yield _Outcome(unit, result, cpu_s)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            yield _Outcome(unit, f"{type(cause).__name__}: {str(cause).splitlines()[0]}", 0.0)


def shard_unit(
    dataset: Path, roots: Sequence[Path], settings: ShardSettings, unit: int
) -> tuple[UnitResult, float]:
    """Do one unit, start to end: the Ray task, and a plain function. Returns CPU seconds too."""
    import cv2

    cv2.setNumThreads(1)
    photos = read_plan(dataset, unit)
    started = time.process_time()  # from here on, nothing is imported any more
    scratch = dataset / f".unit-{unit_name(unit)}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        result = write_unit(
            scratch,
            unit,
            photos,
            lambda photo: read_source(roots, photo, settings.max_bytes),
            settings,
        )
        publish_unit(scratch, dataset, unit)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return result, time.process_time() - started


# -- after -------------------------------------------------------------------------------------


def finish(dataset: Path, info: DatasetInfo, results: Sequence[UnitResult]) -> DatasetInfo:
    """Find copies across units and write the finished ``dataset.json``."""
    identity = fingerprint(info.settings, results)
    if info.fingerprint == identity and (dataset / "duplicates.parquet").exists():
        return info
    duplicates = find_duplicates(dataset)
    write_table(dataset / "duplicates.parquet", duplicates)
    refused = sum((Counter(result.refused) for result in results), Counter[str]())
    kept = sum((Counter(result.kept) for result in results), Counter[str]())
    finished = info.model_copy(
        update={
            "counts": {
                "photos": sum(result.photos for result in results),
                "train": kept["train"],
                "val": kept["val"],
                "duplicates": duplicates.num_rows,
                "units": len(results),
            },
            "refused": {r.value: refused[r.value] for r in Reason if refused[r.value]},
            "fingerprint": identity,
        }
    )
    write_info(dataset, finished)
    return finished


def _sweep(dataset: Path) -> None:
    """Remove what a killed call left behind; no unit is running any more."""
    for scratch in dataset.glob(".unit-*"):
        shutil.rmtree(scratch, ignore_errors=True)
    for part in dataset.rglob(".*.part"):
        part.unlink(missing_ok=True)
