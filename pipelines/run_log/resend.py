"""The job of `cc ui import`: what a tracking server missed while it was away, sent after all."""

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
"""Seconds that a server which is away is waited for."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What was sent of one spool; ``place`` is where those records lie that were refused."""

    run_id: str
    uri: str
    records: int
    refused: int
    place: str


def import_runs(places: Sequence[str], tracking_uri: str | None = None) -> list[ImportReport]:
    """Send all spools at these places: files, folders, or the --out of trainings, also on s3://.

    They go to ``tracking_uri``, or $MLFLOW_TRACKING_URI, or where they should have gone. A
    spool of which all was sent is removed; sending the same again stores nothing twice.

    Raises:
        JobError: nothing is there, its training still runs, the server does not answer, or it
            does not know the run.
    """
    return [report for place in places for report in _import(place, tracking_uri)]


def _import(place: str, asked: str | None) -> Iterator[ImportReport]:
    store = open_store(place)
    if store.local is not None:
        for spool in find_spools(store.local):
            yield _send(spool, asked, str(spool.folder))
        return
    with tempfile.TemporaryDirectory(prefix="colorcore-import-") as folder:
        download(store, Path(folder))
        for spool in find_spools(Path(folder)):
            below = spool.folder.relative_to(folder).as_posix()
            there = store if below == "." else store.below(below)
            yield _send(spool, asked, there.show())
            forget(there)


def _send(spool: Spool, asked: str | None, place: str) -> ImportReport:
    first = spool.header()
    run_id = str(first["run_id"])
    if not spool.acquire(0.0):
        raise JobError(f"{place} is being written: its training still runs, and sends it by itself")
    try:
        uri = asked or os.environ.get("MLFLOW_TRACKING_URI") or str(first["uri"])
        _require_run(uri, run_id)
        records = spool.unsent()
        if why := deliver(uri, run_id, spool, PATIENCE_S):
            raise JobError(f"could not send {place} to {without_secrets(uri)}: {why}; try it again")
    except JobError:
        spool.close()
        raise
    refused = spool.refused()
    spool.remove()
    return ImportReport(run_id, without_secrets(uri), records - refused, refused, place)


def _require_run(uri: str, run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client_for(uri).get_run(run_id)
    except MlflowException as error:
        raise JobError(
            f"expected the run {run_id} in the tracking store {without_secrets(uri)}, found none; "
            "name the store that it began in with --tracking-uri"
        ) from error
