"""MLflow: where runs are written, how one begins and ends, and the pages that show them.

Default store: SQLite ``mlflow.db`` in the current folder, artifacts in ``mlartifacts`` beside
it. A server is used with ``--tracking-uri`` or ``MLFLOW_TRACKING_URI``. No telemetry.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.storage.location import open_store
from colorcore.storage.store import StorageError, Store
from pipelines.errors import WrongCallError
from pipelines.run_log.delivery import Delivery, NotTakenError, deliver
from pipelines.run_log.log import HANDOVER_S
from pipelines.run_log.spool import (
    Spool,
    fetch_spools,
    forget,
    header,
    parts_of,
    remote_spool,
    spool_folder,
    upload,
)
from pipelines.tracking.names import KIND_TAG, PARENT_TAG
from pipelines.tracking.provenance import provenance
from pipelines.tracking.redact import without_secrets
from pipelines.tracking.store import (
    PATIENCE_S,
    TrackedRun,
    client_for,
    experiment_of,
    run_exists,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient


PARAMS_A_BATCH = 100
"""As many as MLflow takes at once."""
KILLED_PATIENCE_S = 10.0
"""Seconds that the end of an interrupted job waits for the server at most."""
PATIENCE = "COLORCORE_TRACKING_WAIT_S"


def start_run(
    uri: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    run_id: str | None,
    parent: str | None = None,
) -> TrackedRun:
    """Begin a run, or go on in ``run_id`` where that exists; parameters are logged once.

    A new run is tagged with what made it (:mod:`pipelines.tracking.provenance`) and, unless
    ``tags`` say another kind, as a training. Nothing that looks like a credential is stored.

    ``parent`` is the id of the run that a new one is a child of: a trial's study.
    """
    client = client_for(uri)
    experiment_id = experiment_of(client, uri)
    if run_id is not None and run_exists(client, run_id):
        client.update_run(run_id, status="RUNNING")
        started = client.get_run(run_id).info.start_time
        return TrackedRun(uri, experiment_id, run_id, _patience(), started)
    family = {} if parent is None else {PARENT_TAG: parent}
    known = {KIND_TAG: "train", **provenance(Path.cwd()), **tags, **family}
    said = {key: without_secrets(text) for key, text in known.items()}
    run = client.create_run(experiment_id, run_name=without_secrets(name), tags=said)
    _log_params(client, run.info.run_id, params)
    return TrackedRun(uri, experiment_id, run.info.run_id, _patience(), run.info.start_time)


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    listed = [Param(key, without_secrets(str(value))) for key, value in params.items()]
    for start in range(0, len(listed), PARAMS_A_BATCH):
        batch = listed[start : start + PARAMS_A_BATCH]
        client.log_batch(run_id, params=batch, synchronous=True)


def _patience() -> float:
    asked = os.environ.get(PATIENCE)
    try:
        return PATIENCE_S if not asked else max(0.0, float(asked))
    except ValueError as error:
        raise WrongCallError(f"expected seconds in {PATIENCE}, got {asked!r}") from error


@dataclass(frozen=True, slots=True)
class Unsent:
    """What a tracking server was not told of a run, and where that lies."""

    records: int
    place: str
    why: str

    def __str__(self) -> str:
        return (
            f"{self.records} records of the run could not be sent: {self.why}; nothing is lost, "
            f"once the server is back: cc ui import {shlex.quote(self.place)}"
        )


def end_run(
    run: TrackedRun,
    status: str,
    artifacts: Mapping[str, Path],
    out: Path | str | Store | None = None,
    tags: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Unsent | None:
    """Close a run as FINISHED, FAILED or KILLED, with files or folders as artifacts by name.

    A checkpoint's folder becomes the run's model, which MLflow can load and serve.

    What the run's observers could not send goes before it. A server that is away is waited for,
    ``run.patience_s`` at most; then all that is left lies in a spool in ``out`` (in a temporary
    folder where that is None), and this returns where.
    """
    folder = spool_folder(run.run_id, out)
    store = None if out is None else open_store(out)
    remote = store if store is not None and store.local is None else None
    if remote is not None:
        with contextlib.suppress(StorageError):  # what is there can be imported
            fetch_spools(remote, run.run_id, folder.parent)
    last = Spool(folder)
    now = time.time_ns() // 1_000_000
    end = {"kind": "end", "status": status, "at": now}
    try:
        last.acquire(HANDOVER_S)
        new = [] if last.records.exists() else [header_of(run)]
        adopted = [
            {"kind": "artifact", "name": name, "path": last.adopt(path, name)}
            for name, path in artifacts.items()
            if path.exists()
        ]
        said: list[dict[str, Any]] = [
            {"kind": "tag", "name": name, "text": without_secrets(text)}
            for name, text in (tags or {}).items()
        ]
        if metrics:
            said.append({"kind": "metrics", "at": now, "step": 0, "values": dict(metrics)})
        last.append([*new, *said, *adopted, end])
    except OSError as error:  # a full disk: at least its end, without a spool
        try:
            Delivery(run.uri, run.run_id, last).send_records([end])
        except NotTakenError as away:
            return Unsent(1, str(folder), f"{error}; {away}")
        return Unsent(len(artifacts), str(folder), str(error)) if artifacts else None
    patience = run.patience_s if status != "KILLED" else min(run.patience_s, KILLED_PATIENCE_S)
    # Records of other nodes first: the end comes last.
    spools = [*(spool for spool in parts_of(folder) if spool.folder != folder), last]
    why = None
    try:
        for spool in spools:
            why = deliver(run.uri, run.run_id, spool, 0.0 if why else patience) or why
    except KeyboardInterrupt:
        why = "interrupted"
    left = sum(spool.unsent() for spool in spools)
    place = str(folder.parent if len(spools) > 1 else folder)
    for spool in spools:
        done = not spool.unsent()
        spool.close()
        if remote is not None:
            with contextlib.suppress(StorageError):
                if done:
                    forget(remote_spool(spool.folder, remote))
                else:
                    place = upload(spool.folder, remote)
        if done:
            spool.remove()
    return Unsent(left, place, why or "it was interrupted") if left else None


def header_of(run: TrackedRun) -> dict[str, Any]:
    """The record that opens the spool of a run."""
    return header(run.run_id, run.experiment_id, without_secrets(run.uri))
