"""Many photos through decoder, network and encoder at once, in bounded memory.

A pool of threads decodes photos ahead, and paints and writes those whose colours are known, while
the caller's thread runs the network on batches of small copies:

``Work`` -> decode (pool) -> network (here, in batches) -> finish (pool) -> its outcome, in order
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from colorcore.colorizing.colorizer import BATCH
from colorcore.colorizing.compose import blas_on_one_thread
from colorcore.colorizing.files import Page, color_pages, open_pages
from colorcore.photos.read import photo_header
from colorcore.photos.refusal import PhotoLimits, PhotoRefused

if TYPE_CHECKING:
    from colorcore.colorizing.colorizer import Colorizer

Outcome = TypeVar("Outcome")

PIXELS_AT_ONCE = 48_000_000
"""Pixels of the photos on their way; a larger photo goes alone."""


@dataclass(slots=True)
class Work:
    """A photo on its way.

    place   its name in messages
    data    the bytes of its file
    target  what ``finish`` needs to know of it
    """

    place: str
    data: bytes
    target: Any = None
    pages: list[Page] = field(default_factory=list)


class Painting(Generic[Outcome]):
    """Passes photos through the network.

    finish  what is done with a photo whose colours are known, or with the error that stopped it,
            in a thread of the pool; it has the last word, so it does not raise
    force   colourize pictures that have colours, too
    """

    def __init__(
        self,
        colorizer: Colorizer,
        limits: PhotoLimits,
        finish: Callable[[Work, Exception | None], Outcome],
        *,
        threads: int,
        force: bool,
    ) -> None:
        self._colorizer, self._limits, self._finish = colorizer, limits, finish
        self._threads, self._force = threads, force
        self._decoding: deque[tuple[Work, int, Future[None]]] = deque()
        self._finishing: deque[tuple[int, Future[Outcome]]] = deque()
        self._pixels = 0

    def run(self, works: Iterable[Work], record: Callable[[Outcome], None]) -> None:
        """Pass photos through; ``record`` receives the outcome of each, in their order.

        If ``works`` raises an error, such as that of a store, the photos before it are finished
        first. If anything else does, or Ctrl-C, what is finished by then is recorded.
        """
        broken: Exception | None = None
        with blas_on_one_thread(), ThreadPoolExecutor(self._threads, "painting") as pool:
            try:
                works = iter(works)
                while True:
                    try:
                        work = next(works)
                    except StopIteration:
                        break
                    except Exception as error:
                        broken = error
                        break
                    self._begin(work, pool, record)
                while self._decoding or self._finishing:
                    self._advance(pool, record)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                finished = [future for _, future in self._finishing if not future.cancelled()]
                self._finishing.clear()
                with contextlib.suppress(Exception):  # which is known already
                    for future in finished:
                        record(future.result())
                raise
        if broken is not None:
            raise broken

    def _begin(
        self, work: Work, pool: ThreadPoolExecutor, record: Callable[[Outcome], None]
    ) -> None:
        pixels = _pixels(work.data)
        while self._pixels and self._pixels + pixels > PIXELS_AT_ONCE:
            self._advance(pool, record)
        self._pixels += pixels
        self._decoding.append((work, pixels, pool.submit(self._decode, work)))
        if len(self._decoding) >= 2 * BATCH:
            self._predict(pool)
        while self._finishing and self._finishing[0][1].done():
            self._record(record)

    def _advance(self, pool: ThreadPoolExecutor, record: Callable[[Outcome], None]) -> None:
        """Make room: run the network on what is decoded, or wait for a photo that is painted."""
        if self._decoding:
            self._predict(pool)
        elif self._finishing:
            self._record(record)

    def _record(self, record: Callable[[Outcome], None]) -> None:
        outcome = self._finishing[0][1].result()
        pixels, _ = self._finishing.popleft()
        self._pixels -= pixels
        record(outcome)

    def _decode(self, work: Work) -> None:
        size = self._colorizer.size
        work.pages += open_pages(work.data, self._limits, size, force=self._force)
        work.data = b""

    def _predict(self, pool: ThreadPoolExecutor) -> None:
        """Run the network on the photos that have waited longest, and have them painted."""
        batch = [self._decoding.popleft() for _ in range(min(BATCH, len(self._decoding)))]
        errors: list[Exception | None] = []
        for _, _, decoded in batch:
            error = decoded.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            errors.append(error)
        whole = [work for (work, *_), error in zip(batch, errors, strict=True) if error is None]
        pages = [page for work in whole for page in work.pages]
        failed = color_pages(self._colorizer, pages)
        for (work, pixels, _), error in zip(batch, errors, strict=True):
            cause = error or next((e for page in work.pages if (e := failed.get(id(page)))), None)
            self._finishing.append((pixels, pool.submit(self._finish, work, cause)))


def _pixels(data: bytes) -> int:
    try:
        _, width, height = photo_header(data)
    except PhotoRefused:  # for which the decoder has the reason, or a format with a plugin
        return 0
    return width * height
