"""A server in a thread of this process, and requests to it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipelines.serving.server import PhotoServer, listen
from pipelines.serving.settings import ServeSettings


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def reason(self) -> str:
        """One line of JSON that says why there is no picture."""
        assert self.data.count(b"\n") == 1
        body = json.loads(self.data)
        assert set(body) == {"error", "reason"}
        assert body["error"]
        return str(body["reason"])


@dataclass(frozen=True)
class Running:
    server: PhotoServer

    @property
    def port(self) -> int:
        return urlsplit(self.server.address).port or 0

    def ask(
        self,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            verb = method or ("GET" if body is None else "POST")
            chunked = "Transfer-Encoding" in (headers or {})
            connection.request(verb, path, body, dict(headers or {}), encode_chunked=chunked)
            response = connection.getresponse()
            return Reply(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def connect(self, text: str = "") -> socket.socket:
        """A connection on which these lines were sent."""
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        raw.sendall(text.replace("\n", "\r\n").encode())
        return raw

    def upload(self, length: int, sent: bytes = b"") -> socket.socket:
        """A connection that has begun to send a photo of that many bytes."""
        head = f"POST /colorize HTTP/1.1\nHost: 127.0.0.1\nContent-Length: {length}\n\n"
        raw = self.connect(head)
        raw.sendall(sent)
        return raw


@contextmanager
def running(colorizer: Any, settings: ServeSettings | None = None) -> Iterator[Running]:
    """A server on any free port; its line must be empty at the end."""
    with listen("127.0.0.1", 0) as listener:
        server = PhotoServer(colorizer, settings or ServeSettings(), listener)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            until(lambda: server.started)
            yield Running(server)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def until(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
