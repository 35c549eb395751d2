"""Thumbnails of refused photos: looking at them shows whether a threshold is wrong."""

from __future__ import annotations

import cv2

from colorcore.photos.read import read_photo
from colorcore.photos.refusal import PhotoLimits, PhotoRefused, Reason

SIDE = 112
"""Longer side in pixels."""
PER_REASON = 4
"""A unit keeps the thumbnails of its first photos refused for each reason, up to this many."""
QUALITY = 80
VISIBLE = frozenset(
    {
        Reason.TOO_SMALL,
        Reason.TOO_NARROW,
        Reason.GREYSCALE,
        Reason.SINGLE_HUE,
        Reason.NOT_COLORFUL,
        Reason.DUPLICATE,
    }
)
"""The reasons whose photos can be decoded."""


def thumbnail_of_refused(
    content: bytes | PhotoRefused, reason: Reason, limits: PhotoLimits
) -> bytes | None:
    """The thumbnail of a photo that was refused for ``reason``, or None if it has no picture."""
    if reason not in VISIBLE or isinstance(content, PhotoRefused):
        return None
    return thumbnail(content, limits)


def thumbnail(data: bytes, limits: PhotoLimits) -> bytes | None:
    """A JPEG of the photo, at most ``SIDE`` pixels per side, or None if it cannot be decoded.

    Of ``limits``, only the number of pixels and the file size apply.
    """
    relaxed = PhotoLimits(limits.max_pixels, limits.max_bytes, 1, float("inf"))
    try:
        rgb = read_photo(data, limits=relaxed, min_size=SIDE).rgb
    except PhotoRefused:
        return None
    height, width = rgb.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    written, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return jpeg.tobytes() if written else None
