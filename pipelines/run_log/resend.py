"""The job of `cc resend`: send the records that a tracking server missed while it was down."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from colorcore.storage.location import open_store
from pipelines.errors import JobError
from pipelines.run_log.delivery import deliver
from pipelines.run_log.spool import Spool, download, find_spools, forget
from pipelines.tracking.redact import without_secrets
from pipelines.tracking.store import client_for

PATIENCE_S = 10.0
"""Seconds to wait for a server that is down: the user is watching, and can run it again."""


@dataclass(frozen=True, slots=True)
class ResendReport:
    """The number of records sent from one spool; ``place`` holds the refused ones."""

    run_id: str
    uri: str
    records: int
    refused: int
    place: str


def resend_runs(places: Sequence[str], tracking_uri: str | None = None) -> list[ResendReport]:
    """Send all spools at these places: the --out of trainings, or files and folders in it.

    Places may be on s3://. The records go to ``tracking_uri``, else to $MLFLOW_TRACKING_URI, else
    to the store in which the run began. A spool is deleted once everything is sent.

    Raises:
        JobError: there is nothing at a place, its training still runs, the server does not answer,
            or it does not have the run.
    """
    return [report for place in places for report in _resend(place, tracking_uri)]


def _resend(place: str, asked: str | None) -> Iterator[ResendReport]:
    store = open_store(place)
    if store.local is not None:
        for spool in find_spools(store.local):
            yield _send(spool, asked, str(spool.folder))
        return
    with tempfile.TemporaryDirectory(prefix="colorcore-resend-") as folder:
        download(store, Path(folder))
        for spool in find_spools(Path(folder)):
            below = spool.folder.relative_to(folder).as_posix()
            there = store if below == "." else store.below(below)
            yield _send(spool, asked, there.show())
            forget(there)


def _send(spool: Spool, asked: str | None, place: str) -> ResendReport:
    first = spool.header()
    run_id = str(first["run_id"])
    if not spool.acquire(0.0):
        raise JobError(
            f"{place} belongs to a training that still runs and sends it; wait until it ends"
        )
    try:
        uri = asked or os.environ.get("MLFLOW_TRACKING_URI") or str(first["uri"])
        _require_run(uri, run_id)
        records = spool.unsent()
        if why := deliver(uri, run_id, spool, PATIENCE_S):
            raise JobError(f"cannot send {place} to {without_secrets(uri)}: {why}; try again later")
    except JobError:
        spool.close()
        raise
    refused = spool.refused()
    spool.remove()
    return ResendReport(run_id, without_secrets(uri), records - refused, refused, place)


def _require_run(uri: str, run_id: str) -> None:
    """Check that the store has the run: a wrong store would refuse every single record."""
    from mlflow.exceptions import MlflowException

    try:
        client_for(uri).get_run(run_id)
    except MlflowException as error:
        raise JobError(
            f"expected the run {run_id} in the tracking store {without_secrets(uri)}, found none; "
            "name the store in which it began with --tracking-uri"
        ) from error
