"""A slice of a job's photos, and the Ray task that colourizes it.

A slice that is done again, because its process died, keeps the pictures that are there. Those that
were not there before the job are reported as written, so a result counts every picture once.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.colorizing.colorizer import BATCH
from colorcore.storage.locks import WRITER
from pipelines.album.finishing import Finish
from pipelines.album.names import Names, relative, versions
from pipelines.album.painting import Painting
from pipelines.album.settings import ColorizeReport, ColorizeSettings
from pipelines.album.works import Item, Works, existing
from pipelines.errors import JobError
from pipelines.sources.source import Source, Tally

if TYPE_CHECKING:
    from colorcore.colorizing.colorizer import Colorizer

STOP = ".stop"
"""File in ``out`` that asks all tasks to end after the photos in their hands."""
SLICE = 8 * BATCH
"""Photos of a slice at most: minutes of one CPU, so little is lost with a process."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Photos for one task, or tars whose pictures go into the same folder.

    order   where its results belong among those of the other slices
    names   give the members of its tars their paths
    before  pictures of these photos that were there before the job
    folder  that of the tars' pictures; None: there are no tars
    """

    order: tuple[int, ...]
    items: tuple[Item, ...]
    names: Names
    before: frozenset[Path]
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Fixed:
    """What all tasks of a job share.

    colorizer  Ray's reference to it, in a tuple so that Ray leaves it to the task to fetch
    threads    of a task, and its CPUs
    driver     the process that claimed ``out``
    """

    colorizer: tuple[Any]
    device: str
    sources: Sequence[Source]
    settings: ColorizeSettings
    out: Path
    threads: int
    driver: tuple[str, int]


@dataclass(frozen=True, slots=True)
class SliceResult:
    """What became of a slice.

    tallies        what its sources held, by their number
    failed_writes  pictures in a row, up to its last one, that a full or broken disk did not take
    """

    report: ColorizeReport
    tallies: dict[int, Tally]
    failed_writes: int
    last_failure: str


def here() -> tuple[str, int]:
    """This process, as its claim of an output names it."""
    return socket.gethostname(), os.getpid()


# -- in the driver ---------------------------------------------------------------------------------


def slice_size(photos: int, tasks: int) -> int:
    """How many photos a task gets: few enough that each place for a task has several.

    Whole batches, so that photos share them as in one process, and colours come out the same.
    """
    share = photos // (4 * tasks)
    return min(SLICE, max(BATCH, share - share % BATCH))


def cut(items: Iterator[Item], size: int, tars: Iterable[Item], works: Works) -> Iterator[Slice]:
    """Cut photos into slices of ``size``; tars of one folder are a slice of their own.

    tars  those among the items
    """
    names = works.names
    groups: dict[str, list[Item]] = {}
    for tar in tars:
        groups.setdefault(names.key(_below(works, tar)), []).append(tar)
    inside = names.of_tars(_below(works, tar) for group in groups.values() for tar in group)
    waiting: list[Item] = []
    number = 0
    for item in items:
        if item.target is not None:
            waiting.append(item)
            if len(waiting) == size:
                yield _of_photos(number, waiting, works)
                number, waiting = number + 1, []
        elif group := groups.pop(key := names.key(_below(works, item)), None):
            folder = names.folder(_below(works, item))
            yield Slice((number,), tuple(group), inside[key], frozenset(_files_in(folder)), folder)
            number += 1
    if waiting:
        yield _of_photos(number, waiting, works)


def _below(works: Works, item: Item) -> Path:
    return relative(works.sources[item.photo.root], item.photo)


def _of_photos(number: int, items: Sequence[Item], works: Works) -> Slice:
    there = frozenset(
        path
        for item in items
        if item.target is not None
        for path in existing(versions(item.target, works.settings.samples))
    )
    return Slice((number,), tuple(items), works.names.empty(), there)


def pictures_of(part: Slice, settings: ColorizeSettings) -> tuple[list[Path], list[Item]]:
    """What there is of a slice that did not end: its new pictures, and the photos without theirs.

    With ``overwrite`` nobody can tell new pictures from old ones, so all photos count as left.
    """
    if settings.overwrite:
        return [], list(part.items)
    found: list[Path] = []
    left: list[Item] = []
    for item in part.items:
        paths = () if item.target is None else versions(item.target, settings.samples)
        there = existing(paths)
        found += [path for path in there if path not in part.before]
        if len(there) < len(paths) or item.target is None:
            left.append(item)
    if part.folder is not None:
        found += [
            path
            for path in _files_in(part.folder)
            if path not in part.before and not part.names.is_given(path)
        ]
    return found, left


def _files_in(folder: Path) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder) if name[:1] != ".")  # noqa: PTH208
    except OSError:
        return []


# -- in a task -------------------------------------------------------------------------------------

_colorizers: dict[str, Colorizer] = {}
"""The colorizer of the job that this process works for, by its reference."""


def colorize_slice(fixed: Fixed, part: Slice) -> SliceResult:
    """Colourize the photos of a slice; once :data:`STOP` is there, those begun until then.

    Raises:
        JobError: this node has another folder at the path of ``out``, or none.
        StorageError: a store of photos does not answer.
        Exception: what was not expected.
    """
    import cv2

    cv2.setNumThreads(1)  # one thread of the pool per CPU of the task: OpenCV's would compete
    colorizer = _colorizer(fixed)
    report = ColorizeReport(fixed.out, left=len(part.items))
    tallies = {item.photo.root: Tally() for item in part.items}
    settings = fixed.settings
    works = Works(fixed.sources, tallies, part.names, settings, report, part.before)
    # A process that Ray has given up on may still be writing the same picture.
    writer = secrets.token_hex(4)
    finish = Finish(settings.suffix, settings.strength, settings.side_by_side, False, writer)
    painting = Painting(
        colorizer, settings.limits, finish, threads=fixed.threads, force=settings.force
    )
    stop = fixed.out / STOP
    begun = takewhile(lambda _: not stop.exists(), works.works(part.items))
    try:
        painting.run(begun, lambda done: works.record(done, None))
    except JobError:  # the disk is full: the driver sees that, and has the report
        if not works.failed_writes:
            raise
    return SliceResult(report, tallies, works.failed_writes, works.last_failure)


def _colorizer(fixed: Fixed) -> Colorizer:
    """The job's colorizer, fetched once per process."""
    import ray

    from colorcore.allocator import keep_freed_memory

    key = fixed.colorizer[0].hex()
    if key not in _colorizers:
        _check_shared(fixed)
        keep_freed_memory()
        _colorizers.clear()
        colorizer: Colorizer = ray.get(fixed.colorizer[0])
        _colorizers[key] = colorizer.use_threads(fixed.threads).to(fixed.device)
    return _colorizers[key]


def _check_shared(fixed: Fixed) -> None:
    """Refuse to write where the driver does not see it: it has claimed the folder by a file there.

    Raises:
        JobError: that file is not there.
    """
    try:
        found = json.loads((fixed.out / WRITER).read_bytes())
        writer = found["host"], found["pid"]
    except (OSError, ValueError, LookupError):
        writer = None
    if writer != fixed.driver:
        raise JobError(
            f"expected --out on a file system that all nodes mount, found another {fixed.out} on "
            f"{socket.gethostname()}; choose a folder that they share"
        )
