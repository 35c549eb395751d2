"""`cc ui`: MLflow's pages on this machine, where the runs of cc train are compared.

`cc ui STUDY` opens the page of one study; `cc ui import` sends what a tracking server missed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

IMPORT = "import"


def ui(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STUDY | import FILE|FOLDER...]",
            help="A study, to compare its trials. Or import: send what a tracking server missed "
            "while it was away, from the --out of the trainings.",
        ),
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow; default: $MLFLOW_TRACKING_URI or ./mlflow.db")
    ] = None,
    host: Annotated[str, typer.Option(help="Loopback unless you say otherwise.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    json: Annotated[bool, typer.Option("--json", help="Of import: print one JSON object.")] = False,
) -> int:
    """Serve the runs in a browser until Ctrl-C; or import what a server missed."""
    first, *rest = words or [""]
    if first == IMPORT:
        return _import(rest, tracking_uri, json=json)
    if rest:
        raise typer.BadParameter(
            f"expected one study, got {len(rest) + 1}: {first} {' '.join(rest)}"
        )
    _serve(first or None, tracking_uri, host, port)
    return 0


def _serve(study: str | None, tracking_uri: str | None, host: str, port: int) -> None:
    from cli import show
    from pipelines.tracking import ui_command, ui_link

    command, environment = ui_command(tracking_uri, Path.cwd(), host, port)
    link = ui_link(tracking_uri, Path.cwd(), host, port, study)
    show.warn(f"runs: {link}   (stop with Ctrl-C)")
    sys.stderr.flush()
    os.execve(command[0], command, {**os.environ, **environment})  # noqa: S606


def _import(places: Sequence[str], tracking_uri: str | None, *, json: bool) -> int:
    from cli import show
    from pipelines.run_import import import_runs

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
