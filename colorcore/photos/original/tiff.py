"""TIFF at full depth: pages of grey, RGB and CMYK of 8 or 16 bits, in any layout.

Pillow reads 8 bits of 16-bit colour and OpenCV neither alpha of its own nor all layouts, so
tifffile reads what photos and scans consist of. Pages of every other kind (palettes, bits, JPEG in
TIFF) are left to Pillow, which refuses what it cannot read.
"""

from __future__ import annotations

import logging
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from colorcore.photos.refusal import PhotoLimits, PhotoRefused, Reason

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

    from colorcore.photos.icc import Pixels


_COMPRESSIONS = frozenset({1, 5, 8, 32773, 32946, 34925, 50000})
"""None, LZW, Deflate (twice), PackBits, LZMA and ZSTD: lossless ones of whole bytes."""
_CHANNELS = {0: 1, 1: 1, 2: 3, 5: 4}
"""By photometric interpretation: white is 0, black is 0, RGB, CMYK."""
_ASSOCIATED, _UNASSOCIATED = 1, 2
_MAX_CHANNELS = 8
_MAX_PAGES = 10_000
_BUFFER = 1 << 24
"""Bytes of strips or tiles that are read and decoded at a time, to bound memory."""


class TiffPixels(NamedTuple):
    """A page's pixels as stored: (H, W), (H, W, 3) or (H, W, 4) for CMYK; alpha (H, W) or None."""

    pixels: Pixels
    alpha: Pixels | None
    icc: bytes | None
    orientation: int
    bits: int


def open_tiff(data: bytes) -> TiffFile:
    """The file's directories; no pixels are read."""
    from tifffile import TiffFile

    _keep_quiet()
    return TiffFile(BytesIO(data))


@cache
def _keep_quiet() -> None:
    """Keep what tifffile logs about damaged files from the terminal, unless someone asks for it."""
    logging.getLogger("tifffile").addHandler(logging.NullHandler())


def picture_pages(file: TiffFile) -> list[int]:
    """The numbers of the pages that are pictures of their own: no thumbnails, no masks.

    Raises:
        PhotoRefused: there are too many pages.
    """
    count = len(file.pages)
    if count > _MAX_PAGES:
        raise PhotoRefused(Reason.BOMB, f"expected at most {_MAX_PAGES} pages, got {count}")
    kept = [0]
    for number in range(1, count):
        kind = _page(file, number).tags.valueof(254, 0)  # NewSubfileType: 1 smaller, 4 a mask
        if not (isinstance(kind, int) and kind & 5):
            kept.append(number)
    return kept


def _page(file: TiffFile, number: int) -> TiffPage:
    from tifffile import TiffPage

    page = file.pages[number]
    if not isinstance(page, TiffPage):
        raise TypeError(f"expected a page with tags of its own, got {type(page).__name__}")
    return page


def page_tags(file: TiffFile, number: int) -> tuple[int, dict[int, object]]:
    """Where a page's directory is, and the values of its tags of metadata."""
    page = _page(file, number)
    wanted = (282, 283, 296, 700, 33723, 34377)
    return page.offset, {tag: page.tags.valueof(tag) for tag in wanted if tag in page.tags}


def page_size(file: TiffFile, number: int) -> tuple[int, int]:
    """Width and height of a page as stored."""
    page = _page(file, number)
    return page.imagewidth, page.imagelength


def is_plain(file: TiffFile, number: int) -> bool:
    """Whether :func:`page_pixels` reads a page; otherwise it is Pillow's."""
    page = _page(file, number)
    channels = _CHANNELS.get(int(page.photometric or 0))
    return (
        channels is not None
        and channels <= page.samplesperpixel <= _MAX_CHANNELS
        and page.bitspersample in {8, 16}
        and page.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}
        and int(page.compression) in _COMPRESSIONS
        and int(page.predictor) in {1, 2}
        and page.imagedepth == 1
        and page.tags.valueof(332, 1) == 1  # InkSet: CMYK
    )


def page_pixels(file: TiffFile, number: int, limits: PhotoLimits, size: int) -> TiffPixels:
    """Decode a page; ``size`` is the number of bytes of the file.

    Raises:
        PhotoRefused: a strip or tile is missing, or a tile is too large.
    """
    page = _page(file, number)
    if page.is_tiled and page.tilewidth * page.tilelength > limits.max_pixels:
        got = f"{page.tilewidth}x{page.tilelength}"
        detail = f"expected tiles of at most {limits.max_pixels} pixels, got {got}"
        raise PhotoRefused(Reason.BOMB, detail)
    _check_whole(page, size)
    planes, _, height, width, channels = page.shaped
    stored = page.asarray(buffersize=_BUFFER).reshape(planes, height, width, channels)
    if planes > 1:
        wanted = [stored[i, ..., 0] for i in range(planes)]
    else:
        wanted = [stored[0, ..., i] for i in range(channels)]
    colours = _CHANNELS[int(page.photometric or 0)]
    extra = tuple(int(kind) for kind in page.extrasamples)
    alpha_at = next((i for i, k in enumerate(extra) if k in {_ASSOCIATED, _UNASSOCIATED}), None)
    alpha = None
    if alpha_at is not None and colours + alpha_at < len(wanted):
        alpha = np.ascontiguousarray(wanted[colours + alpha_at])
    pixels: Pixels
    if colours == 1:
        pixels = np.ascontiguousarray(wanted[0])
    elif planes == 1 and channels == colours:
        pixels = stored[0]
    else:
        pixels = np.empty((height, width, colours), stored.dtype)
        for i in range(colours):
            pixels[..., i] = wanted[i]
    if not (pixels.flags.writeable and pixels.dtype.isnative):
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    if int(page.photometric or 0) == 0:
        np.invert(pixels, out=pixels)
    if alpha is not None and alpha_at is not None and extra[alpha_at] == _ASSOCIATED:
        _divide(pixels, alpha)
    icc = page.tags.valueof(34675)
    orientation = page.tags.valueof(274, 1)
    upright = isinstance(orientation, int) and 1 <= orientation <= 8
    icc = icc if isinstance(icc, bytes) else None
    turn = orientation if upright else 1
    return TiffPixels(pixels, alpha, icc, turn, page.bitspersample)


def _check_whole(page: TiffPage, size: int) -> None:
    """Refuse a page with missing data, which tifffile would fill with black."""
    needed = int(np.prod(page.chunked))
    places = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(places) < needed or any(n <= 0 or at + n > size for at, n in places[:needed]):
        detail = f"expected a whole TIFF, got its end after {size} bytes"
        raise PhotoRefused(Reason.TRUNCATED, detail)


def _divide(pixels: Pixels, alpha: Pixels) -> None:
    """Undo the multiplication of colours with alpha (TIFF 6.0, §18), row by row in place."""
    top = np.iinfo(pixels.dtype).max
    for colour, opacity in zip(pixels, alpha, strict=True):
        share = np.maximum(opacity, 1).astype(np.float32) / top
        share = share if pixels.ndim == 2 else share[:, None]
        colour[:] = np.rint(np.minimum(colour / share, top))
