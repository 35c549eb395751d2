"""Reasons and limits for refusing photos: only data, so importing it loads no decoder."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """The reasons for which a photo is refused, by the reader or later by `cc shard`."""

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
"""The reasons that mean a bad file; the others depend on settings."""


class PhotoRefused(Exception):  # noqa: N818 - a verdict on the photo, not a fault of the program
    """A photo is refused: ``reason``, and ``detail`` (one line: expected …, got …)."""

    def __init__(self, reason: Reason, detail: str) -> None:
        # Exception gets both arguments, so that the refusal can be pickled between processes.
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, slots=True)
class PhotoLimits:
    """Limits that are checked before decoding.

    max_pixels  width × height, to protect memory: 100 MP are 300 MB of RGB (``read_photo`` reads
                TIFFs of up to 179 MP, Pillow's own limit; ``read_original`` has no other limit)
    max_bytes   size of the file
    min_side    pixels on the shorter side
    max_aspect  longer side / shorter side
    """

    max_pixels: int = 100_000_000
    max_bytes: int = 268_435_456
    min_side: int = 64
    max_aspect: float = 5.0


COLORIZABLE = PhotoLimits(min_side=1, max_aspect=float("inf"))
"""Wider limits than for training: any readable photo can be colourized."""
