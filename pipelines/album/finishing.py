"""The end of a photo's way through `cc colorize`: painted, encoded, written, or refused."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.color.pixels import reduced
from colorcore.colorizing.compose import paint
from colorcore.colorizing.files import encode_colorized
from colorcore.drawing.side_by_side import side_by_side
from colorcore.photos.refusal import PhotoRefused, Reason
from colorcore.photos.write import (
    EncoderLimitError,
    check_encodable,
    format_for,
    format_name,
    would_lose,
    write_whole,
)
from pipelines.album.names import files_of
from pipelines.inference.outputs import why_not_written

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from colorcore.color.pixels import Pixels
    from colorcore.colorizing.files import Page
    from pipelines.album.painting import Work

PREVIEW_SIDE = 1600
"""Pixels: the longer side of the pictures on a page of befores and afters."""
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
    kept     pictures that were there, and stay
    refused  why there is no picture; ``reason`` is the reader's, if it refused the photo, and
             ``error`` the disk's
    colored  it has colours already, and stays as it is
    before, after  small pictures for a page, if asked for
    data           the picture, if it was not to be written
    unexpected     a fault of ours, to be raised
    """

    place: str
    alone: bool = True
    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    refused: str = ""
    reason: Reason | None = None
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
    previews    keep small pictures for a page; without a target, make only them
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
            done.refused, done.reason = str(error), error.reason
        except EncoderLimitError as error:
            done.refused = str(error) if ";" in str(error) else f"{error}; use --format png"
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
        elif target is None and self.previews:
            page = work.pages[0]
            done.before = done.after = preview(page.original.pixels)
            if page.copy is not None:
                done.after = paint(done.before, page.copy, page.colors[0], strength=self.strength)
        elif target is None:
            suffix = self.suffix or format_for(work.pages[0].original)
            pictures = [page.painted(0, self.strength) for page in work.pages]
            _, done.data = self._encoded(Path(f"picture{suffix}"), work.pages, pictures)
        else:
            self._write(work, target, done)

    def _write(self, work: Work, target: Target, done: Done) -> None:
        for version, path in enumerate(target.paths):
            if not target.overwrite and os.path.lexists(path):
                done.kept.append(path)
                continue
            check_encodable(path.suffix, *work.pages[0].original.pixels.shape[:2])
            pictures = [page.painted(version, self.strength) for page in work.pages]
            if self.previews and done.before is None:
                done.before = preview(work.pages[0].original.pixels)
                done.after = preview(pictures[0])
            place, data = self._encoded(path, work.pages, pictures)
            if not target.overwrite and os.path.lexists(place):
                done.kept.append(place)
                continue
            write_whole(place, data, writer=self.writer)
            if target.times is not None:
                os.utime(place, ns=target.times)
            done.written.append(place)

    def _encoded(self, path: Path, pages: list[Page], pictures: list[Pixels]) -> tuple[Path, bytes]:
        """The file of a photo's pictures, and its bytes.

        Raises:
            EncoderLimitError: the format cannot hold several pages, or would lose what the photo
                has although no format was asked for.
        """
        originals = [page.original for page in pages]
        if self.suffix is None and any(would_lose(one, path.suffix) for one in originals):
            path = files_of(path)[-1]
        suffix = path.suffix.lower()
        if self.suffix is None and any(would_lose(one, suffix) for one in originals):
            found = originals[0]
            raise EncoderLimitError(
                f"expected a photo that {suffix} can hold, got {found.format} of {found.bits} bits "
                "or with transparency under that name; rename it"
            )
        if len(pages) > 1 and format_name(suffix) != "TIFF":
            raise EncoderLimitError(
                f"expected one picture for {suffix}, got {len(pages)} pages; use --format tif"
            )
        if self.beside:
            pictures = [
                _beside(_in_color(original.pixels), picture)
                for original, picture in zip(originals, pictures, strict=True)
            ]
        return path, encode_colorized(suffix, originals, pictures, alpha=not self.beside)


def out_of_memory(error: Exception) -> bool:
    """Whether Python, torch or OpenCV had too little memory."""
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def _beside(before: Any, after: Any) -> Pixels:
    joined: Pixels = side_by_side(before, after)
    return joined


def _in_color(pixels: Any) -> Pixels:
    colored: Pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return colored


def preview(pixels: Pixels) -> NDArray[Any]:
    """A small copy for a page, (H, W, 3) or (H, W)."""
    return reduced(pixels, PREVIEW_SIDE)
