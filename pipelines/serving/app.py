"""The server's addresses.

``GET /``           the page, with ``/page.css``, ``/page.js`` and ``/slider.js``
``POST /colorize``  a photo's bytes -> its picture's, those that `cc colorize` writes
``POST /preview``   a photo's bytes -> two JPEGs of at most 1,600 pixels, for the page
``GET /healthz``    ``{"status": "ok"}``
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipelines.serving.access import HEALTH, Access
from pipelines.serving.page import page_files
from pipelines.serving.photos import PhotoEndpoint

if TYPE_CHECKING:
    from colorcore.colorizing.colorizer import Colorizer
    from pipelines.serving.line import Line
    from pipelines.serving.settings import ServeSettings


def application(colorizer: Colorizer, line: Line, settings: ServeSettings, port: int) -> Access:
    """The ASGI application: the addresses above behind the checks of :class:`Access`."""
    photos = {
        path: PhotoEndpoint(line, colorizer, settings, preview=path == "/preview")
        for path in ("/colorize", "/preview")
    }
    files = page_files(colorizer, settings)
    routes = [
        *(Route(path, _file(data, kind)) for path, (data, kind) in files.items()),
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in photos.items()),
        Route(HEALTH, _health),
    ]
    app = Starlette(routes=routes, exception_handlers={404: _no_address, 405: _no_address})
    return Access(app, settings.token, port)


def _file(data: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    return answer


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _no_address(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    message = "expected POST /colorize, GET / or GET /healthz, got another address or method"
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse({"error": message, "reason": "address"}, status, headers)
