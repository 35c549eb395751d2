"""A photo's file through a colorizer, in the steps that its users arrange differently.

``open_pages`` -> ``color_pages`` (the network) -> ``paint`` -> ``encode_colorized``

`cc colorize` runs many photos through them at once, `cc serve` one per request;
:func:`colorize_file` is all of them for one photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from colorcore.color.colored import is_colored
from colorcore.colorizing.colorizer import batches_of, small_copy
from colorcore.colorizing.compose import paint
from colorcore.photos.original.encode import Page as EncodedPage
from colorcore.photos.original.read import Original, read_original
from colorcore.photos.refusal import COLORIZABLE, PhotoLimits, PhotoRefused, Reason
from colorcore.photos.write import (
    COLORIZED,
    encode_pages,
    encode_picture,
    format_for,
    format_name,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from colorcore.color.pixels import Pixels
    from colorcore.colorizing.colorizer import Colorizer, Lab


class Page(NamedTuple):
    """A picture of a file on its way.

    copy    (3, h, w) CIELAB; None: the picture stays as it is, because it has colours
    colors  (2, h, w) ab units, one per variation, once they are known
    """

    original: Original
    copy: NDArray[np.float32] | None
    colors: list[NDArray[np.float32]]

    def painted(self, version: int, strength: float) -> Pixels:
        """The picture in its colours, (H, W, 3) of the original's type."""
        if self.copy is None:
            return self.original.pixels
        return paint(self.original.pixels, self.copy, self.colors[version], strength=strength)


def open_pages(
    data: bytes,
    limits: PhotoLimits,
    size: int,
    *,
    force: bool = False,
    most_pixels: int | None = None,
) -> list[Page]:
    """Decode the pictures of a file, each with the copy of shorter side ``size`` to colourize.

    A picture that has colours gets no copy, unless ``force`` is set. ``limits`` hold for each
    picture, ``most_pixels`` for all pages of a TIFF together; None: no such limit.

    Raises:
        PhotoRefused: the file cannot be read, or is over a limit.
    """
    pages: list[Page] = []
    pixels = 0
    for original in read_original(data, limits=limits):
        pixels += original.pixels.shape[0] * original.pixels.shape[1]
        if most_pixels is not None and pixels > most_pixels:
            detail = f"expected at most {most_pixels} pixels on all pages, got {pixels} or more"
            raise PhotoRefused(Reason.BOMB, detail)
        stays = not force and is_colored(original.pixels)
        pages.append(Page(original, None if stays else small_copy(original.pixels, size), []))
    return pages


def color_pages(colorizer: Colorizer, pages: Sequence[Page]) -> dict[int, Exception]:
    """Fill in the colours; returns what the network failed with, by the page's identity."""
    failed: dict[int, Exception] = {}
    waiting = [(page, page.copy) for page in pages if page.copy is not None]
    for numbers in batches_of([copy for _, copy in waiting]):
        batch = [waiting[number] for number in numbers]
        try:
            _color_batch(colorizer, batch)
        except Exception:  # such as too little memory, which one copy may not need
            for page, copy in batch:
                page.colors.clear()
                try:
                    _color_batch(colorizer, [(page, copy)])
                except Exception as error:
                    failed[id(page)] = error
    return failed


def _color_batch(colorizer: Colorizer, batch: Sequence[tuple[Page, Lab]]) -> None:
    colors = colorizer.predict([copy for _, copy in batch])
    for (page, _), versions in zip(batch, colors, strict=True):
        page.colors.extend(versions)


def encode_colorized(
    suffix: str, originals: Sequence[Original], pictures: Sequence[Pixels], *, alpha: bool = True
) -> bytes:
    """The pictures of one file as a file: in its quality, and with what belongs to it.

    Several become the pages of a TIFF. ``alpha``: with the originals' transparency.

    Raises:
        EncoderLimitError: the format of ``suffix`` cannot hold the picture.
    """
    alphas = [original.alpha if alpha else None for original in originals]
    if len(originals) > 1:
        rows = zip(pictures, alphas, originals, strict=True)
        made = [EncodedPage(picture, mask, one.metadata) for picture, mask, one in rows]
        return encode_pages(made, software=COLORIZED)
    (one,) = originals
    return encode_picture(
        pictures[0],
        suffix,
        alpha=alphas[0],
        metadata=one.metadata,
        quality=one.quality if one.format == format_name(suffix) else None,
        software=COLORIZED,
    )


def colorize_file(
    colorizer: Colorizer, data: bytes, *, strength: float = 1.0, limits: PhotoLimits = COLORIZABLE
) -> bytes:
    """A photo's file -> its picture's, as `cc colorize --force` writes it in the photo's format.

    Raises:
        PhotoRefused: the file cannot be read, or is over a limit.
        EncoderLimitError: its format cannot hold the picture.
    """
    pages = open_pages(data, limits, colorizer.size, force=True, most_pixels=limits.max_pixels)
    for error in color_pages(colorizer, pages).values():
        raise error
    originals = [page.original for page in pages]
    pictures = [page.painted(0, strength) for page in pages]
    return encode_colorized(format_for(originals[0]), originals, pictures)
