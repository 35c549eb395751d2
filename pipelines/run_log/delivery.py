"""Sending the records of a spool to MLflow: batches, retries, refusals."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.run_log.spool import FOLDER, PICTURES, Record, Spool
from pipelines.tracking.mlflow_env import QUIET, environment
from pipelines.tracking.model import is_checkpoint, log_model
from pipelines.tracking.redact import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag


SEND_EVERY_S = 1.0
"""Seconds between two batches."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
"""Pauses after the first failed try and, doubled each time, at most (while one waits for it: 1)."""
TRY_S = 10
"""Seconds after which one try counts as failed."""
UPLOAD_S = 600
"""The same for the upload of a file."""
METRICS_A_BATCH = 500
TAGS_A_BATCH = 50
_SHORT = {
    **QUIET,
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TRY_S),
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": str(UPLOAD_S),
}
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"})


class NotTakenError(Exception):
    """The server is away, or answers that it cannot; the same may work later."""


class Delivery:
    """Takes a spool's records to MLflow."""

    def __init__(self, uri: str, run_id: str, spool: Spool) -> None:
        self._uri, self._run_id, self._spool = uri, run_id, spool
        self._client: MlflowClient | None = None

    def tags(self) -> dict[str, str]:
        """The run's tags.

        Raises:
            NotTakenError: the server does not answer.
        """
        with self._trying() as client:
            return dict(client.get_run(self._run_id).data.tags)

    def send(self) -> None:
        """Send all records that are there, and note how far that got.

        Raises:
            NotTakenError: the server does not answer, or cannot.
        """
        while records := list(self._spool.read(self._spool.sent())):
            for batch in _batches(records):
                self.send_records([record for record, _ in batch])
                self._spool.mark(batch[-1][1])
                for record, _ in batch:
                    _forget(self._spool, record)

    def send_records(self, records: Sequence[Record]) -> None:
        """Send records that belong together; what is refused is set aside, one by one."""
        try:
            self._take(records)
        except _RefusedError as refusal:
            if len(records) == 1:
                self._spool.refuse(records[0], str(refusal))
                return
            for record in records:
                self.send_records([record])

    def _take(self, records: Sequence[Record]) -> None:
        first = records[0]
        metrics, tags = _entities(records)
        with self._trying() as client:
            if metrics or tags:
                client.log_batch(self._run_id, metrics=metrics, tags=tags, synchronous=True)
            elif first["kind"] == "picture":
                for name in first["files"]:
                    path = self._spool.folder / PICTURES / Path(name).name
                    if path.is_file():  # else it was sent before
                        client.log_artifact(self._run_id, str(path), "images")
                client.set_tag(self._run_id, "mlflow.loggedImages", "True", synchronous=True)
            elif first["kind"] == "artifact":
                self._artifact(client, first)
            elif first["kind"] == "end" and not self._resumed_since():
                client.set_terminated(self._run_id, first["status"], first["at"])

    def _artifact(self, client: MlflowClient, record: Record) -> None:
        path, name = allowed(self._spool, record["path"]), record["name"]
        if is_checkpoint(path):
            log_model(client, self._run_id, path)
        elif path.is_dir():
            client.log_artifacts(self._run_id, str(path), name)
        elif path.is_file():
            client.log_artifact(self._run_id, str(path), name if name != path.name else None)

    def _resumed_since(self) -> bool:
        """Whether the training went on after the end that is to be sent."""
        rest = self._spool.read_all(self._spool.sent())
        return any(record["kind"] == "resumed" for record, _ in rest)

    @contextlib.contextmanager
    def _trying(self) -> Iterator[MlflowClient]:
        """The client, for one try that does not last; its errors sorted."""
        with environment(_SHORT):
            try:
                if self._client is None:
                    from mlflow import MlflowClient

                    self._client = MlflowClient(tracking_uri=self._uri)
                yield self._client
            except _RefusedError:
                raise
            except Exception as error:
                if getattr(error, "error_code", None) in _REFUSALS:
                    raise _RefusedError(one_line(error)) from error
                raise NotTakenError(one_line(error)) from error


def deliver(uri: str, run_id: str, spool: Spool, patience_s: float) -> str | None:
    """Send what is left in a spool, for so long if the server is away.

    Returns why not all was taken, None when nothing is left.
    """
    end, waits = time.monotonic() + patience_s, pauses()
    delivery = Delivery(uri, run_id, spool)
    while True:
        try:
            delivery.send()
        except NotTakenError as error:
            pause = min(next(waits), 1.0)
            if time.monotonic() + pause > end:
                return str(error)
            time.sleep(pause)
        else:
            return None


def allowed(spool: Spool, named: str) -> Path:
    """The file that a record names: in the spool, or in the ``--out`` that it lies in.

    Raises:
        _RefusedError: it is elsewhere; a spool may come from somebody else.
    """
    folder = spool.folder.resolve()
    top = folder.parent.parent if folder.parent.name == FOLDER else folder
    path = (folder / named).resolve()
    if not path.is_relative_to(top):
        raise _RefusedError(f"expected a file below {top}, got {named}")
    return path


class _RefusedError(Exception):
    """The server will never take it."""


_TOGETHER = frozenset({"run", "resumed", "metrics", "tag"})
"""Kinds of records that go into one batch."""


def _batches(records: Sequence[tuple[Record, int]]) -> Iterator[list[tuple[Record, int]]]:
    batch: list[tuple[Record, int]] = []
    metrics = tags = 0
    for pair in records:
        record = pair[0]
        together = record["kind"] in _TOGETHER
        full = metrics >= METRICS_A_BATCH or tags >= TAGS_A_BATCH
        if batch and (not together or full):
            yield batch
            batch, metrics, tags = [], 0, 0
        batch.append(pair)
        if not together:
            yield batch
            batch = []
        metrics += len(record.get("values", ()))
        tags += record["kind"] == "tag"
    if batch:
        yield batch


def _entities(records: Iterable[Record]) -> tuple[list[Metric], list[RunTag]]:
    """What MLflow takes: all metrics, and of each tag the last text."""
    from mlflow.entities import Metric, RunTag

    metrics = [
        Metric(name, value, record["at"], record["step"])
        for record in records
        if record["kind"] == "metrics"
        for name, value in record["values"].items()
    ]
    tags = {record["name"]: record["text"] for record in records if record["kind"] == "tag"}
    return metrics, [RunTag(name, text) for name, text in tags.items()]


def _forget(spool: Spool, record: Record) -> None:
    for name in record.get("files", ()):
        with contextlib.suppress(OSError):
            (spool.folder / PICTURES / Path(name).name).unlink()


def pauses() -> Iterator[float]:
    """Seconds to wait after each failure: they double up to a limit, give or take a half."""
    for tries in itertools.count():
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries, 10))
        yield pause * random.uniform(0.75, 1.0)  # noqa: S311


def one_line(error: Exception) -> str:
    """The first line of an error, without secrets."""
    text = without_secrets(str(error)).strip() or type(error).__name__
    return text.splitlines()[0]


def now_ms() -> int:
    """The time in milliseconds, as MLflow stores it."""
    return time.time_ns() // 1_000_000
