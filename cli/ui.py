"""`cc ui`: MLflow's pages on this machine, where runs and the trials of a study are compared."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer


def ui(
    study: Annotated[
        str | None, typer.Argument(help="A study of cc tune; its trials are compared.")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow; default: $MLFLOW_TRACKING_URI or ./mlflow.db")
    ] = None,
    host: Annotated[str, typer.Option(help="Loopback unless you say otherwise.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: 5000 if that is free.")
    ] = None,
    open_page: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="In the browser; default: if there is a display."),
    ] = None,
) -> None:
    """Show the runs, or a study's trials side by side; serves the pages until Ctrl-C.

    Where MLflow has a server already, only the link is shown.
    """
    _serve(study, tracking_uri, host, port, open_page)


def _serve(
    study: str | None, tracking_uri: str | None, host: str, port: int | None, open_page: bool | None
) -> None:
    from cli import show
    from pipelines import ui as pages
    from pipelines.tracking import tracking_uri as choose

    uri = choose(tracking_uri, Path.cwd())
    shown = pages.has_display() if open_page is None else open_page
    number = 0 if pages.is_server(uri) else pages.free_port(host, port)
    at = pages.place(uri, host, number)
    link = pages.runs_link(uri, at) if study is None else pages.study_link(uri, at, study)
    if pages.is_server(uri):
        _present(link, in_browser=shown)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    show.warn("starting MLflow's pages")
    try:
        with pages.served(uri, host, number) as server:
            _present(link, in_browser=shown)
            show.warn("stop with Ctrl-C")
            server.wait()
    except KeyboardInterrupt:
        return


def _present(link: str, *, in_browser: bool) -> None:
    import webbrowser

    print(link, flush=True)
    if in_browser:
        webbrowser.open(link)
