"""Anyone's colourized pictures of the photos: `cc eval --against FOLDER`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np

from colorcore.photos.read import read_photo
from colorcore.photos.refusal import PhotoLimits, PhotoRefused
from pipelines.errors import WrongCallError
from pipelines.pairing.matching import Matches, match_outputs
from pipelines.sources.listing import is_tar, list_photos
from pipelines.sources.reading import read_photos
from pipelines.sources.source import PlannedPhoto, Source, open_sources

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIMITS = PhotoLimits()
SAME_SHAPE = 0.02
"""Share by which the ratio of an output's sides may differ from the photo's: tools round sides up
to multiples of what their network takes, or cut a pixel."""


@dataclass(slots=True)
class OutputFolder:
    """A folder of outputs, and what was found in it.

    name      the side's name in tables
    folder    its location
    matches   photo -> output, and what has no match
    damaged   outputs that could not be read, with the reason
    resized   outputs of another size than their photo
    reshaped  those of them with another ratio of sides, which were stretched to the photo's
    """

    name: str
    folder: str
    _source: Source
    _files: dict[str, PlannedPhoto]
    matches: Matches = field(default_factory=Matches)
    damaged: dict[str, str] = field(default_factory=dict)
    resized: set[str] = field(default_factory=set)
    reshaped: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, name: str, folder: str) -> OutputFolder:
        """List the pictures of a folder.

        Raises:
            WrongCallError: there is no such folder, or it holds no pictures.
        """
        (source,) = open_sources([folder])
        if source.kind != "folder":
            raise WrongCallError(
                f"expected a folder of colourized photos for --against, got {folder}; "
                "name the folder it lies in"
            )
        files = {p.source: p for p in list_photos([source], Counter()) if not is_tar(p)}
        if not files:
            raise WrongCallError(
                f"expected colourized photos in {folder} for --against, found none; check the path"
            )
        return cls(name, folder, source, files)

    def match(self, photos: Sequence[str]) -> None:
        """Find the outputs of photos, given by their paths within their folders."""
        self.matches = match_outputs(photos, list(self._files))

    def read(self, photo: str, shape: tuple[int, int], min_size: int) -> NDArray[np.uint8] | None:
        """A photo's output, in the photo's shape: (H, W, 3) uint8 sRGB; None if it has none.

        shape (width, height) of the whole photo; at least ``min_size`` pixels per side are read, if
        there are so many. An output that cannot be read is noted and is none.
        """
        name = self.matches.outputs.get(photo)
        if name is None or name in self.damaged:
            return None
        try:
            (read,) = read_photos([self._source], [self._files[name]], LIMITS.max_bytes)
            decoded = read_photo(read.data(), limits=LIMITS, min_size=min_size)
        except PhotoRefused as refusal:
            self.damaged[name] = str(refusal)
            return None
        width, height = shape
        if (decoded.width, decoded.height) != shape:
            self.resized.add(name)
        if abs(decoded.width * height / (decoded.height * width) - 1.0) <= SAME_SHAPE:
            return decoded.rgb
        self.reshaped.add(name)
        rows = decoded.rgb.shape[0]
        wide = max(1, round(rows * width / height))
        how = cv2.INTER_AREA if wide < decoded.rgb.shape[1] else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(decoded.rgb, (wide, rows), interpolation=how), np.uint8)

    @property
    def location(self) -> str:
        """The folder as its store names it."""
        return self._source.store.show("")
