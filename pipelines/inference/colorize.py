"""The job of `cc colorize`: photos in, colourized photos out; a bad file never stops it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.inference.colorize import colorize
from colorcore.models.decoding import Decoding
from colorcore.photos.read import read_photo
from colorcore.photos.refusal import PhotoLimits, PhotoRefused
from colorcore.photos.write import save_picture
from colorcore.storage.location import open_store
from pipelines.device import best_device
from pipelines.errors import JobError
from pipelines.inference.knobs import asked_decoding
from pipelines.sources.listing import is_tar, list_photos
from pipelines.sources.reading import read_photos
from pipelines.sources.source import PlannedPhoto, Source, open_sources
from pipelines.tracking.model import local_model

LIMITS = PhotoLimits(min_side=1, max_aspect=float("inf"))
"""Wider limits than for training: any readable photo can be colourized."""
NAME_BYTES = 200
"""Longer names, which members of tars may have, are cut; file systems allow 255 bytes."""


@dataclass(slots=True)
class ColorizeReport:
    """Result of `cc colorize`: the pictures written, and the refused photos with their reasons."""

    out: Path
    decoding: Decoding
    written: list[Path] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def colorize_photos(
    model: str | Path,
    photos: Sequence[str],
    out: Path,
    *,
    suffix: str = ".png",
    device: str | None = None,
    temperature: float | None = None,
    chroma: float | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ColorizeReport:
    """Colourize photos and folders of photos at their own resolution.

    A single photo becomes OUT/name.png; a folder keeps its tree below OUT; the photos of a tar
    become OUT/tar/name.png. Photos that differ only in their suffix keep it (``a.jpg.png``).
    Holds the list of photos, which is fine up to 10⁶. ``temperature`` and ``chroma`` replace
    those of the checkpoint.

    Raises:
        CheckpointError: ``model`` is not a checkpoint.
        WrongCallError: a photo or folder is missing, or the model has no such setting.
        JobError: there are no photos.
    """
    checkpoint = load_checkpoint(local_model(model))
    network = checkpoint.model(place := device or best_device())
    decoding = asked_decoding(network, checkpoint.decoding, temperature, chroma)
    sources = open_sources(photos)
    planned = list(list_photos(sources, Counter(), skip=open_store(out)))
    if not planned:
        raise JobError(f"expected photos, found none in {', '.join(photos)}; check the paths")
    names = _Names(out, suffix, [_relative(sources[photo.root], photo) for photo in planned])
    report = ColorizeReport(out, decoding)
    for done, photo in enumerate(planned):
        on_progress(done, len(planned))
        source = sources[photo.root]
        for read in read_photos(sources, [photo], LIMITS.max_bytes):
            member = read.source[len(photo.source) + 1 :] if is_tar(photo) else ""
            try:
                rgb = read_photo(read.data(), limits=LIMITS).rgb
            except PhotoRefused as error:
                place_of = source.show(photo) + (f"#{member}" if member else "")
                report.refused[place_of] = str(error)
                continue
            target = names.target(_relative(source, photo), member)
            picture = colorize(network, rgb, size=checkpoint.size, device=place, decoding=decoding)
            try:
                save_picture(target, picture)
            except (FileExistsError, IsADirectoryError, NotADirectoryError):
                # For instance, x.jpg next to a folder x.png/ of photos.
                report.refused[source.show(photo)] = (
                    f"cannot write {target}: another photo's picture or folder has that name"
                )
                continue
            report.written.append(target)
    on_progress(len(planned), len(planned))
    return report


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
    """Chooses a different path for each picture."""

    def __init__(self, out: Path, suffix: str, relative: Sequence[Path]) -> None:
        self._out, self._suffix = out, suffix
        self._alike = Counter(map(_stem, relative))
        self._given: set[Path] = set()

    def target(self, relative: Path, member: str) -> Path:
        """The picture's path; ``member`` is the photo's name inside the tar ``relative``."""
        stem = _stem(relative) if self._alike[_stem(relative)] < 2 else relative
        if member:
            stem /= _stem(Path(member)).name
        short = stem.name.encode("utf-8", "surrogateescape")[:NAME_BYTES]
        stem = stem.with_name(short.decode("utf-8", "ignore"))
        target = self._out / f"{stem}{self._suffix}"
        number = 2
        while target in self._given:
            target = self._out / f"{stem}-{number}{self._suffix}"
            number += 1
        self._given.add(target)
        return target
