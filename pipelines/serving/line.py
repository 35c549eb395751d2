"""The line of photos that wait to be colourized: how many, how large, and for how long.

A photo takes a place before its bytes are received and keeps it until its picture is sent, so
memory is bounded by the places: the bytes of each, and the pixels of those that are under way.
Those are as many as there are threads to decode and encode them, of 48 megapixels together; a
larger photo goes alone, and so does one whose size is not known before it is decoded.

Each photo goes through the network alone. A batch would save little next to decoding and encoding,
and its last bits depend on who is in it, so a picture would depend on what strangers send.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from colorcore.colorizing.files import color_pages, open_pages
from pipelines.album.painting import PIXELS_AT_ONCE, Work
from pipelines.serving.refused import Refused, busy, closing

if TYPE_CHECKING:
    from colorcore.colorizing.colorizer import Colorizer
    from pipelines.serving.settings import ServeSettings

Result = TypeVar("Result")


@dataclass(slots=True)
class Job:
    """A photo, and what becomes of it.

    work       its bytes, later its pages
    pixels     that it needs at once
    colorizer  with the temperature and chroma that were asked for
    force      colourize it although it has colours
    finish     makes the answer, in a thread; has the last word, so it does not raise
    step       what is done with it in a thread, or waits for one
    """

    work: Work
    pixels: int
    colorizer: Colorizer
    force: bool
    finish: Callable[[Work, Exception | None], Any]
    step: Future[Any] | None = None
    begun: bool = False
    abandoned: bool = False


class AbandonedError(Exception):
    """Nobody waits for the photo any more."""


@dataclass(slots=True)
class Place:
    """A place in the line: free again when its owner has left and its work has ended."""

    work: asyncio.Task[Any] | None = None


@dataclass(slots=True)
class _Ticket:
    pixels: int
    turn: asyncio.Future[None] = field(repr=False)


class Line:
    """Photos on their way through the server; used in one event loop."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(settings.threads, "photo")
        self._network = ThreadPoolExecutor(1, "network")
        self._taken, self._running, self._pixels = 0, 0, 0
        self._waiting: deque[_Ticket] = deque()
        self._transfers: set[asyncio.Timeout] = set()
        self.closed = False

    # -- places ---------------------------------------------------------------------------------

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A place for the duration of the block.

        Raises:
            Refused: all are taken, or the server shuts down.
        """
        if self.closed:
            raise closing()
        if self._taken >= self._settings.queue:
            raise busy(self._settings.queue)
        self._taken += 1
        place = Place()
        try:
            yield place
        finally:
            if place.work is None or place.work.done():
                self._free()
            else:
                place.work.add_done_callback(self._free)

    def _free(self, _: object = None) -> None:
        self._taken -= 1

    @asynccontextmanager
    async def arrival(self) -> AsyncIterator[None]:
        """Time for the bytes of a photo; the server's end interrupts it.

        Raises:
            Refused: they took too long, or the server shuts down.
        """
        seconds = self._settings.timeout
        try:
            async with asyncio.timeout(seconds) as limit:
                self._transfers.add(limit)
                try:
                    yield
                finally:
                    self._transfers.discard(limit)
        except TimeoutError:
            if self.closed:
                raise closing() from None
            message = f"expected the photo within {seconds:g} s, got a part of it; send it faster"
            raise Refused(408, "slow", message, {"Connection": "close"}) from None

    def close(self) -> None:
        """Take no more photos; those that are under way are finished, the others refused."""
        self.closed = True
        for limit in self._transfers:
            limit.reschedule(0.0)
        for ticket in self._waiting:
            if not ticket.turn.done():
                ticket.turn.set_exception(closing())
        self._waiting.clear()

    def end(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._network.shutdown(wait=False, cancel_futures=True)

    # -- work -----------------------------------------------------------------------------------

    async def run(self, place: Place, job: Job, gone: asyncio.Task[None]) -> Any:
        """The answer that a job's ``finish`` makes; None if ``gone`` says that nobody wants it.

        Raises:
            Refused: it took too long, or the server shuts down.
        """
        place.work = asyncio.create_task(self._run(job))
        place.work.add_done_callback(_seen)
        seconds = self._settings.timeout
        done, _ = await asyncio.wait(
            {place.work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if place.work in done:
            return place.work.result()
        self._give_up(job, place.work)
        if gone in done:
            return None
        raise Refused(
            503,
            "timeout",
            f"expected a picture within {seconds:g} s, got none; ask again later, or send a "
            "smaller photo",
            {"Retry-After": str(round(seconds))},
        )

    def _give_up(self, job: Job, work: asyncio.Task[Any]) -> None:
        job.abandoned = True
        # What a thread does already cannot be stopped.
        if not job.begun or (job.step is not None and job.step.cancel()):
            work.cancel()

    async def _run(self, job: Job) -> Any:
        async with self._turn(job.pixels):
            job.begun = True
            cause: Exception | None = None
            try:
                await self._in(self._pool, job, self._open)
                await self._in(self._network, job, _color)
            except AbandonedError:
                job.work.pages.clear()
                return None
            except Exception as error:
                cause = error
            job.step = self._pool.submit(job.finish, job.work, cause)
            return await asyncio.wrap_future(job.step)

    async def _in(self, executor: Executor, job: Job, step: Callable[[Job], None]) -> None:
        def unless_abandoned() -> None:
            if job.abandoned:
                raise AbandonedError
            step(job)

        if job.abandoned:  # during the step before, which could not be stopped
            raise AbandonedError
        job.step = executor.submit(unless_abandoned)
        await asyncio.wrap_future(job.step)

    async def aside(self, call: Callable[[], Result]) -> Result:
        """Call a short function that must not hold up other requests."""
        return await asyncio.wrap_future(self._pool.submit(call))

    def _open(self, job: Job) -> None:
        data, job.work.data = job.work.data, b""
        job.work.pages += open_pages(
            data,
            self._settings.limits,
            job.colorizer.size,
            force=job.force,
            most_pixels=self._settings.max_pixels,
        )

    # -- turns ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _turn(self, pixels: int) -> AsyncIterator[None]:
        if self._waiting or not self._fits(pixels):
            await self._wait(pixels)
        else:
            self._take(pixels)
        try:
            yield
        finally:
            self._running -= 1
            self._pixels -= pixels
            self._call_next()

    async def _wait(self, pixels: int) -> None:
        ticket = _Ticket(pixels, asyncio.get_running_loop().create_future())
        self._waiting.append(ticket)
        try:
            await ticket.turn
        except asyncio.CancelledError:
            if ticket.turn.done() and not ticket.turn.cancelled():  # called a moment ago
                self._running -= 1
                self._pixels -= pixels
            with contextlib.suppress(ValueError):
                self._waiting.remove(ticket)
            self._call_next()
            raise

    def _call_next(self) -> None:
        while self._waiting and self._fits(self._waiting[0].pixels):
            ticket = self._waiting.popleft()
            if not ticket.turn.done():
                self._take(ticket.pixels)
                ticket.turn.set_result(None)

    def _fits(self, pixels: int) -> bool:
        if self._running == 0:
            return True
        # One more than there are threads: it is decoded while another is in the network.
        free = self._running <= self._settings.threads
        return free and self._pixels + pixels <= PIXELS_AT_ONCE

    def _take(self, pixels: int) -> None:
        self._running += 1
        self._pixels += pixels


def _color(job: Job) -> None:
    for error in color_pages(job.colorizer, job.work.pages).values():
        raise error


def _seen(work: asyncio.Task[Any]) -> None:
    """Read the error of work that nobody waits for, or asyncio prints it."""
    if not work.cancelled():
        work.exception()
