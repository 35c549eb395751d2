"""The job of `cc colorize`: photos in, colourized photos out; a bad file never stops it."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from colorcore.allocator import keep_freed_memory
from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.dataset.unit import SourcePhoto
from colorcore.inference.variations import variations
from colorcore.models.decoding import Decoding
from colorcore.photos.refusal import PhotoLimits, PhotoRefused
from colorcore.storage.location import open_store
from colorcore.storage.locks import claim
from pipelines.device import device_for, usable_cpus
from pipelines.errors import JobError, WrongCallError
from pipelines.inference.finishing import (
    LACKING,
    OUT_OF_MEMORY,
    Done,
    Finish,
    Target,
    out_of_memory,
)
from pipelines.inference.knobs import asked_decoding
from pipelines.inference.names import Names, relative, versions
from pipelines.inference.outputs import FAILING_DISK, OutFolder, local_path, why_not_written
from pipelines.inference.painting import Network, Painting, Work
from pipelines.pages.before_after import BeforeAfterPage, is_page
from pipelines.sources.listing import is_tar, list_photos
from pipelines.sources.lists import check_lists
from pipelines.sources.patterns import expand_globs
from pipelines.sources.reading import read_photos
from pipelines.sources.source import PlannedPhoto, Source, Tally, no_photos_in, open_sources
from pipelines.tracking.model import local_model

LIMITS = PhotoLimits(min_side=1, max_aspect=float("inf"))
"""Wider limits than for training: any readable photo can be colourized."""
BYTES_PER_PIXEL = 8
"""With higher limits on pixels, files may have as many bytes: 16 bits, four channels."""
GIVE_UP_AFTER = 10
"""Pictures in a row that a full or broken disk does not take; colourizing the rest is in vain."""


@dataclass(frozen=True, slots=True)
class ColorizeSettings:
    """How photos are colourized, and what is written.

    suffix       format of the pictures (".png"); None: that of each photo
    overwrite    replace existing pictures
    device       of the network; None: the best there is
    temperature, chroma  replace those of the checkpoint
    strength     share of the predicted colours, 0..1; the rest is the photo's own
    samples      number of versions of each photo, for models that predict bins
    force        colourize photos that have colours, too
    side_by_side write each photo and its picture next to each other
    page         HTML file that shows each photo before and after
    keep_times   give pictures the times of their photos, where these are local files
    max_pixels   of a photo; larger ones are refused
    threads      that decode, paint and encode; None: one per CPU
    """

    suffix: str | None = None
    overwrite: bool = False
    device: str | None = None
    temperature: float | None = None
    chroma: float | None = None
    strength: float = 1.0
    samples: int = 1
    force: bool = False
    side_by_side: bool = False
    page: Path | None = None
    keep_times: bool = False
    max_pixels: int = LIMITS.max_pixels
    threads: int | None = None

    @property
    def limits(self) -> PhotoLimits:
        """What is checked before a photo is decoded."""
        most = max(LIMITS.max_bytes, self.max_pixels * BYTES_PER_PIXEL)
        return replace(LIMITS, max_pixels=self.max_pixels, max_bytes=most)


@dataclass(slots=True)
class ColorizeReport:
    """Result of `cc colorize`.

    written   pictures written by this call
    kept      pictures that were there before it and were left as they are
    colored   photos that have colours already, and got no picture
    refused   photos without a picture, each with the reason and what to do
    ignored   number of files that are not photos, by kind (mostly the suffix)
    left      photos and tars that were not reached before the job ended early
    decoding  None until the first photo
    """

    out: Path
    decoding: Decoding | None = None
    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    colored: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    left: int = 0


def colorize_photos(
    model: str | Path,
    photos: Sequence[str],
    out: Path,
    settings: ColorizeSettings = ColorizeSettings(),
    *,
    report: ColorizeReport | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ColorizeReport:
    """Colourize photos and folders of photos at their own resolution and depth.

    A single photo becomes OUT/name.jpg; a folder keeps its tree below OUT; the photos of a tar
    become OUT/tar/name.jpg. A picture has the format of its photo, or PNG where no picture can be
    written so. Photos that differ only in their suffix keep it (``a.jpg.png``) where their pictures
    would have the same name, and pictures whose names differ only in case are numbered. An existing
    picture is kept unless ``overwrite`` is set; an original never is one of the files written.
    Holds the list of photos, which is fine up to 10⁶. ``report`` is filled while the job runs, for
    callers that want it although the job fails or is interrupted.

    Raises:
        CheckpointError: ``model`` is not a checkpoint.
        WrongCallError: a photo or folder is missing, ``out`` holds originals, or the model has no
            such setting.
        JobError: a source holds no photos, which is raised after the others are done; or the disk
            is full.
        StorageError: a store of photos does not answer.
        BusyError: another process writes to ``out``.
    """
    report = ColorizeReport(out) if report is None else report
    try:
        sources = open_sources(expand_globs(photos, out))
    except WrongCallError:
        load_checkpoint(local_model(model))  # if that is missing too, it is reported first
        raise
    folder = OutFolder(out, sources)
    check_lists(sources)
    tallies = [Tally() for _ in sources]
    planned = list(list_photos(sources, report.ignored, skip=open_store(out), tallies=tallies))
    places = [relative(sources[photo.root], photo) for photo in planned]
    names = Names(out, settings.suffix, places)
    targets = [
        None if is_tar(photo) else names.target(place, "")
        for photo, place in zip(planned, places, strict=True)
    ]
    tars = [
        str(names.folder(place))
        for photo, place in zip(planned, places, strict=True)
        if is_tar(photo)
    ]
    pictures = [
        str(path)
        for target in targets
        if target is not None
        for path in versions(target, settings.samples)
    ]
    folder.refuse_originals(planned, pictures, tars, overwrite=settings.overwrite)
    network = _network(model, settings)
    if not planned:
        _refuse_empty(sources, tallies)
    report.decoding = network.decoding
    keep_freed_memory()  # which each photo needs anew
    job = _Job(sources, tallies, names, settings, report)
    report.left = len(planned)
    with claim(open_store(out), "cc colorize"), _before_after(settings.page) as page:
        finish = Finish(settings.suffix, settings.strength, settings.side_by_side, page is not None)
        painting = Painting(
            network,
            settings.limits,
            finish,
            threads=settings.threads or usable_cpus(),
            force=settings.force,
        )
        works = job.works(planned, targets, lambda done: on_progress(done, len(planned)))
        painting.run(works, lambda done: job.record(done, page))
    on_progress(len(planned), len(planned))
    _refuse_empty(sources, tallies)
    return report


def _network(model: str | Path, settings: ColorizeSettings) -> Network:
    checkpoint = load_checkpoint(local_model(model))
    network = checkpoint.model(place := device_for(settings.device))
    decoding = asked_decoding(network, checkpoint.decoding, settings.temperature, settings.chroma)
    try:
        several = variations(network, settings.samples)
    except ValueError as error:
        raise WrongCallError(f"--samples: {error}") from error
    return Network(network, checkpoint.size, place, decoding, several)


def _before_after(path: Path | None) -> BeforeAfterPage | nullcontext[None]:
    """The page of the job.

    Raises:
        WrongCallError: there is another file.
    """
    if path is not None and path.exists() and not is_page(path):
        raise WrongCallError(
            f"expected a new file for --before-after, found {path}, which cc has not written; "
            "choose another name"
        )
    return nullcontext() if path is None else BeforeAfterPage(path)


def _refuse_empty(sources: Sequence[Source], tallies: Sequence[Tally]) -> None:
    if empty := no_photos_in(sources, tallies):
        more = f"; {len(empty) - 1:,} more sources have none" if len(empty) > 1 else ""
        raise JobError(f"{empty[0]}{more}; check the sources")


class _Job:
    """Finds what is to be done, and records what was done.

    failed_writes  pictures in a row that a full or broken disk did not take
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tallies: Sequence[Tally],
        names: Names,
        settings: ColorizeSettings,
        report: ColorizeReport,
    ) -> None:
        self._sources, self._tallies, self._names = sources, tallies, names
        self._settings, self._report = settings, report
        self.failed_writes = 0
        self.last_failure = ""

    def works(
        self,
        planned: Sequence[PlannedPhoto],
        targets: Sequence[Path | None],
        on_progress: Callable[[int], None],
    ) -> Iterator[Work]:
        """The photos that need a picture; a target of None is a tar, whose members get theirs."""
        for done, (photo, target) in enumerate(zip(planned, targets, strict=True)):
            on_progress(done)
            source = self._sources[photo.root]
            place = source.show(photo)
            begun = False
            if target is None or not self._is_done(place, versions(target, self._settings.samples)):
                try:
                    for work in self._works_of(photo, place, target):
                        begun = work.target.alone
                        yield work
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    self._report.refused[place] = OUT_OF_MEMORY
            if not begun:  # a photo on its way is left until it is recorded
                self._report.left -= 1

    def _works_of(self, photo: PlannedPhoto, place: str, target: Path | None) -> Iterator[Work]:
        times = self._times(photo) if target is not None else None
        for read in self._read(photo):
            if target is not None:
                yield from self._work(place, read, target, times, alone=True)
            elif member := read.source[len(photo.source) + 1 :]:
                inside = self._names.target(relative(self._sources[photo.root], photo), member)
                if not self._is_done(f"{place}#{member}", versions(inside, self._settings.samples)):
                    yield from self._work(f"{place}#{member}", read, inside, None)
            elif isinstance(read.content, PhotoRefused):  # the tar itself is damaged
                self._report.refused[place] = str(read.content)

    def _read(self, photo: PlannedPhoto) -> Iterator[SourcePhoto]:
        most, others = self._settings.limits.max_bytes, self._report.ignored
        return read_photos(self._sources, [photo], most, others, tallies=self._tallies)

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
            self._report.refused[place] = str(read.content)
            return
        paths = versions(target, self._settings.samples)
        yield Work(place, read.content, Target(paths, self._settings.overwrite, times, alone))

    def _times(self, photo: PlannedPhoto) -> tuple[int, int] | None:
        path = local_path(self._sources, photo) if self._settings.keep_times else None
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
                self._report.refused[place] = why_not_written(target, error)
                return True
        there = [path for target in targets if (path := _existing(target)) is not None]
        if self._settings.overwrite or len(there) < len(targets):
            return False
        self._report.kept += there
        return True

    def record(self, done: Done, page: BeforeAfterPage | None) -> None:
        """Report what became of a photo.

        Raises:
            JobError: the disk is full or broken.
            Exception: what was not expected.
        """
        if done.alone:
            self._report.left -= 1
        if done.unexpected is not None:
            raise done.unexpected
        self._report.written += done.written
        if done.colored:
            self._report.colored.append(done.place)
        if done.refused:
            self._report.refused[done.place] = done.refused
        if done.error is not None:
            self.last_failure = done.refused
            self.failed_writes += done.error.errno in FAILING_DISK
        elif done.written:
            self.failed_writes = 0
        if page is not None and done.before is not None and done.after is not None:
            # Below --out: a page that is passed on should not tell where its maker keeps photos.
            name = done.written[0].relative_to(self._report.out)
            page.add(str(name), done.before, done.after)
        if self.failed_writes >= GIVE_UP_AFTER:
            raise JobError(
                f"expected to write to {self._report.out}, the last {self.failed_writes} pictures "
                f"failed: {self.last_failure}"
            )


def _existing(target: Path) -> Path | None:
    """The picture's file, under its name or as the PNG that it became to lose nothing."""
    names = (target, target.with_suffix(".png")) if target.suffix in LACKING else (target,)
    return next((path for path in names if os.path.lexists(path)), None)


def colorize_photo(model: str | Path, photo: BinaryIO, settings: ColorizeSettings) -> bytes:
    """The picture of one photo, from its file's bytes to those of a picture.

    Raises:
        CheckpointError: ``model`` is not a checkpoint.
        WrongCallError: several versions, a page or times are asked for, of which a stream has none;
            or the model has no such setting.
        JobError: the photo cannot be read or encoded, or has colours already.
    """
    if settings.samples > 1 or settings.page is not None or settings.keep_times:
        raise WrongCallError(
            "expected one picture for standard output; --samples, --before-after and --keep-times "
            "need files: pass the photo's name"
        )
    data = photo.read(settings.limits.max_bytes + 1)
    network = _network(model, settings)
    finish = Finish(settings.suffix, settings.strength, settings.side_by_side, previews=False)
    painting = Painting(network, settings.limits, finish, threads=1, force=settings.force)
    outcomes: list[Done] = []
    painting.run([Work("standard input", data)], outcomes.append)
    (done,) = outcomes
    if done.unexpected is not None:
        raise done.unexpected
    if done.colored:
        raise JobError("expected a photo without colours, got one that has some; use --force")
    if done.refused:
        raise JobError(f"standard input: {done.refused}")
    return done.data
