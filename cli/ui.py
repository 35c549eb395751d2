"""`cc ui`: MLflow's pages on this machine, where runs and the trials of a study are compared.

`cc ui STUDY` opens the page of one study; `cc ui import` sends what a tracking server missed.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.options import TrackingUri

IMPORT = "import"


def ui(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STUDY | import FILE|FOLDER...]",
            help="A study of cc tune, to compare its trials. Or import: send what a tracking "
            "server missed while it was away, from the --out of the trainings.",
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
    host: Annotated[str, typer.Option(help="Loopback unless you say otherwise.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: 5000 if that is free.")
    ] = None,
    open_page: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="In the browser; default: if there is a display."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Of import: print one JSON object.")] = False,
) -> int:
    """Show the runs, or a study's trials side by side, until Ctrl-C; import what a server missed.

    Where MLflow has a server already, only the link is shown.
    """
    first, *rest = words or [""]
    if first == IMPORT:
        return _import(rest, tracking_uri, json=json)
    if rest:
        raise typer.BadParameter(
            f"expected one study, got {len(rest) + 1}: {first} {' '.join(rest)}"
        )
    _serve(first or None, tracking_uri, host, port, open_page)
    return 0


def _serve(
    study: str | None, tracking_uri: str | None, host: str, port: int | None, open_page: bool | None
) -> None:
    from cli import show
    from pipelines.pages.server import free_port, has_display, is_server, place, served
    from pipelines.pages.view import runs_link, study_link
    from pipelines.tracking.store import tracking_uri as choose

    uri = choose(tracking_uri, Path.cwd())
    shown = has_display() if open_page is None else open_page
    number = 0 if is_server(uri) else free_port(host, port)
    at = place(uri, host, number)
    link = runs_link(uri, at) if study is None else study_link(uri, at, study)
    if is_server(uri):
        _present(link, in_browser=shown)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    show.warn("starting MLflow's pages")
    try:
        with served(uri, host, number) as server:
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


def _import(places: Sequence[str], tracking_uri: str | None, *, json: bool) -> int:
    from cli import show
    from pipelines.run_log.resend import import_runs

    if not places:
        raise typer.BadParameter("expected the --out of a training, or a file of records")
    reports = import_runs(places, tracking_uri)
    if json:
        show.as_json({"runs": [asdict(report) for report in reports]})
        return 0
    for report in reports:
        print(f"{report.records} records of run {report.run_id} sent to {report.uri}")
        if report.refused:
            show.warn(f"{report.refused} records were refused, and lie in {report.place}")
    if not reports:
        show.warn("nothing to import: everything was sent")
    return 0
