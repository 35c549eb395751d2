"""Why a photo is refused, and by which limits: data alone, so that readers need no decoder."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Every reason for which a photo is refused, here and later on its way into a dataset."""

    EMPTY = "empty"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    BOMB = "decompression_bomb"
    TOO_LARGE = "file_too_large"
    TOO_SMALL = "too_small"
    TOO_NARROW = "too_narrow"
    GREYSCALE = "greyscale"
    SINGLE_HUE = "single_hue"
    NOT_COLORFUL = "not_colorful"
    DUPLICATE = "duplicate"


DAMAGED = frozenset({Reason.EMPTY, Reason.UNREADABLE, Reason.TRUNCATED, Reason.BOMB})
"""The reasons that mean the file itself is bad; the others are a matter of taste or limits."""


class PhotoRefused(Exception):  # noqa: N818 - a verdict on the photo, not a fault of the program
    """A photo that is not taken: ``reason``, and ``detail`` (one line: expected, and got)."""

    def __init__(self, reason: Reason, detail: str) -> None:
        # Both go to Exception, so that the refusal survives pickling between processes.
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, slots=True)
class PhotoLimits:
    """What is refused before decoding.

    max_pixels  width × height, a guard of memory: 100 MP are 300 MB of RGB (a TIFF ends at
                Pillow's own 179 MP)
    max_bytes   size of the file
    min_side    pixels on the shorter side
    max_aspect  longer side / shorter side
    """

    max_pixels: int = 100_000_000
    max_bytes: int = 268_435_456
    min_side: int = 64
    max_aspect: float = 5.0
