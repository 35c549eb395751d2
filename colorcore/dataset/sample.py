"""From the bytes of one photo to one sample, or to the reason why there is none.

A sample is what a shard stores of a photo: LAB at the dataset's size, and a few facts that identify
the photo. :func:`make_sample` is the whole filter of `cc shard`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colorcore.color.colorfulness import GREY_CHROMA, colorfulness_u8, hue_spread
from colorcore.color.lab import encode_lab
from colorcore.dataset.layout import SampleSettings
from colorcore.photos.read import read_photo
from colorcore.photos.refusal import PhotoLimits, PhotoRefused, Reason
from colorcore.photos.square import square

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Sample:
    """One kept photo.

    lab_u8        (3, size, size) uint8, stored LAB
    split         "train" or "val", from the content hash alone
    width, height the photo's own size in pixels
    colorfulness  Hasler-Süsstrunk CF of the resized photo
    sha256        hex digest of the photo's bytes
    """

    lab_u8: NDArray[np.uint8]
    split: str
    width: int
    height: int
    colorfulness: float
    sha256: str

    def facts(self) -> dict[str, Any]:
        """The fields shared by the sample's JSON member and its index row."""
        return {
            "width": self.width,
            "height": self.height,
            "colorfulness": self.colorfulness,
            "sha256": self.sha256,
        }


def split_of(sha256: str, val_percent: float) -> str:
    """The split of a photo: val for the ``val_percent`` lowest content hashes.

    It depends on the content alone, so copies of a photo are never in both splits, and adding
    photos never moves existing ones.
    """
    return "val" if int(sha256[:8], 16) < val_percent / 100 * 2**32 else "train"


def lab_of(data: bytes, size: int, limits: PhotoLimits) -> NDArray[np.uint8]:
    """Stored LAB (3, size, size) of a photo's centre square, without any colour filter.

    Raises:
        PhotoRefused: the photo cannot be read or breaks a limit.
    """
    return encode_lab(square(read_photo(data, limits=limits, min_size=size).rgb, size))


def make_sample(data: bytes, settings: SampleSettings) -> Sample:
    """One photo's sample.

    Raises:
        PhotoRefused: the photo must not get into a shard; the error holds the reason.
    """
    photo = read_photo(data, limits=settings.limits, min_size=settings.size)
    rgb = square(photo.rgb, settings.size)
    lab_u8 = encode_lab(rgb)
    hue = hue_spread(lab_u8)
    if hue.is_greyscale:
        raise PhotoRefused(
            Reason.GREYSCALE,
            f"{hue.coloured:.1%} of the pixels have a chroma above {GREY_CHROMA:g}",
        )
    if hue.is_single_hue:
        raise PhotoRefused(
            Reason.SINGLE_HUE,
            f"hues stay within {hue.spread:.1f} ab units of one ray, "
            f"{hue.residual:.1f} of the mean colour of their lightness",
        )
    cf = colorfulness_u8(rgb)
    if cf < settings.min_colorfulness:
        raise PhotoRefused(
            Reason.NOT_COLORFUL,
            f"colorfulness {cf:.1f}, expected at least {settings.min_colorfulness:g}",
        )
    sha256 = hashlib.sha256(data).hexdigest()
    return Sample(
        lab_u8=lab_u8,
        split=split_of(sha256, settings.val_percent),
        width=photo.width,
        height=photo.height,
        colorfulness=round(cf, 2),
        sha256=sha256,
    )
