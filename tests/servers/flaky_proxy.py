"""An HTTP proxy that fails on purpose, by a rule. Standard library only.

    python -m tests.servers.flaky_proxy TARGET RULE      TARGET is HOST:PORT

A rule is ``KIND:N`` and makes each N-th request fail, counted from when the rule was set:

    none      nothing fails
    all       short for every:1
    every:N   is answered 503 SlowDown, as S3 does when it is busy; the target does not see it
    drop:N    the connection closes in the middle: of the request's body if it has one (the
              target does not see it), else of the answer's, else before any answer
    lost:N    the target does it, the connection closes without an answer
    hang:N:S  no answer for S seconds, then the connection closes

With ``@METHOD`` behind it, ``drop:3@GET``, only requests of that method count and fail; with
``@METHOD~END`` those whose path ends so, too: ``hang:1:9@GET~.tar``.

``/__control?fail=RULE`` sets a rule and clears the counts, ``/__count`` gives them as JSON:
requests (all), counted (those that the rule is about) and failures.

All else passes unchanged, Host and the signed headers too, in pieces as it comes.
"""

from __future__ import annotations

import functools
import http.client
import json
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.servers.child import Parent, child
from tests.servers.s3 import S3

PIECE = 65536
# Headers of one connection, not of the message. Transfer-Encoding is handled beside them.
OF_CONNECTION = {"connection", "keep-alive", "proxy-connection", "te", "upgrade", "expect"}
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message>"
    b"<RequestId>0</RequestId><HostId>0</HostId></Error>"
)


@dataclass(frozen=True)
class Rule:
    kind: str = "none"
    every: int = 1
    seconds: float = 0.0
    method: str = ""
    ending: str = ""

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read a rule; ValueError when it is none."""
        text, _, which = text.partition("@")
        method, _, ending = which.partition("~")
        kind, *numbers = text.split(":")
        if kind in ("none", "all") and not numbers:
            return cls("none" if kind == "none" else "every", method=method, ending=ending)
        if kind not in ("every", "drop", "lost", "hang") or len(numbers) != 1 + (kind == "hang"):
            raise ValueError(f"expected none, all or KIND:N, got {text!r}")
        rule = cls(kind, int(numbers[0]), float(numbers[-1]), method, ending)
        if rule.every < 1:
            raise ValueError(f"expected each N-th request with N >= 1, got {text!r}")
        return rule


class Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, target: str, rule: Rule) -> None:
        super().__init__((host, 0), Handler)
        self.target = target
        self._lock = threading.Lock()
        self.set(rule)

    def set(self, rule: Rule) -> None:
        with self._lock:
            self._rule, self._requests, self._counted, self._failures = rule, 0, 0, 0

    def judge(self, method: str, path: str) -> Rule:
        """Count a request; the rule by which it fails, or kind "none"."""
        with self._lock:
            self._requests += 1
            if self._rule.method not in ("", method) or not path.endswith(self._rule.ending):
                return Rule()
            self._counted += 1
            if self._rule.kind == "none" or self._counted % self._rule.every:
                return Rule()
            self._failures += 1
            return self._rule

    def counts(self) -> dict[str, int]:
        with self._lock:
            return {
                "requests": self._requests,
                "counted": self._counted,
                "failures": self._failures,
            }

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def handle_method(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/__control":
            self._control(urllib.parse.parse_qs(url.query))
            return
        if url.path == "/__count":
            self._answer(200, json.dumps(self.server.counts()).encode(), "application/json")
            return
        rule = self.server.judge(self.command, url.path)
        if rule.kind == "every":
            for _ in self._body():
                pass
            self._answer(503, SLOW_DOWN, "application/xml")
        elif rule.kind == "hang":
            time.sleep(rule.seconds)
            self._cut()
        elif rule.kind == "drop" and self._body_size() != 0:
            size = self._body_size()
            if size is None:
                next(self._body())
            else:
                self.rfile.read(size // 2)
            self._cut()
        else:
            self._forward(rule.kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = do_PATCH = handle_method  # noqa: N815

    def _control(self, query: dict[str, list[str]]) -> None:
        try:
            rule = Rule.parse(query["fail"][0])
        except (KeyError, ValueError) as error:
            self._answer(400, str(error).encode(), "text/plain")
            return
        self.server.set(rule)
        self._answer(200, b"", "text/plain")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _body_size(self) -> int | None:
        """Bytes of the request's body, None if they come in chunks of unknown number."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return None
        return int(self.headers.get("Content-Length", 0))

    def _body(self) -> Iterator[bytes]:
        """The request's body as it stands on the wire, the frames of chunks too."""
        left = self._body_size()
        while left:
            piece = self.rfile.read1(min(left, PIECE))
            if not piece:
                raise ConnectionError("the client went away")
            left -= len(piece)
            yield piece
        while left is None:
            head = self.rfile.readline()
            size = int(head.partition(b";")[0], 16)
            yield head + self.rfile.read(size) + self.rfile.readline()
            if size == 0:
                return

    def _forward(self, kind: str) -> None:
        target = http.client.HTTPConnection(self.server.target, timeout=120)
        try:
            target.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in OF_CONNECTION:
                    target.putheader(name, value)
            target.putheader("Connection", "close")
            target.endheaders()
            for piece in self._body():
                target.send(piece)
            answer = target.getresponse()
            if kind == "lost":
                answer.read()
                self._cut()
            else:
                self._pass_on(answer, cut=kind == "drop")
        finally:
            target.close()

    def _pass_on(self, answer: http.client.HTTPResponse, cut: bool) -> None:
        size = answer.getheader("Content-Length")
        bodiless = self.command == "HEAD" or answer.status in (204, 304)
        if cut and (bodiless or size == "0"):
            self._cut()
            return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in OF_CONNECTION | {"transfer-encoding"}:
                self.send_header(name, value)
        in_chunks = not bodiless and size is None
        if in_chunks:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if bodiless:
            return
        if cut:
            self.wfile.write(answer.read(int(size) // 2) if size else b"FFFF\r\n")
            self._cut()
            return
        while piece := answer.read1(PIECE):
            self.wfile.write(b"%X\r\n%b\r\n" % (len(piece), piece) if in_chunks else piece)
        if in_chunks:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class FlakyS3(S3):
    """An S3 server behind the proxy: ``uri`` and ``endpoint`` are the proxy's.

    The helpers (put, get, keys, ...) go around it, so they neither fail nor count.
    """

    behind: str = ""

    @functools.cached_property
    def client(self) -> Any:
        return S3(self.behind).client

    def set(self, rule: str) -> None:
        """Fail by this rule from now on, and count from nought."""
        self._ask(f"/__control?fail={urllib.parse.quote(rule)}")

    def counts(self) -> dict[str, int]:
        """requests, counted and failures since the rule was set."""
        counts: dict[str, int] = json.loads(self._ask("/__count"))
        return counts

    def _ask(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.endpoint, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(body.decode())
        return body


@contextmanager
def flaky_proxy(target: str, rule: str = "none", host: str = "127.0.0.1") -> Iterator[FlakyS3]:
    """A proxy before the server at ``target`` ("HOST:PORT")."""
    with child("tests.servers.flaky_proxy", target, rule, host) as server:
        yield FlakyS3(server.hello["endpoint"], target)


def main(target: str, rule: str = "none", host: str = "127.0.0.1") -> None:
    parent = Parent()
    proxy = Proxy(host, target, Rule.parse(rule))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    parent.send(endpoint=f"{host}:{proxy.server_address[1]}")
    for _ in parent.requests():
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
