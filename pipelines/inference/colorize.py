"""The job of `cc colorize`: photos in, colourized photos out; a bad file never stops it."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.dataset.unit import SourcePhoto
from colorcore.inference.colorize import colorize
from colorcore.models.decoding import Decoding
from colorcore.photos.read import read_photo
from colorcore.photos.refusal import PhotoLimits, PhotoRefused
from colorcore.photos.write import (
    COLORIZED,
    EncoderLimitError,
    check_encodable,
    save_picture,
)
from colorcore.storage.location import open_store
from colorcore.storage.locks import claim
from pipelines.device import best_device
from pipelines.errors import JobError, WrongCallError
from pipelines.inference.knobs import asked_decoding
from pipelines.inference.outputs import (
    FAILING_DISK,
    OutFolder,
    why_not_written,
)
from pipelines.sources.listing import is_tar, list_photos
from pipelines.sources.lists import check_lists
from pipelines.sources.reading import read_photos
from pipelines.sources.source import PlannedPhoto, Source, Tally, no_photos_in, open_sources
from pipelines.tracking.model import local_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LIMITS = PhotoLimits(min_side=1, max_aspect=float("inf"))
"""Wider limits than for training: any readable photo can be colourized."""
NAME_BYTES = 200
"""Longer names, which members of tars may have, are cut; file systems allow 255 bytes."""
GIVE_UP_AFTER = 10
"""Pictures in a row that a full or broken disk does not take; colourizing the rest is in vain."""
_OUT_OF_MEMORY = re.compile(
    "out of memory|(can't|cannot) allocate memory|not enough memory|insufficient memory"
    "|failed to allocate",
    re.IGNORECASE,
)


@dataclass(slots=True)
class ColorizeReport:
    """Result of `cc colorize`.

    written   pictures written by this call
    kept      pictures that were there before it and were left as they are
    refused   photos without a picture, each with the reason and what to do
    ignored   number of files that are not photos, by kind (mostly the suffix)
    left      photos and tars that were not reached before the job ended early
    decoding  None until the first photo
    """

    out: Path
    decoding: Decoding | None = None
    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    left: int = 0


def colorize_photos(
    model: str | Path,
    photos: Sequence[str],
    out: Path,
    *,
    suffix: str = ".png",
    overwrite: bool = False,
    device: str | None = None,
    temperature: float | None = None,
    chroma: float | None = None,
    report: ColorizeReport | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ColorizeReport:
    """Colourize photos and folders of photos at their own resolution.

    A single photo becomes OUT/name.png; a folder keeps its tree below OUT; the photos of a tar
    become OUT/tar/name.png. Photos that differ only in their suffix keep it (``a.jpg.png``), and
    pictures whose names differ only in case are numbered. An existing picture is kept unless
    ``overwrite`` is set; an original never is one of the files written.
    Holds the list of photos, which is fine up to 10⁶. ``temperature`` and ``chroma`` replace
    those of the checkpoint. ``report`` is filled while the job runs, for callers that want it
    although the job fails or is interrupted.

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
        sources = open_sources(photos)
    except WrongCallError:
        load_checkpoint(local_model(model))  # if that is missing too, it is reported first
        raise
    folder = OutFolder(out, sources)
    check_lists(sources)
    tallies = [Tally() for _ in sources]
    planned = list(list_photos(sources, report.ignored, skip=open_store(out), tallies=tallies))
    names = _Names(out, suffix, (_relative(sources[photo.root], photo) for photo in planned))
    targets = [
        "" if is_tar(photo) else str(names.target(_relative(sources[photo.root], photo), ""))
        for photo in planned
    ]
    tars = [names.folder(_relative(sources[p.root], p)) for p in planned if is_tar(p)]
    folder.refuse_originals(planned, filter(None, targets), map(str, tars), overwrite=overwrite)
    checkpoint = load_checkpoint(local_model(model))
    network = checkpoint.model(place := device or best_device())
    decoding = asked_decoding(network, checkpoint.decoding, temperature, chroma)
    if not planned:
        _refuse_empty(sources, tallies)
    report.decoding = decoding

    def paint(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        made = colorize(network, rgb, size=checkpoint.size, device=place, decoding=decoding)
        return made.astype(np.uint8, copy=False)

    job = _Job(sources, tallies, names, paint, suffix, report, overwrite=overwrite)
    report.left = len(planned)
    with claim(open_store(out), "cc colorize"):
        for done, (photo, target) in enumerate(zip(planned, targets, strict=True)):
            on_progress(done, len(planned))
            job.colorize(photo, Path(target) if target else None)
            report.left -= 1
            if job.failed_writes >= GIVE_UP_AFTER:
                raise JobError(
                    f"expected to write to {out}, the last {job.failed_writes} pictures failed: "
                    f"{job.last_failure}"
                )
    on_progress(len(planned), len(planned))
    _refuse_empty(sources, tallies)
    return report


def _refuse_empty(sources: Sequence[Source], tallies: Sequence[Tally]) -> None:
    if empty := no_photos_in(sources, tallies):
        more = f"; {len(empty) - 1:,} more sources have none" if len(empty) > 1 else ""
        raise JobError(f"{empty[0]}{more}; check the sources")


class _Job:
    """Colourizes photos one by one; what is wrong with one is that one's refusal.

    failed_writes  pictures in a row that a full or broken disk did not take
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tallies: Sequence[Tally],
        names: _Names,
        paint: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
        suffix: str,
        report: ColorizeReport,
        *,
        overwrite: bool,
    ) -> None:
        self._sources, self._tallies, self._names, self._paint = sources, tallies, names, paint
        self._suffix, self._report, self._overwrite = suffix, report, overwrite
        self.failed_writes = 0
        self.last_failure = ""

    def colorize(self, photo: PlannedPhoto, target: Path | None) -> None:
        """Write a photo's picture; ``target`` is None for a tar, whose members get their own."""
        source = self._sources[photo.root]
        place = source.show(photo)
        if target is not None and self._there(place, target):
            return
        try:
            for read in self._read(photo):
                if target is not None:
                    self._one(place, read, target)
                elif member := read.source[len(photo.source) + 1 :]:
                    picture = self._names.target(_relative(source, photo), member)
                    if not self._there(f"{place}#{member}", picture):
                        self._one(f"{place}#{member}", read, picture)
                elif isinstance(read.content, PhotoRefused):  # the tar itself is damaged
                    self._report.refused[place] = str(read.content)
        except Exception as error:
            self._refuse_out_of_memory(place, error)

    def _read(self, photo: PlannedPhoto) -> Iterator[SourcePhoto]:
        others = self._report.ignored
        return read_photos(self._sources, [photo], LIMITS.max_bytes, others, tallies=self._tallies)

    def _there(self, place: str, target: Path) -> bool:
        """Whether there is nothing to do, because a file or folder has the picture's name."""
        if os.path.isdir(target):  # noqa: PTH112 (Path raises if a name is too long)
            error = IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._report.refused[place] = why_not_written(target, error)
        elif not self._overwrite and os.path.lexists(target):
            self._report.kept.append(target)
        else:
            return False
        return True

    def _one(self, place: str, photo: SourcePhoto, target: Path) -> None:
        refused = self._report.refused
        try:
            rgb = read_photo(photo.data(), limits=LIMITS).rgb
            check_encodable(self._suffix, *rgb.shape[:2])
            save_picture(target, self._paint(rgb), software=COLORIZED)
        except PhotoRefused as error:
            refused[place] = str(error)
        except EncoderLimitError as error:
            refused[place] = f"{error}; use --format png"
        except OSError as error:
            refused[place] = self.last_failure = why_not_written(target, error)
            self.failed_writes += error.errno in FAILING_DISK
        except Exception as error:
            self._refuse_out_of_memory(place, error)
        else:
            self._report.written.append(target)
            self.failed_writes = 0

    def _refuse_out_of_memory(self, place: str, error: Exception) -> None:
        """Refuse a photo for which Python, torch or OpenCV had too little memory."""
        if not (isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error))):
            raise error
        self._report.refused[place] = (
            "expected a photo that fits into memory, ran out of memory; free some, use "
            "--device cpu, or pass a smaller copy"
        )


def _relative(source: Source, photo: PlannedPhoto) -> Path:
    """Where a photo's picture belongs below OUT: its path in its folder, otherwise its name."""
    path = Path(photo.source)
    inside = source.kind == "folder" or not ("://" in photo.source or path.is_absolute())
    relative = path if inside and ".." not in path.parts else Path(path.name)
    return (
        relative if relative.name.strip(".") else Path("photo")
    )  # a list's row may be "/" or ".."


def _stem(path: Path) -> Path:
    """The path without its suffix, unless only dots would be left."""
    stem = path.with_suffix("")
    return stem if stem.name.strip(".") else path


class _Names:
    """Chooses a different path for each picture, also where case does not count in names."""

    def __init__(self, out: Path, suffix: str, relative: Iterable[Path]) -> None:
        self._out, self._suffix = out, suffix
        self._alike = Counter(str(_stem(path)) for path in relative)
        self._given: set[str] = set()

    def target(self, relative: Path, member: str) -> Path:
        """The picture's path; ``member`` is the photo's name inside the tar ``relative``."""
        stem = self._own_stem(relative)
        if member:
            stem /= _stem(Path(member)).name
        short = stem.name.encode("utf-8", "surrogateescape")[:NAME_BYTES]
        stem = stem.with_name(short.decode("utf-8", "ignore"))
        name = f"{stem}{self._suffix}"
        number = 2
        while (folded := unicodedata.normalize("NFC", name).casefold()) in self._given:
            name = f"{stem}-{number}{self._suffix}"
            number += 1
        self._given.add(folded)
        return self._out / name

    def folder(self, tar: Path) -> Path:
        """The folder of the pictures of a tar."""
        return self._out / self._own_stem(tar)

    def _own_stem(self, relative: Path) -> Path:
        stem = _stem(relative)
        return stem if self._alike[str(stem)] < 2 else relative
