"""Which photos of a job need a picture, and what became of each."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2

from colorcore.dataset.unit import SourcePhoto
from colorcore.photos.read import read_photo
from colorcore.photos.refusal import PhotoRefused
from pipelines.album.finishing import (
    OUT_OF_MEMORY,
    PREVIEW_SIDE,
    Done,
    Target,
    out_of_memory,
    preview,
)
from pipelines.album.names import Names, files_of, relative, versions
from pipelines.album.painting import Work
from pipelines.album.settings import ColorizeReport, ColorizeSettings
from pipelines.errors import JobError
from pipelines.inference.outputs import FAILING_DISK, local_path, why_not_written
from pipelines.pages.before_after import BeforeAfterPage
from pipelines.sources.reading import read_photos
from pipelines.sources.source import PlannedPhoto, Source, Tally

if TYPE_CHECKING:
    from numpy.typing import NDArray

GIVE_UP_AFTER = 10
"""Pictures in a row that a full or broken disk does not take; colourizing the rest is in vain."""


class Item(NamedTuple):
    """A planned photo or tar.

    place   its name in messages
    target  its picture; None: it is a tar, whose photos get theirs when it is read
    """

    photo: PlannedPhoto
    place: str
    target: Path | None


class Works:
    """Finds what is to be done, and records what was done.

    before         pictures that were there before the job, if it began in another process: others
                   that are there now are its own; None: all that are there
    failed_writes  pictures in a row that a full or broken disk did not take
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tallies: Sequence[Tally] | Mapping[int, Tally],
        names: Names,
        settings: ColorizeSettings,
        report: ColorizeReport,
        before: frozenset[Path] | None = None,
    ) -> None:
        self.sources, self.tallies, self.names = sources, tallies, names
        self.settings, self.report, self._before = settings, report, before
        self.failed_writes = 0
        self.last_failure = ""

    def works(
        self,
        items: Iterable[Item],
        on_progress: Callable[[int], None] = lambda _: None,
        page: BeforeAfterPage | None = None,
    ) -> Iterator[Work]:
        """The photos that need a picture; the others are shown on the page."""
        for done, item in enumerate(items):
            on_progress(done)
            begun = False
            kept = len(self.report.kept)
            if self.is_done(item):
                if page is not None and len(self.report.kept) > kept:
                    self._show_kept(item, page)
            else:
                try:
                    for work in self._works_of(item):
                        begun = work.target.alone
                        yield work
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    self.report.refused[item.place] = OUT_OF_MEMORY
            if not begun:  # a photo on its way is left until it is recorded
                self.report.left -= 1

    def to_do(self, items: Iterable[Item]) -> Iterator[Item]:
        """The photos that need a picture, and the tars, unread."""
        for item in items:
            if self.is_done(item):
                self.report.left -= 1
            else:
                yield item

    def is_done(self, item: Item) -> bool:
        """Whether there is nothing to do; the report then has the reason. No tar is, unread."""
        return item.target is not None and self._is_done(
            item.place, versions(item.target, self.settings.samples)
        )

    def _works_of(self, item: Item) -> Iterator[Work]:
        photo, place, target = item
        times = self._times(photo) if target is not None else None
        for read in self._read(photo):
            if target is not None:
                yield from self._work(place, read, target, times, alone=True)
            elif member := read.source[len(photo.source) + 1 :]:
                inside = self.names.target(relative(self.sources[photo.root], photo), member)
                if not self._is_done(f"{place}#{member}", versions(inside, self.settings.samples)):
                    yield from self._work(f"{place}#{member}", read, inside, None)
            elif isinstance(read.content, PhotoRefused):  # the tar itself is damaged
                self.report.refused[place] = str(read.content)

    def _read(self, photo: PlannedPhoto) -> Iterator[SourcePhoto]:
        most, others = self.settings.limits.max_bytes, self.report.ignored
        return read_photos(self.sources, [photo], most, others, tallies=self.tallies)

    def _work(
        self,
        place: str,
        read: SourcePhoto,
        target: Path,
        times: tuple[int, int] | None,
        *,
        alone: bool = False,
    ) -> Iterator[Work]:
        if isinstance(read.content, PhotoRefused):
            self.report.refused[place] = str(read.content)
            return
        paths = versions(target, self.settings.samples)
        yield Work(place, read.content, Target(paths, self.settings.overwrite, times, alone))

    def _times(self, photo: PlannedPhoto) -> tuple[int, int] | None:
        path = local_path(self.sources, photo) if self.settings.keep_times else None
        if path is None:
            return None
        try:
            found = os.stat(path)  # noqa: PTH116 (bytes that are no text)
        except OSError:
            return None
        return found.st_atime_ns, found.st_mtime_ns

    def _is_done(self, place: str, targets: Sequence[Path]) -> bool:
        """Whether there is nothing to do, because files or a folder have the pictures' names."""
        for target in targets:
            if os.path.isdir(target):  # noqa: PTH112 (Path raises if a name is too long)
                error = IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                self.report.refused[place] = why_not_written(target, error)
                return True
        there = existing(targets)
        if self.settings.overwrite or len(there) < len(targets):
            return False
        for path in there:
            is_ours = self._before is not None and path not in self._before
            (self.report.written if is_ours else self.report.kept).append(path)
        return True

    def record(self, done: Done, page: BeforeAfterPage | None) -> None:
        """Report what became of a photo.

        Raises:
            JobError: the disk is full or broken.
            Exception: what was not expected.
        """
        if done.alone:
            self.report.left -= 1
        if done.unexpected is not None:
            raise done.unexpected
        self.report.written += done.written
        self.report.kept += done.kept
        if done.colored:
            self.report.colored.append(done.place)
        if done.refused:
            self.report.refused[done.place] = done.refused
        if done.error is not None:
            self.last_failure = done.refused
            self.failed_writes += done.error.errno in FAILING_DISK
        elif done.written:
            self.failed_writes = 0
        if page is not None and done.before is not None and done.after is not None:
            # Below --out: a page that is passed on should not tell where its maker keeps photos.
            self._show(page, done.written[0], done.before, done.after)
        if self.failed_writes >= GIVE_UP_AFTER:
            raise JobError(
                f"expected to write to {self.report.out}, the last {self.failed_writes} pictures "
                f"failed: {self.last_failure}"
            )

    def _show(
        self, page: BeforeAfterPage, picture: Path, before: NDArray[Any], after: NDArray[Any]
    ) -> None:
        if self.report.page_error:
            return
        try:
            page.add(str(picture.relative_to(self.report.out)), before, after)
        except OSError as error:  # the pictures are worth going on
            self.report.page_error = why_not_written(Path(self.settings.page or ""), error)

    def _show_kept(self, item: Item, page: BeforeAfterPage) -> None:
        """A photo whose picture is there, from an earlier call, on the page of this one."""
        if item.target is None or not self.report.kept:
            return
        picture = self.report.kept[-1]
        try:
            (read,) = self._read(item.photo)
            before, after = (
                preview(read_photo(data, limits=self.settings.limits, min_size=PREVIEW_SIDE).rgb)
                for data in (read.data(), picture.read_bytes())
            )
        except (PhotoRefused, OSError, ValueError):
            return
        size = before.shape[1], before.shape[0]
        self._show(page, picture, before, cv2.resize(after, size, interpolation=cv2.INTER_AREA))


def existing(targets: Iterable[Path]) -> list[Path]:
    """The files of pictures that are there, under their names or as PNGs to lose nothing."""
    return [path for target in targets if (path := _existing(target)) is not None]


def _existing(target: Path) -> Path | None:
    """The picture's file, under its name or as the PNG that it became to lose nothing."""
    return next((path for path in files_of(target) if os.path.lexists(path)), None)
