"""One self-contained page with a slider per photo, which shows it before and after.

The page holds its pictures, style and script, loads nothing, and works from a file without network.
A strict Content-Security-Policy allows no script but its own, whatever the photos are called.

How many photos are sensible: one takes about 0.6 MB (two JPEGs of at most 1,600 pixels per side,
as text). Chromium on two cores opens 120 photos (73 MB) in 3 s and 420 (254 MB) in 5 s; on a phone,
or to send to somebody, a hundred are enough. A page takes no more photos from :data:`MOST_BYTES` on
and says how many it leaves out; for more, make one page per folder or pass a smaller ``side``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import re
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.color.pixels import reduced, require_photo
from colorcore.storage.atomic import make_folder, move_into_place

if TYPE_CHECKING:
    from io import FileIO
    from types import TracebackType

    from numpy.typing import NDArray

SIDE = 1600
"""Longer side of the embedded pictures in pixels, at most."""
QUALITY = 85
"""JPEG quality of the embedded pictures; chroma is kept at full size, because it is compared."""
MOST_BYTES = 256_000_000
"""Size of a page from which it takes no more photos: about 400 of full size."""
GENERATOR = "colorcore before and after"
"""Names the pages of this module in their head."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_GRIP = (
    '<svg viewBox="0 0 24 24" focusable="false"><path d="M9.5 8 5.5 12l4 4M14.5 8l4 4-4 4"/></svg>'
)


class BeforeAfterPage:
    """Writes the page photo by photo, so that memory holds one photo at a time.

    Use it as a context manager: the file appears when the block ends, and not at all if it raises.
    ``add`` may be called from several threads; pictures are encoded in the calling one.

    photos    photos on the page
    left_out  photos that it had no room for
    bytes     size of the page so far
    """

    def __init__(
        self,
        path: Path,
        *,
        title: str = "Before and after",
        side: int = SIDE,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.photos, self.left_out, self.bytes = 0, 0, 0
        self._path, self._title = path, title
        self._side, self._most_bytes = side, most_bytes
        self._part = path.with_name(f".{path.name}.part")
        self._file: FileIO | None = None
        self._lock = Lock()

    def __enter__(self) -> BeforeAfterPage:
        """Begin the page in a temporary file next to its place; creates parent folders.

        Raises:
            OSError: the folder cannot be written.
        """
        make_folder(self._path.parent)
        self._file = self._part.open("wb", buffering=0)
        self._write(_head(self._title))
        return self

    def add(self, name: str, before: NDArray[Any], after: NDArray[Any], *, note: str = "") -> bool:
        """Add a photo at the end; False if the page is full.

        name           shown below the photo, escaped; any string, such as a path
        before, after  sRGB (H, W, 3) or grey (H, W), uint8 or uint16, of one height and width;
                       reduced to ``side`` pixels
        note           a line below the name

        Raises:
            ValueError: an array has another shape or type, or the two differ in size.
            OSError: the disk does not take it. The page is then as it was before.
        """
        if before.shape[:2] != after.shape[:2]:
            raise ValueError(
                "expected two pictures of one size, got "
                f"{before.shape} before and {after.shape} after"
            )
        if self.bytes >= self._most_bytes:
            with self._lock:
                self.left_out += 1
            return False
        photo = _photo(name, small_jpeg(before, self._side), small_jpeg(after, self._side), note)
        with self._lock:
            self._write(photo)
            self.photos += 1
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the page into its place, or remove what there is of it if the block raised.

        Raises:
            OSError: the disk does not take it; the temporary file is removed.
        """
        try:
            if error is None:
                self._write(_foot(self.photos, self.left_out))
            if self._file is not None:  # for mypy
                self._file.close()
            # An earlier page is worth more than one without photos, such as that of a rerun.
            if error is None and (self.photos or not self._path.exists()):
                move_into_place({self._part: self._path})
        finally:
            self._file = None
            with contextlib.suppress(OSError):  # it is in its place
                self._part.unlink()

    def _write(self, text: str) -> None:
        if self._file is None:
            raise ValueError("expected an open page, got one outside its with block")
        left = memoryview(text.encode("utf-8"))
        whole = self.bytes + len(left)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            # Without half a photo, the page can still be finished.
            self._file.seek(self.bytes)
            self._file.truncate()
            raise
        self.bytes = whole


def is_page(path: Path) -> bool:
    """Whether a file is a page that :class:`BeforeAfterPage` wrote, which may be replaced."""
    try:
        with path.open("rb") as file:
            return _generator().encode() in file.read(1024)
    except OSError:
        return False


# -- the parts of the page; the page of `cc serve` has sliders of the same parts ------------------


def style_and_script() -> tuple[str, str]:
    """The CSS and the JavaScript that :func:`pair` needs, for a page of which it is a part."""
    style, script = (
        Path(__file__).with_name(f"before_after.{kind}").read_text(encoding="utf-8")
        for kind in ("css", "js")
    )
    return style, script


def pair(name: str, before: str, after: str) -> str:
    """A slider over two pictures of one size, as HTML.

    ``name`` is any string; ``before`` and ``after`` are URLs that need no escaping.
    """
    shown = _escaped(name)
    sides = "".join(
        f'<div class="side {side}"><img src="{url}" alt="{shown}, {side}" draggable="false">'
        f"<span>{side.capitalize()}</span></div>\n"
        for side, url in (("before", before), ("after", after))
    )
    return (
        f'<div class="pair">\n{sides}'
        '<input type="range" min="0" max="100" step="2" value="50" autocomplete="off" '
        f'aria-label="Before and after: {shown}" aria-valuetext="50% before">\n'
        f'<div class="clip" aria-hidden="true"><div class="line">{_GRIP}</div></div>\n</div>\n'
    )


def _head(title: str) -> str:
    style, script = style_and_script()
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    shown = _escaped(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"{_generator()}\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{shown}</title>\n<style>{style}</style>\n<script>{script}</script>\n"
        f"</head>\n<body>\n<header>\n<h1>{shown}</h1>\n"
        '<p class="how">Drag across a photo, or select one with Tab and use the arrow keys.</p>\n'
        "</header>\n<main>\n"
    )


def _photo(name: str, before: bytes, after: bytes, note: str) -> str:
    shown = _escaped(name)
    line = f'\n<span class="note">{_escaped(note)}</span>' if note else ""
    # A name in a script from right to left must not reorder the words around it.
    caption = f'<figcaption><bdi class="name">{shown}</bdi>{line}</figcaption>'
    return f"<figure>\n{pair(name, jpeg_url(before), jpeg_url(after))}{caption}\n</figure>\n"


def jpeg_url(data: bytes) -> str:
    """A JPEG as a URL that holds it."""
    return f"data:image/jpeg;base64,{_base64(data)}"


def _foot(photos: int, left_out: int) -> str:
    words = f"{photos:,} photo{'' if photos == 1 else 's'}"
    if left_out:
        words += f"; {left_out:,} more had no room on this page"
    return f"</main>\n<footer>{words}</footer>\n</body>\n</html>\n"


def _generator() -> str:
    return f'<meta name="generator" content="{GENERATOR}">'


def _escaped(text: str) -> str:
    """Text for an element or a quoted attribute.

    Control characters, and bytes of a file's name that are no UTF-8 (lone surrogates in Python),
    become the replacement character.
    """
    readable = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", readable))


def _hash(text: str) -> str:
    """A source expression for this inline text alone (Content Security Policy 3, §2.3.1)."""
    return f"'sha256-{_base64(hashlib.sha256(text.encode('utf-8')).digest())}'"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def small_jpeg(picture: NDArray[Any], side: int = SIDE) -> bytes:
    """A JPEG of at most ``side`` pixels per side. picture (H, W) or (H, W, 3), 8 or 16 bits."""
    import cv2

    require_photo(picture)
    small = reduced(picture, side)
    if small.dtype == np.uint16:
        small = cv2.convertScaleAbs(small, alpha=1 / 257)
    if small.ndim == 3:
        small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    full_chroma = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    options = [
        cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full_chroma,
    ]  # fmt: skip
    written, jpeg = cv2.imencode(".jpg", small, options)
    if not written:
        raise ValueError(f"expected a picture that JPEG can hold, got {small.shape}")
    return bytes(jpeg.tobytes())
