"""Who may use the server, and what a browser may do with its answers; for each request.

Without a token only programs of this machine can connect, among them browsers that show pages of
strangers. Those pages can send requests here, so three checks hold for all requests:

- The Host header names this machine. A page whose own name was pointed at 127.0.0.1 (DNS
  rebinding) would send that name.
- A request that changes or computes something comes from a page of this server, or from no page:
  browsers name the page in Origin and Sec-Fetch-Site.
- Answers hold no CORS header, so no other page can read them.

With a token, every request but ``GET /healthz`` needs it: as ``Authorization: Bearer``, or as the
cookie that a visit of ``/?token=…`` leaves. Host names are then the user's own business.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.refused import Incoming, Refused
from pipelines.serving.settings import is_loopback

HEALTH = "/healthz"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Access:
    """Lets requests through to the application, or answers them itself."""

    def __init__(self, app: ASGIApp, token: str | None, port: int) -> None:
        self._app, self._token = app, token
        # Browsers send a host's cookies to all its ports.
        self._cookie = f"colorcore-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request; all answers get the headers that restrict what a browser may do."""
        if scope["type"] != "http":
            return

        async def send_restricted(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        receive = Incoming(receive)
        request = Request(scope)
        try:
            if await self._is_first_visit(request, send_restricted):
                return
            self._check(request)
        except Refused as refused:
            await refused.answer(scope, receive, send_restricted)
            return
        await self._app(scope, receive, send_restricted)

    def _check(self, request: Request) -> None:
        host = request.headers.get("host", "")
        if self._token is None:
            if not is_loopback(_hostname(host)):
                raise Refused(
                    403, "host", f"expected the host 127.0.0.1 or localhost, got {host[:100]!r}"
                )
        elif request.url.path != HEALTH and not self._knows(request):
            raise Refused(
                401,
                "token",
                "expected the token of this server, as Authorization: Bearer TOKEN, or open "
                "/?token=TOKEN in a browser",
                {"WWW-Authenticate": "Bearer"},
            )
        if request.method not in {"GET", "HEAD"} and not _is_ours(request, host):
            raise Refused(
                403,
                "origin",
                "expected a request from this server's own page, got one from another site",
            )

    async def _is_first_visit(self, request: Request, send: Send) -> bool:
        """Whether this was a visit of ``/?token=…``, which got its cookie; the page follows."""
        given = request.query_params.get("token")
        if self._token is None or given is None or request.url.path != "/":
            return False
        if not _same(given, self._token):
            return False
        response = RedirectResponse("/", 303)
        response.set_cookie(
            self._cookie,
            _proof(self._token),
            httponly=True,
            samesite="lax",  # strict would be left out of the redirect after a link in a mail
            secure=request.url.scheme == "https",
        )
        await response(request.scope, request.receive, send)
        return True

    def _knows(self, request: Request) -> bool:
        assert self._token is not None  # noqa: S101 - for mypy
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return _same(given.strip(), self._token)
        return _same(request.cookies.get(self._cookie, ""), _proof(self._token))


def _same(given: str, expected: str) -> bool:
    """Whether two strings are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _proof(token: str) -> str:
    """What the cookie holds: it shows that the browser had the token, and is not the token."""
    return hmac.new(token.encode(), b"colorcore serve: cookie", hashlib.sha256).hexdigest()


def _hostname(netloc: str) -> str:
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_ours(request: Request, host: str) -> bool:
    """Whether no page, or a page of this server, sent the request."""
    origin = request.headers.get("origin")
    if origin is not None:
        return origin.partition("://")[2].lower() == host.lower()
    return request.headers.get("sec-fetch-site", "none") in {"same-origin", "none"}
