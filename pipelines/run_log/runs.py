"""The beginning and the end of a run in MLflow."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorcore.storage.location import open_store
from colorcore.storage.store import StorageError, Store
from pipelines.errors import WrongCallError
from pipelines.run_log.delivery import Delivery, NotTakenError, deliver, now_ms
from pipelines.run_log.log import HANDOVER_S
from pipelines.run_log.spool import (
    Record,
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


PARAMS_PER_CALL = 100
"""As many as MLflow accepts in one call."""
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
    """Begin a run with these parameters, or continue ``run_id`` if the store has it.

    A new run is tagged with its provenance (:mod:`pipelines.tracking.provenance`) and, unless
    ``tags`` contain another kind, as a training. Nothing that looks like a credential is stored.

    ``parent`` is the id of the run that a new one is nested under, which for a trial is its study.
    """
    client = client_for(uri)
    experiment_id = experiment_of(client, uri)
    if run_id is not None and run_exists(client, run_id):
        client.update_run(run_id, status="RUNNING")
        started = client.get_run(run_id).info.start_time
        return TrackedRun(uri, experiment_id, run_id, _patience(), started)
    family = {} if parent is None else {PARENT_TAG: parent}
    known = {KIND_TAG: "train", **provenance(Path.cwd()), **tags, **family}
    clean = {key: without_secrets(text) for key, text in known.items()}
    run = client.create_run(experiment_id, run_name=without_secrets(name), tags=clean)
    _log_params(client, run.info.run_id, params)
    return TrackedRun(uri, experiment_id, run.info.run_id, _patience(), run.info.start_time)


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    listed = [Param(key, without_secrets(str(value))) for key, value in params.items()]
    for start in range(0, len(listed), PARAMS_PER_CALL):
        batch = listed[start : start + PARAMS_PER_CALL]
        client.log_batch(run_id, params=batch, synchronous=True)


def _patience() -> float:
    asked = os.environ.get(PATIENCE)
    try:
        return PATIENCE_S if not asked else max(0.0, float(asked))
    except ValueError as error:
        raise WrongCallError(f"expected seconds in {PATIENCE}, got {asked!r}") from error


@dataclass(frozen=True, slots=True)
class Unsent:
    """The records of a run that the tracking server did not receive, and where they are."""

    records: int
    place: str
    why: str

    def __str__(self) -> str:
        return (
            f"{self.records} records could not be sent: {self.why}. Nothing is lost; once the "
            f"server is back, run: cc resend {shlex.quote(self.place)}"
        )


def end_run(
    run: TrackedRun,
    status: str,
    artifacts: Mapping[str, Path],
    out: Path | str | Store | None = None,
    tags: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Unsent | None:
    """End a run as FINISHED, FAILED or KILLED, with files or folders as artifacts by name.

    A checkpoint's folder becomes the run's model, which MLflow can load and serve.

    Sends what the run's observers could not send, then the end. It waits up to ``run.patience_s``
    for a server that is down; records that are left then stay in a spool in ``out`` (in a temporary
    folder if that is None), and are reported.
    """
    folder = spool_folder(run.run_id, out)
    store = None if out is None else open_store(out)
    remote = store if store is not None and store.local is None else None
    if remote is not None:
        with contextlib.suppress(StorageError, OSError):  # they stay there, for cc resend
            fetch_spools(remote, run.run_id, folder.parent)
    last = Spool(folder)
    end: Record = {"kind": "end", "status": status, "at": now_ms()}
    try:
        last.acquire(HANDOVER_S)
        last.append([*_last_records(run, last, artifacts, tags or {}, metrics or {}), end])
    except OSError as error:
        # A full disk takes no spool, and must not leave the run RUNNING for ever.
        try:
            Delivery(run.uri, run.run_id, last).send_records([end])
        except NotTakenError as down:
            return Unsent(1, str(folder), f"{error}; {down}")
        return Unsent(len(artifacts), str(folder), str(error)) if artifacts else None
    patience = run.patience_s if status != "KILLED" else min(run.patience_s, KILLED_PATIENCE_S)
    # Other nodes' records go first: metrics that arrive after a run's end look like a mistake.
    spools = [*(spool for spool in parts_of(folder) if spool.folder != folder), last]
    why = None
    try:
        for spool in spools:
            # One wait is enough: a server that was down for one spool gets one try for the others.
            why = deliver(run.uri, run.run_id, spool, 0.0 if why else patience) or why
    except KeyboardInterrupt:
        why = "interrupted"
    left = sum(spool.unsent() for spool in spools)
    place = str(folder.parent if len(spools) > 1 else folder)
    for spool in spools:
        done = not spool.unsent()
        spool.close()
        if remote is not None:
            with contextlib.suppress(StorageError, OSError):  # then the local copy is all there is
                if done:
                    forget(remote_spool(spool.folder, remote))
                else:
                    place = upload(spool.folder, remote)
        if done:
            spool.remove()
    return Unsent(left, place, why or "interrupted") if left else None


def _last_records(
    run: TrackedRun,
    spool: Spool,
    artifacts: Mapping[str, Path],
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
) -> list[Record]:
    """What a run's end logs, and the spool's header if nothing was left in it."""
    records: list[Record] = [] if spool.records.exists() else [header(run.run_id, run.uri)]
    for name, text in tags.items():
        records.append({"kind": "tag", "name": name, "text": without_secrets(text)})
    if metrics:
        records.append({"kind": "metrics", "at": now_ms(), "step": 0, "values": dict(metrics)})
    for name, path in artifacts.items():
        if path.exists():
            records.append({"kind": "artifact", "name": name, "path": spool.adopt(path, name)})
    return records
