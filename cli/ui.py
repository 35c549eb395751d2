"""`cc ui`: MLflow's pages on this machine, where the runs of cc train are compared.

`cc ui STUDY` names the page of one study, where its trials are compared.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def ui(
    study: Annotated[str | None, typer.Argument(help="Compare the trials of this one.")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow; default: $MLFLOW_TRACKING_URI or ./mlflow.db")
    ] = None,
    host: Annotated[str, typer.Option(help="Loopback unless you say otherwise.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Serve the runs in a browser until Ctrl-C; those of a study, if one is named."""
    from cli import show
    from pipelines.tracking import ui_command, ui_link

    command, environment = ui_command(tracking_uri, Path.cwd(), host, port)
    link = ui_link(tracking_uri, Path.cwd(), host, port, study)
    show.warn(f"runs: {link}   (stop with Ctrl-C)")
    sys.stderr.flush()
    os.execve(command[0], command, {**os.environ, **environment})  # noqa: S606
