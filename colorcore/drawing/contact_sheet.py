"""A contact sheet of kept and refused photos, grouped by reason, each with its measurements.

It shows a wrong threshold at a glance: good photos among the refused ones, or bad ones among the
kept.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image, ImageDraw

COLUMNS = 12
TILE = 112
"""Side of a tile's picture in pixels."""
_GAP = 10
_LINE = 13
_CAPTION_LINES = 3
_HEADING = 34
_INK, _QUIET, _EMPTY = "#2b2b2b", "#7a7a7a", "#eeeeee"


@dataclass(frozen=True, slots=True)
class Tile:
    """One photo: its picture (array (H, W, 3) uint8, JPEG bytes or None), name and a few words."""

    picture: NDArray[np.uint8] | bytes | None
    name: str
    words: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and its photos."""

    heading: str
    tiles: Sequence[Tile]


def draw_contact_sheet(title: str, sections: Sequence[Section]) -> NDArray[np.uint8]:
    """Draw sections one below the other, ``COLUMNS`` photos per row -> (H, W, 3) uint8."""
    from PIL import Image, ImageDraw

    shown = [section for section in sections if section.tiles]
    step = TILE + _LINE * _CAPTION_LINES + _GAP
    heights = [_HEADING + step * -(-len(section.tiles) // COLUMNS) for section in shown]
    width = _GAP + COLUMNS * (TILE + _GAP)
    sheet = Image.new("RGB", (width, 2 * _GAP + _HEADING + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP), title, fill=_INK, font=_font(18))
    top = _GAP + _HEADING
    for section, height in zip(shown, heights, strict=True):
        draw.text((_GAP, top + 8), section.heading, fill=_INK, font=_font(14))
        for number, tile in enumerate(section.tiles):
            row, column = divmod(number, COLUMNS)
            place = _GAP + column * (TILE + _GAP), top + _HEADING + row * step
            _paste(sheet, draw, tile, place)
        top += height
    return np.asarray(sheet)


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, place: tuple[int, int]
) -> None:
    from PIL import Image

    left, top = place
    picture: Image.Image | None = None
    if isinstance(tile.picture, bytes):
        picture = Image.open(io.BytesIO(tile.picture), formats=["JPEG"])
    elif tile.picture is not None:
        picture = Image.fromarray(tile.picture)
    if picture is None:
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=_EMPTY)
        draw.text((left + 6, top + TILE // 2 - 8), "no picture", fill=_QUIET, font=_font(11))
    else:
        picture.thumbnail((TILE, TILE), Image.Resampling.BOX)
        offset = left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2
        sheet.paste(picture, offset)
    lines = [(_fitted(tile.name, from_left=True), _INK)]
    lines += [(line, _QUIET) for line in _wrapped(tile.words, _CAPTION_LINES - 1)]
    for number, (line, colour) in enumerate(lines):
        draw.text((left, top + TILE + 1 + number * _LINE), line, fill=colour, font=_font(10))


def _wrapped(text: str, lines: int) -> list[str]:
    """Wrap words to at most ``lines`` lines of a tile's width; the last line may be cut off."""
    found: list[str] = []
    rest = text.split()
    while rest and len(found) < lines:
        count = 1
        while count < len(rest) and _width(" ".join(rest[: count + 1])) <= TILE:
            count += 1
        last = len(found) == lines - 1
        found.append(_fitted(" ".join(rest if last else rest[:count])))
        rest = [] if last else rest[count:]
    return found


def _fitted(text: str, *, from_left: bool = False) -> str:
    if _width(text) <= TILE:
        return text
    while text and _width(text) > TILE - 10:
        text = text[1:] if from_left else text[:-1]
    return f"…{text}" if from_left else f"{text}…"


def _width(text: str) -> float:
    return float(_font(10).getlength(text))


@cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
