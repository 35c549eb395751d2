"""The end of a photo's way through `cc colorize`: painted, encoded, written, or refused."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.drawing.side_by_side import side_by_side
from colorcore.inference.colorize import paint
from colorcore.photos.original import encode
from colorcore.photos.refusal import PhotoRefused
from colorcore.photos.write import (
    COLORIZED,
    EncoderLimitError,
    check_encodable,
    encode_pages,
    encode_picture,
    format_for,
    format_name,
    write_whole,
)
from pipelines.inference.outputs import why_not_written

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from colorcore.color.pixels import Pixels
    from pipelines.album.painting import Page, Work

PREVIEW_SIDE = 1600
"""Pixels: the longer side of the pictures on a page of befores and afters."""
LACKING = (".bmp", ".avif")
"""Suffixes of formats in which some pictures would lose transparency or bits: these become PNG."""
OUT_OF_MEMORY = (
    "expected a photo that fits into memory, ran out of memory; free some, use --device cpu, or "
    "pass a smaller copy"
)
_OUT_OF_MEMORY = re.compile(
    "out of memory|(can't|cannot) allocate memory|not enough memory|insufficient memory"
    "|failed to allocate",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a photo's pictures go.

    paths  one per version of the photo; those that exist are kept unless ``overwrite`` is set
    times  the photo's access and modification times in ns, for the pictures; None: now
    alone  the photo is a file of its own, not one of a tar
    """

    paths: tuple[Path, ...]
    overwrite: bool
    times: tuple[int, int] | None = None
    alone: bool = True


@dataclass(slots=True)
class Done:
    """What became of a photo.

    alone    as in its ``Target``
    refused  the reason, if there is no picture; ``error`` is the disk's, if that is why
    colored  it has colours already, and stays as it is
    before, after  small pictures for a page, if asked for
    data           the picture, if it was not to be written
    unexpected     a fault of ours, to be raised
    """

    place: str
    alone: bool = True
    written: list[Path] = field(default_factory=list)
    refused: str = ""
    error: OSError | None = None
    colored: bool = False
    before: NDArray[Any] | None = None
    after: NDArray[Any] | None = None
    data: bytes = b""
    unexpected: Exception | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """Paints, encodes and writes a photo.

    suffix      the format of all pictures; None: that of the photo
    strength    share of the predicted colours, 0..1
    beside      write the photo and its picture side by side
    previews    keep small pictures for a page
    writer      tells apart processes that may write the same picture at the same time
    """

    suffix: str | None
    strength: float
    beside: bool
    previews: bool
    writer: str = ""

    def __call__(self, work: Work, cause: Exception | None) -> Done:
        """What became of the photo, without a target its picture; raises no ``Exception``."""
        target: Target | None = work.target
        done = Done(work.place, alone=target is not None and target.alone)
        try:
            if cause is not None:
                raise cause
            self._finish(work, target, done)
        except PhotoRefused as error:
            done.refused = str(error)
        except EncoderLimitError as error:
            done.refused = f"{error}; use --format png"
        except OSError as error:
            path = target.paths[0] if target is not None else Path(work.place)
            done.refused, done.error = why_not_written(path, error), error
        except Exception as error:
            if out_of_memory(error):
                done.refused = OUT_OF_MEMORY
            else:
                done.unexpected = error
        work.pages.clear()
        return done

    def _finish(self, work: Work, target: Target | None, done: Done) -> None:
        if all(page.copy is None for page in work.pages):
            done.colored = True
        elif target is None:
            suffix = self.suffix or format_for(work.pages[0].original)
            pictures = [self._paint(page, 0) for page in work.pages]
            (_, done.data), *_ = self._encoded(Path(f"picture{suffix}"), work.pages, pictures)
        else:
            self._write(work, target, done)

    def _write(self, work: Work, target: Target, done: Done) -> None:
        for version, path in enumerate(target.paths):
            if not target.overwrite and os.path.lexists(path):
                continue
            check_encodable(path.suffix, *work.pages[0].original.pixels.shape[:2])
            pictures = [self._paint(page, version) for page in work.pages]
            if self.previews and done.before is None:
                done.before = _preview(work.pages[0].original.pixels)
                done.after = _preview(pictures[0])
            files = self._encoded(path, work.pages, pictures, overwrite=target.overwrite)
            # The first page last: whoever finds it need not look for the others.
            for place, data in reversed(files):
                write_whole(place, data, writer=self.writer)
                if target.times is not None:
                    os.utime(place, ns=target.times)
            done.written += [place for place, _ in files]

    def _paint(self, page: Page, version: int) -> Pixels:
        pixels = page.original.pixels
        if page.copy is None:
            return pixels
        return paint(pixels, page.copy, page.colors[version], strength=self.strength)

    def _encoded(
        self, path: Path, pages: list[Page], pictures: list[Pixels], *, overwrite: bool = True
    ) -> list[tuple[Path, bytes]]:
        """The files of a photo's pictures: one, or one per page if the format holds only one."""
        originals = [page.original for page in pages]
        if self.suffix is None and path.suffix in LACKING and format_for(originals[0]) == ".png":
            path = path.with_suffix(".png")
            if not overwrite and os.path.lexists(path):
                return []
        suffix = path.suffix.lower()
        alphas = [None if self.beside else original.alpha for original in originals]
        if self.beside:
            pictures = [
                _beside(_in_color(original.pixels), picture)
                for original, picture in zip(originals, pictures, strict=True)
            ]
        rows = list(zip(originals, pictures, alphas, strict=True))
        if len(pages) > 1 and suffix in {".tif", ".tiff"}:
            made = [encode.Page(picture, alpha, one.metadata) for one, picture, alpha in rows]
            return [(path, encode_pages(made, software=COLORIZED))]
        return [
            (
                path if number == 0 else path.with_stem(f"{path.stem}-page{number + 1}"),
                encode_picture(
                    picture,
                    suffix,
                    alpha=alpha,
                    metadata=one.metadata,
                    quality=one.quality if one.format == format_name(suffix) else None,
                    software=COLORIZED,
                ),
            )
            for number, (one, picture, alpha) in enumerate(rows)
        ]


def out_of_memory(error: Exception) -> bool:
    """Whether Python, torch or OpenCV had too little memory."""
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def _beside(before: Any, after: Any) -> Pixels:
    joined: Pixels = side_by_side(before, after)
    return joined


def _in_color(pixels: Any) -> Pixels:
    colored: Pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return colored


def _preview(pixels: Pixels) -> NDArray[Any]:
    import cv2

    height, width = pixels.shape[:2]
    scale = PREVIEW_SIDE / max(height, width)
    if scale >= 1.0:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
