"""The job of `cc colorize`: photos in, colourized photos out, one bad file never stops it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colorcore.checkpoint import load_checkpoint
from colorcore.colorize import colorize
from colorcore.photo import read_photo
from colorcore.pictures import save_picture
from colorcore.refusal import PhotoLimits, PhotoRefused
from pipelines.device import best_device
from pipelines.errors import JobError
from pipelines.sources import check_sources, list_photos, read_source

LIMITS = PhotoLimits(min_side=1, max_aspect=float("inf"))
"""A photo need not be fit for training to be colourized."""


@dataclass(slots=True)
class ColorizeReport:
    """What `cc colorize` did: pictures written, and photos refused with their reason."""

    out: Path
    written: list[Path] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def colorize_photos(
    model: Path,
    photos: Sequence[str],
    out: Path,
    *,
    suffix: str = ".png",
    device: str | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ColorizeReport:
    """Colourize photos and folders of photos at their own resolution.

    A photo given by itself becomes OUT/name.png; a folder keeps its tree below OUT. Two photos
    that differ only in their suffix keep it (``a.jpg.png``). Holds the list of photos: fine up
    to 10⁶.

    Raises:
        CheckpointError: ``model`` is no checkpoint.
        WrongCallError: a photo or folder is missing.
        JobError: there are no photos.
    """
    checkpoint = load_checkpoint(model)
    roots = check_sources(photos)
    planned = list(list_photos(roots, Counter(), skip=out if out.is_dir() else None))
    if not planned:
        raise JobError(f"found no photos in {', '.join(photos)}")
    relative = [
        Path(photo.source) if photo.path else Path(roots[photo.root].name) for photo in planned
    ]
    taken = Counter(path.with_suffix("") for path in relative)
    network = checkpoint.model(place := device or best_device())
    report = ColorizeReport(out)
    for done, (photo, path) in enumerate(zip(planned, relative, strict=True)):
        on_progress(done, len(planned))
        stem = path if taken[path.with_suffix("")] > 1 else path.with_suffix("")
        target = out / f"{stem}{suffix}"
        try:
            data = read_source(roots, photo, LIMITS.max_bytes)
            rgb = read_photo(data, limits=LIMITS).rgb
        except (OSError, PhotoRefused) as error:
            report.refused[str(roots[photo.root] / photo.source)] = str(error)
            continue
        save_picture(target, colorize(network, rgb, size=checkpoint.size, device=place))
        report.written.append(target)
    on_progress(len(planned), len(planned))
    return report
