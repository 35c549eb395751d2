"""uvicorn with what it lacks for strangers: a time for a request's head, and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from colorcore.colorizing.compose import blas_on_one_thread
from pipelines.errors import JobError, WrongCallError
from pipelines.pages.server import family, joined
from pipelines.serving.app import application
from pipelines.serving.line import Line
from pipelines.serving.settings import PORT, ServeSettings

if TYPE_CHECKING:
    from colorcore.colorizing.colorizer import Colorizer

HEAD_S = 10.0
"""Seconds that the head of a request may take."""
CONNECTIONS = 256
"""At one time; each of them holds at most 64 kB before it has a place in the line."""
END_S = 10
"""Seconds that photos on their way may take to be finished when the server ends."""


def listen(host: str, port: int | None) -> socket.socket:
    """A socket on the port asked for; by default on 8788 if it is free, else on any free one.

    Raises:
        JobError: the port asked for is taken, or there is no such host.
    """
    failed = OSError()
    for number in (PORT, 0) if port is None else (port,):
        try:
            return socket.create_server((host, number), family=family(host), backlog=CONNECTIONS)
        except OSError as error:
            failed = error
    reason = failed.strerror or str(failed)
    is_port = failed.errno in (errno.EADDRINUSE, errno.EACCES)
    raise JobError(
        # Python's text repeats the address.
        f"cannot serve on {joined(host, port or PORT)}: {reason.partition(' (while')[0]}; choose "
        f"another {'--port' if is_port else '--host'}"
    )


class PhotoServer(uvicorn.Server):
    """A model behind a listening socket; ``run`` serves until SIGINT, SIGTERM or ``should_exit``.

    address  of the page, without the token

    Raises:
        WrongCallError: the certificate or its key cannot be read.
    """

    def __init__(
        self, colorizer: Colorizer, settings: ServeSettings, listener: socket.socket
    ) -> None:
        host, port = listener.getsockname()[:2]
        scheme = "http" if settings.certificate is None else "https"
        # Nobody can open 0.0.0.0 elsewhere.
        shown = socket.gethostname() if ipaddress.ip_address(host).is_unspecified else host
        self.address = f"{scheme}://{joined(shown, port)}/"
        self._line, self._listener = Line(settings), listener
        config = uvicorn.Config(
            application(colorizer, self._line, settings, port),
            http=_ImpatientProtocol,
            ws="none",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            access_log=False,  # addresses may hold the token
            log_config=None,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=END_S,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
        )
        # What clients do wrong is no news; our own faults are printed where they happen.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        try:
            config.load()
        except OSError as error:  # among them ssl.SSLError
            certificate = settings.certificate
            raise WrongCallError(f"cannot use the certificate {certificate}: {error}") from error
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end; photos that are under way then are finished first."""
        if threading.current_thread() is threading.main_thread():
            # uvicorn sends itself the signal once more when it has ended.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: None)
        with blas_on_one_thread():
            super().run(sockets or [self._listener])
        self._line.end()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the line first, so that what waits there does not delay the end."""
        self._line.close()
        await super().shutdown(sockets)


class _ImpatientProtocol(H11Protocol):
    """Closes connections whose request takes too long to begin: uvicorn waits for ever."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._patience is None:  # further bytes of the same head do not prolong it
            self._patience = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
