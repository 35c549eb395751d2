"""`cc ui`: MLflow's pages on this machine, with all runs or the trials of one study."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.options import TrackingUri


def ui(
    study: Annotated[
        str | None,
        typer.Argument(help="A study of cc tune, to compare its trials (default: all runs)."),
    ] = None,
    tracking_uri: TrackingUri = None,
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port to serve on (default: 5000, or any free port)."),
    ] = None,
    open_page: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open a browser (default: if there is a display)."),
    ] = None,
) -> int:
    """Show all runs in MLflow, or compare a study's trials.

    Serves MLflow's pages on this machine until Ctrl-C. If the tracking URI is a
    server, only prints the link to its pages.
    """
    from cli import show
    from pipelines.pages.server import free_port, has_display, is_server, page_address, served
    from pipelines.pages.view import runs_link, study_link
    from pipelines.tracking.store import resolve_tracking_uri

    uri = resolve_tracking_uri(tracking_uri, Path.cwd())
    in_browser = has_display() if open_page is None else open_page
    number = 0 if is_server(uri) else free_port(host, port)
    at = page_address(uri, host, number)
    link = runs_link(uri, at) if study is None else study_link(uri, at, study)
    if is_server(uri):
        _present(link, in_browser=in_browser)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    show.warn("starting MLflow's server")
    try:
        with served(uri, host, number) as server:
            _present(link, in_browser=in_browser)
            show.warn("press Ctrl-C to stop")
            server.wait()
    except KeyboardInterrupt:
        pass
    return 0


def _present(link: str, *, in_browser: bool) -> None:
    import webbrowser

    print(link, flush=True)
    if in_browser:
        webbrowser.open(link)
