"""Requests that get no picture: a status, a reason for programs, and a line for people."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from colorcore.photos.refusal import PhotoRefused, Reason

DRAIN_S = 2.0
"""Seconds for which the rest of a refused body is read and dropped.

A connection that is closed while its client still writes is reset, and most clients then report the
reset instead of the answer.
"""
BUSY_S = 1
"""Seconds after which a client should ask again when there was no place for its photo."""
_STATUS = {
    Reason.EMPTY: 400,
    Reason.UNREADABLE: 400,
    Reason.TRUNCATED: 400,
    Reason.BOMB: 413,
    Reason.TOO_LARGE: 413,
}


class Refused(Exception):  # noqa: N818 - an answer to the client, not a fault of the program
    """An answer that is no picture.

    status   of HTTP
    reason   one word for programs
    message  one line: expected …, got …; what to do next
    """

    def __init__(
        self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.headers = dict(headers or {})

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send ``{"error": message, "reason": reason}``, once the client can hear it."""
        if Headers(scope=scope).get("expect") is None:  # else it waits for leave to send its body
            incoming = receive if isinstance(receive, Incoming) else Incoming(receive)
            await incoming.drain()
        body = json.dumps({"error": self.message, "reason": self.reason}, ensure_ascii=False)
        response = Response(f"{body}\n", self.status, self.headers, "application/json")
        await response(scope, receive, send)


def of_photo(error: PhotoRefused) -> Refused:
    """The answer for a photo that the reader refuses."""
    return Refused(_STATUS.get(error.reason, 422), str(error.reason), error.detail)


def busy(places: int) -> Refused:
    """All places are taken."""
    message = f"expected a free place, all {places} are taken; ask again after Retry-After seconds"
    return Refused(429, "busy", message, {"Retry-After": str(BUSY_S)})


def closing() -> Refused:
    """The server is about to end."""
    message = "expected a running server, this one is shutting down; ask again once it is back"
    return Refused(503, "shutting_down", message, {"Connection": "close"})


class Incoming:
    """The messages of a request, and whether there are more."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.over = False

    async def __call__(self) -> Message:
        """The next part of the body, or that the client has gone."""
        message = await self._receive()
        self.over = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Drop what is left of the body, for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not self.over:
                    await self()
