"""Sends the records of a spool to MLflow: in batches, with retries, past what it refuses.

Sending a record twice must be harmless, because a server may have stored what it did not live to
acknowledge. It is, as MLflow stores metrics of equal key, step, time and value once, a tag keeps
its last text, and pictures, artifacts and the model have names that do not change.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colorcore.waiting import waiting_for
from pipelines.run_log.spool import FOLDER, PICTURE_FOLDER, Record, Spool
from pipelines.tracking.mlflow_env import QUIET, environment
from pipelines.tracking.mlflow_internals import HAS_PICTURES_TAG, PICTURES
from pipelines.tracking.model import is_checkpoint, log_model
from pipelines.tracking.redact import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

SEND_EVERY_S = 1.0
"""Seconds between two batches: often enough to watch a training, rarely enough for the server."""
FIRST_PAUSE_S = 0.5
"""Pause after the first failure; it doubles with each further one."""
LONGEST_PAUSE_S = 15.0
"""Longest pause between two tries (1 s while a job waits for its end)."""
TRY_S = 10
"""Seconds after which a call counts as failed."""
UPLOAD_S = 600
"""Seconds after which the upload of a file counts as failed."""
RECORDS_AT_A_TIME = 1000
"""Records that are read at once: after a day without a server the rest may not fit into memory."""
BATCH = 500
"""Metrics in one call; MLflow accepts 1000 metrics and 100 tags."""
TAG_WEIGHT = 10
"""A tag counts as this many metrics."""
_ONE_TRY = {
    **QUIET,
    # MLflow's own retries would hide for minutes that the server is down.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TRY_S),
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": str(UPLOAD_S),
}
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"})
_BATCHED = frozenset({"run", "resumed", "metrics", "tag"})
"""Kinds of records that share a call; each other record is a call, or several, of its own."""


class NotTakenError(Exception):
    """The server is down or cannot handle the call now; the same call may work later."""


class _RefusedError(Exception):
    """The server will never accept the record."""


class Delivery:
    """Sends the records of one spool."""

    def __init__(self, uri: str, run_id: str, spool: Spool) -> None:
        self._uri, self._run_id, self._spool = uri, run_id, spool
        self._client: MlflowClient | None = None

    def tags(self) -> dict[str, str]:
        """The run's tags on the server.

        Raises:
            NotTakenError: the server does not answer.
        """
        with self._trying() as client:
            return dict(client.get_run(self._run_id).data.tags)

    def send(self) -> None:
        """Send all records that the spool holds, and note after each batch how far it got.

        Raises:
            NotTakenError: the server does not answer, or cannot handle the call now.
        """
        while records := list(
            itertools.islice(self._spool.read(self._spool.sent()), RECORDS_AT_A_TIME)
        ):
            for batch in _batches(records):
                self.send_records([record for record, _ in batch])
                # Pictures go only after the note: if this process is killed in between, they are
                # sent once more, and a picture that is gone was sent before.
                self._spool.mark(batch[-1][1])
                for record, _ in batch:
                    self._drop_pictures(record)

    def send_records(self, records: Sequence[Record]) -> None:
        """Send records in one call; if the server refuses it, one by one, without the culprits."""
        try:
            self._call(records)
        except _RefusedError as refusal:
            if len(records) == 1:
                self._spool.refuse(records[0], str(refusal))
                return
            for record in records:
                self.send_records([record])

    def _call(self, records: Sequence[Record]) -> None:
        first = records[0]
        metrics, tags = _entities(records)
        # Synchronous calls: MLflow's own queue would acknowledge what the server does not have yet.
        with self._trying() as client:
            if metrics or tags:
                client.log_batch(self._run_id, metrics=metrics, tags=tags, synchronous=True)
            elif first["kind"] == "picture":
                for path in self._pictures(first):
                    if path.is_file():  # else it was sent before
                        client.log_artifact(self._run_id, str(path), PICTURES)
                client.set_tag(self._run_id, HAS_PICTURES_TAG, "True", synchronous=True)
            elif first["kind"] == "artifact":
                self._send_artifact(client, first)
            # An end that waited for the server is out of date if the training was resumed since.
            elif first["kind"] == "end" and not self._resumed_since():
                client.set_terminated(self._run_id, first["status"], first["at"])

    def _send_artifact(self, client: MlflowClient, record: Record) -> None:
        path, name = _allowed(self._spool, record["path"]), record["name"]
        # A path that is gone is skipped: it was below --out, and its owner has deleted it since.
        if is_checkpoint(path):
            log_model(client, self._run_id, path)
        elif path.is_dir():
            client.log_artifacts(self._run_id, str(path), name)
        elif path.is_file():
            client.log_artifact(self._run_id, str(path), name if name != path.name else None)

    def _resumed_since(self) -> bool:
        return any(
            record["kind"] == "resumed" for record, _ in self._spool.read(self._spool.sent())
        )

    def _pictures(self, record: Record) -> list[Path]:
        """A record's files, by their last part only: a spool may come from somebody else."""
        folder = self._spool.folder / PICTURE_FOLDER
        return [folder / Path(name).name for name in record.get("files", ())]

    def _drop_pictures(self, record: Record) -> None:
        for path in self._pictures(record):
            with contextlib.suppress(OSError):
                path.unlink()

    @contextlib.contextmanager
    def _trying(self) -> Iterator[MlflowClient]:
        """The client, for one try of limited duration, with its errors sorted into two kinds."""
        with environment(_ONE_TRY):
            try:
                if self._client is None:
                    from mlflow import MlflowClient

                    self._client = MlflowClient(tracking_uri=self._uri)
                yield self._client
            except _RefusedError:
                raise
            # Anything else may pass, even "permission denied" while a proxy restarts. Giving up
            # here would lose records; trying again costs a call every 15 s.
            except Exception as error:
                if getattr(error, "error_code", None) in _REFUSALS:
                    raise _RefusedError(_one_line(error)) from error
                raise NotTakenError(_one_line(error)) from error


def deliver(uri: str, run_id: str, spool: Spool, patience_s: float) -> str | None:
    """Send what is left in a spool, waiting up to ``patience_s`` for a server that is down.

    Returns why records are left, or None if there are none.
    """
    end, waits = time.monotonic() + patience_s, pauses()
    delivery = Delivery(uri, run_id, spool)
    with waiting_for(f"{without_secrets(uri)}, which takes the run's last records"):
        while True:
            try:
                delivery.send()
            except NotTakenError as error:
                # A user is waiting: do not sleep past the server's return.
                pause = min(next(waits), 1.0)
                if time.monotonic() + pause > end:
                    return str(error)
                time.sleep(pause)
            else:
                return None


def pauses() -> Iterator[float]:
    """Seconds to wait after each failure: doubling up to a limit, shortened by up to a quarter.

    The random part keeps a cluster's workers from hitting a restarted server all at once.
    """
    for tries in itertools.count():
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries, 10))
        yield pause * random.uniform(0.75, 1.0)  # noqa: S311


def now_ms() -> int:
    """The time in milliseconds since 1970, as MLflow stores it."""
    return time.time_ns() // 1_000_000


def _batches(records: Sequence[tuple[Record, int]]) -> Iterator[list[tuple[Record, int]]]:
    """Neighbouring records that fit into one call, in order."""
    batch: list[tuple[Record, int]] = []
    size = 0
    for pair in records:
        record = pair[0]
        alone = record["kind"] not in _BATCHED
        if batch and (alone or size >= BATCH):
            yield batch
            batch, size = [], 0
        if alone:
            yield [pair]
        else:
            batch.append(pair)
            size += len(record.get("values", ())) or TAG_WEIGHT
    if batch:
        yield batch


def _entities(records: Iterable[Record]) -> tuple[list[Metric], list[RunTag]]:
    """The records as MLflow takes them: all metrics, and the last text of each tag."""
    from mlflow.entities import Metric, RunTag

    metrics = [
        Metric(name, value, record["at"], record["step"])
        for record in records
        if record["kind"] == "metrics"
        for name, value in record["values"].items()
    ]
    tags = {record["name"]: record["text"] for record in records if record["kind"] == "tag"}
    return metrics, [RunTag(name, text) for name, text in tags.items()]


def _allowed(spool: Spool, named: str) -> Path:
    """The file that a record names, in the spool or in the ``--out`` around it.

    Raises:
        _RefusedError: it is elsewhere; the spool may come from somebody else.
    """
    folder = spool.folder.resolve()
    top = folder.parent.parent if folder.parent.name == FOLDER else folder
    path = (folder / named).resolve()
    if not path.is_relative_to(top):
        raise _RefusedError(f"expected a file below {top}, got {named}")
    return path


def _one_line(error: Exception) -> str:
    text = without_secrets(str(error)).strip() or type(error).__name__
    return text.splitlines()[0]
