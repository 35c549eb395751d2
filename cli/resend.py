"""`cc resend`: send the records of runs that a tracking server missed while it was down."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cli.options import AsJson


def resend(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="OUT",
            help="The --out of a cc train or cc tune, or a file or folder in it, here or on s3://.",
        ),
    ],
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="MLflow (default: $MLFLOW_TRACKING_URI, or where the run began)."),
    ] = None,
    json: AsJson = False,
) -> int:
    """Send MLflow the records it missed while it was down.

    Also recovers what a killed training logged. Sending the same records twice is harmless.
    """
    from cli import show
    from pipelines.run_log.resend import resend_runs

    reports = resend_runs(places, tracking_uri)
    if json:
        show.as_json({"runs": [asdict(report) for report in reports]})
        return 0
    for report in reports:
        show.line(f"sent {report.records} records of run {report.run_id} to {report.uri}")
        if report.refused:
            show.warn(f"the server refused {report.refused} records; they are in {report.place}")
    if not reports:
        show.warn("nothing to send: the server has all records")
    return 0
