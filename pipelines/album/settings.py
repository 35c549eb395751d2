"""What `cc colorize` is asked to do, and what it reports."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from colorcore.decoding import Decoding
from colorcore.photos.refusal import COLORIZABLE, PhotoLimits

LIMITS = COLORIZABLE
BYTES_PER_PIXEL = 8
"""With higher limits on pixels, files may have as many bytes: 16 bits, four channels."""


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


DEFAULTS = ColorizeSettings()


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
    page_error  why the page lacks photos, if its file could not be written
    """

    out: Path
    decoding: Decoding | None = None
    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    colored: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    left: int = 0
    page_error: str = ""
