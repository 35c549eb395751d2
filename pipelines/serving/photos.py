"""Requests with a photo: its bytes and what is asked for in, a picture or two previews out."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from colorcore.photos.original.read import read_original
from colorcore.photos.read import photo_header, sniff
from colorcore.photos.refusal import PhotoLimits, PhotoRefused, Reason
from pipelines.album.finishing import OUT_OF_MEMORY, Done, Finish
from pipelines.album.painting import PIXELS_AT_ONCE, Work
from pipelines.pages.before_after import jpeg_url, small_jpeg
from pipelines.serving.line import Job, Line, Place
from pipelines.serving.refused import Refused, of_photo

if TYPE_CHECKING:
    from colorcore.colorizing.colorizer import Colorizer
    from pipelines.serving.settings import ServeSettings

STALL_S = 10.0
"""Seconds after which a client that sends nothing loses its place."""
CHUNK = 64 * 1024
"""Bytes of an answer that are on their way at once, so that a slow client holds no more of it."""
FORMATS = ("png", "jpg", "tif", "webp", "avif")
"""As of `cc colorize --format`."""
MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "TIFF": "image/tiff",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "BMP": "image/bmp",
    "PPM": "image/x-portable-anymap",
}
_SWITCHES = {"": True, "1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, as `cc colorize` has it.

    suffix  format of the picture (".png"); None: that of the photo
    """

    strength: float = 1.0
    chroma: float | None = None
    temperature: float | None = None
    suffix: str | None = None
    force: bool = False


def asked_of(query: Mapping[str, str]) -> Asked:
    """The parameters of a request.

    Raises:
        Refused: one is unknown, or no such value.
    """
    known = ("strength", "chroma", "temperature", "format", "force")
    if unknown := set(query) - set(known):
        raise _bad(f"expected parameters of {', '.join(known)}, got {sorted(unknown)[0]!r:.60}")
    strength = _number(query, "strength")
    if strength is not None and not 0.0 <= strength <= 1.0:
        raise _bad(f"expected a strength within 0..1, got {strength:g}")
    suffix = query.get("format")
    if suffix is not None and suffix not in FORMATS:
        raise _bad(f"expected a format of {', '.join(FORMATS)}, got {suffix!r:.60}")
    force = query.get("force", "0").lower()
    if force not in _SWITCHES:
        raise _bad(f"expected force=true or force=false, got {force!r:.60}")
    return Asked(
        1.0 if strength is None else strength,
        _number(query, "chroma"),
        _number(query, "temperature"),
        None if suffix is None else f".{suffix}",
        _SWITCHES[force],
    )


def _number(query: Mapping[str, str], name: str) -> float | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _bad(f"expected a number for {name}, got {text!r:.60}")
    return value


def _bad(message: str) -> Refused:
    return Refused(400, "parameter", message)


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of an answer."""

    data: bytes
    media_type: str


class PhotoEndpoint:
    """An ASGI application: a photo as the body of a POST -> a picture, or previews for the page."""

    def __init__(
        self, line: Line, colorizer: Colorizer, settings: ServeSettings, *, preview: bool
    ) -> None:
        self._line, self._colorizer, self._settings = line, colorizer, settings
        self._preview = preview

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; nothing of it is left afterwards."""
        request = Request(scope, receive)
        try:
            asked = asked_of(request.query_params)
            colorizer = self._decoded_as(asked)
            most = self._settings.max_bytes
            _check_kind(request, most)
            with self._line.place() as place:
                async with self._line.arrival():
                    data = await receive_body(request, most)
                if data is not None:
                    work = Work("the photo", data)
                    del data  # the work drops it once it is decoded
                    answer = await self._answer(place, work, asked, colorizer, receive)
                    if answer is not None:
                        await self._send(send, answer)
        except Refused as refused:
            await refused.answer(scope, receive, send)

    def _decoded_as(self, asked: Asked) -> Colorizer:
        try:
            return self._colorizer.with_decoding(asked.temperature, asked.chroma)
        except ValueError as error:
            raise _bad(str(error)) from error

    async def _answer(
        self, place: Place, work: Work, asked: Asked, colorizer: Colorizer, receive: Receive
    ) -> Answer | None:
        """The answer; None if the client has gone."""
        limits = self._settings.limits
        try:
            pixels = await self._line.aside(partial(pixels_needed, work.data, limits))
        except PhotoRefused as error:
            raise of_photo(error) from error
        finish = self._finish(Finish(asked.suffix, asked.strength, False, self._preview))
        job = Job(work, pixels, colorizer, asked.force, finish)
        gone = asyncio.create_task(_disconnect(receive))
        try:
            made = await self._line.run(place, job, gone)
        finally:
            gone.cancel()
        if isinstance(made, Refused):
            raise made
        answer: Answer | None = made
        return answer

    def _finish(self, finish: Finish) -> Callable[[Work, Exception | None], Answer | Refused]:
        def finished(work: Work, cause: Exception | None) -> Answer | Refused:
            done = finish(work, cause)
            try:
                return _answer_of(done)
            except Exception as error:  # such as too little memory for a preview
                return _fault(error)

        return finished

    async def _send(self, send: Send, answer: Answer) -> None:
        """Send an answer piece by piece; a client that takes too long gets only a part of it."""
        headers = [
            (b"content-type", answer.media_type.encode()),
            (b"content-length", str(len(answer.data)).encode()),
        ]
        left = memoryview(answer.data)
        try:
            async with asyncio.timeout(self._settings.timeout):
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                while left:
                    chunk, left = bytes(left[:CHUNK]), left[CHUNK:]
                    message = {"type": "http.response.body", "body": chunk, "more_body": bool(left)}
                    await send(message)
        except TimeoutError:  # uvicorn closes the connection of an answer that is not complete
            return


async def _disconnect(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


# -- what comes in -------------------------------------------------------------------------------


def _check_kind(request: Request, most: int) -> None:
    """Refuse bodies that are no file, or by their own account too large."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        raise Refused(
            415,
            "form",
            "expected the photo's bytes as the body, got a form; use curl --data-binary @photo.jpg",
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "encoding", "expected a body that is not compressed, got one that is")
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > most:  # h11 takes digits only
        raise _too_large(most, declared)


def _too_large(most: int, got: str) -> Refused:
    message = f"expected at most {most} bytes, got {got}; send a smaller photo"
    return Refused(413, str(Reason.TOO_LARGE), message)


async def receive_body(request: Request, most: int) -> bytes | None:
    """The body of a request, at most so many bytes; None if the client has gone.

    Raises:
        Refused: there are more, or none, or the client has stopped sending.
    """
    body = bytearray()
    while True:
        try:
            async with asyncio.timeout(STALL_S):
                message = await request.receive()
        except TimeoutError as error:
            text = f"expected the rest of the photo, got nothing for {STALL_S:g} s; send it again"
            raise Refused(408, "slow", text, {"Connection": "close"}) from error
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > most:
            raise _too_large(most, f"{len(body)} or more")
        if not message.get("more_body", False):
            return bytes(body)


def pixels_needed(data: bytes, limits: PhotoLimits) -> int:
    """Pixels for which a photo must wait: those of its header.

    A file of several pages, or whose header only its decoder can read, waits until it is alone.

    Raises:
        PhotoRefused: it is no photo, or has more pixels than allowed.
    """
    pages = len(read_original(data, limits=limits))
    if sniff(data) is None:  # of a format that a plugin reads
        return PIXELS_AT_ONCE
    _, width, height = photo_header(data)
    if width * height > limits.max_pixels:
        detail = f"expected at most {limits.max_pixels} pixels, got {width}x{height}"
        raise PhotoRefused(Reason.BOMB, detail)
    return width * height if pages == 1 else PIXELS_AT_ONCE


# -- what goes out -------------------------------------------------------------------------------


def _answer_of(done: Done) -> Answer | Refused:
    if refused := _refusal_of(done):
        return refused
    if done.before is None or done.after is None:
        return Answer(done.data, MEDIA_TYPES[photo_header(done.data)[0]])
    urls = {
        name: jpeg_url(small_jpeg(picture))
        for name, picture in (("before", done.before), ("after", done.after))
    }
    return Answer(json.dumps(urls).encode(), "application/json")


def _refusal_of(done: Done) -> Refused | None:
    if done.unexpected is not None:
        return _fault(done.unexpected)
    if done.colored:
        message = "expected a photo without colours, got one that has some; ask with force=true"
        return Refused(422, "in_color", message)
    if done.reason is not None:
        return of_photo(PhotoRefused(done.reason, done.refused.partition(": ")[2]))
    if done.refused == OUT_OF_MEMORY:
        return Refused(503, "memory", "expected a photo that fits into memory, ran out of it")
    if done.refused:
        return Refused(422, "format", done.refused.replace("--format ", "format="))
    return None


def _fault(error: Exception) -> Refused:
    """The answer to a fault of ours, which the server's own output names."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"error: {text[:300]}", file=sys.stderr, flush=True)  # noqa: T201
    return Refused(500, "fault", "unexpected error; the output of cc serve names it")
