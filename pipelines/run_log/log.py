"""Logging into a run that never keeps a training waiting and loses nothing.

Who logs puts a record into a queue in memory and goes on. One thread draws pictures and appends all
to the run's spool (:mod:`pipelines.run_log.spool`); another sends the spool's records to MLflow in
order, in batches, and notes what was acknowledged. While the server is away it tries again with
growing pauses, up to ``LONGEST_PAUSE_S``.

What is sent twice is stored once: MLflow keeps one of metrics that are equal in key, step, time and
value (records carry their time), tags and pictures have names of their own.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import random
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.run_log.spool import FOLDER, PICTURES, Record, Spool, header
from pipelines.tracking.mlflow_env import QUIET, environment
from pipelines.tracking.model import is_checkpoint, log_model
from pipelines.tracking.redact import without_secrets

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag
    from numpy.typing import NDArray

SEND_EVERY_S = 1.0
"""Seconds between two batches."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
"""Pauses after the first failed try and, doubled each time, at most (while one waits for it: 1)."""
TRY_S = 10
"""Seconds after which one try counts as failed."""
UPLOAD_S = 600
"""The same for the upload of a file."""
START_S = 5.0
"""Seconds that a log may take to come up, before the first step."""
HANDOVER_S = 5.0
"""Seconds that a worker waits for the server at its end; the driver waits on."""
WRITE_S = 60.0
"""Seconds that a log's end waits for its own disk, and for the last picture to be drawn."""
HELD_RECORDS = 100_000
"""Records that are held in memory where they can be written nowhere; beyond, the oldest go."""
HELD_PICTURES = 8
"""Pictures that wait for being drawn."""
METRICS_A_BATCH = 500
TAGS_A_BATCH = 50
THUMBNAIL = 256
"""Longer side in pixels of the copy that MLflow's grid of pictures shows."""
PATIENCE_S = 60.0
"""Seconds that a job's end waits for a server that is away; ``COLORCORE_TRACKING_WAIT_S``."""
_SHORT = {
    **QUIET,
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TRY_S),
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": str(UPLOAD_S),
}
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"})

Draw = Callable[[], "NDArray[np.uint8]"]
"""Makes a picture, (H, W, 3) uint8 sRGB, in the thread that writes."""
Name = tuple[str, int]
"""What a picture is found by: a key and a step."""


class NotTakenError(Exception):
    """The server is away, or answers that it cannot; the same may work later."""


@dataclass(frozen=True, slots=True)
class _Picture:
    draw: Draw
    names: tuple[Name, ...]
    at: int


class RunLog:
    """Where one process logs into one run. Its methods return at once, whatever the server does.

    There is no telling from outside whether a record was sent; :meth:`close` tells what was not.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        experiment_id: str,
        folder: Path,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open the spool in ``folder`` and begin to send; waits ``START_S`` at most.

        warn  is told, once, what cannot be kept and why
        """
        self._warn, self._warned = warn, set[str]()
        self._spool = Spool(folder)
        self._delivery = Delivery(uri, run_id, self._spool)
        self._queue: queue.Queue[Record | _Picture | None] = queue.Queue(HELD_RECORDS)
        self._drawing = threading.Semaphore(HELD_PICTURES)
        self._held: deque[Record] = deque(maxlen=HELD_RECORDS)
        self._guard = threading.Lock()
        self._work, self._closing = threading.Event(), threading.Event()
        self._connected, self._stop = threading.Event(), threading.Event()
        self._written, self._idle = threading.Event(), threading.Event()
        self._tags: dict[str, str] = {}
        self._spooled_tags: dict[str, str] = {}
        self._run_id = run_id
        self._open(header(run_id, experiment_id, without_secrets(uri)))
        self._writer = threading.Thread(target=self._write, name="run-log-write", daemon=True)
        self._sender = threading.Thread(target=self._send, name="run-log-send", daemon=True)
        self._writer.start()
        self._sender.start()
        self._connected.wait(START_S)

    def tags(self) -> dict[str, str]:
        """The run's tags, as the server and the spool knew them when this began."""
        return {**self._tags, **self._spooled_tags}

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""
        record = {"kind": "metrics", "at": _now(), "step": step, "values": dict(values)}
        self._put(record)

    def tag(self, name: str, text: str) -> None:
        """Set a tag."""
        self._put({"kind": "tag", "name": name, "text": without_secrets(text)})

    def picture(self, draw: Draw, *names: Name) -> None:
        """Log a picture under these names; it is drawn and encoded later, in another thread.

        Of a name that is used again MLflow's pages show the later picture.
        """
        if not self._drawing.acquire(blocking=False):
            key, step = names[0]
            self._complain(
                f"the picture {key} of step {step} is left out: {HELD_PICTURES} wait already"
            )
            return
        self._put(_Picture(draw, names, _now()))

    def close(self, wait_s: float = HANDOVER_S) -> int:
        """Wait for the rest to be written, and at most so long for it to be sent.

        Returns how many records are left in the spool, which is removed where there are none.
        """
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=HANDOVER_S)
        written = self._written.wait(max(wait_s, WRITE_S))
        self._closing.set()
        self._work.set()
        self._idle.wait(wait_s)
        self._stop.set()
        self._work.set()
        left = self._spool.unsent() + len(self._held) + self._queue.qsize()
        if left or not written:
            self._spool.close()
        else:
            self._spool.remove()
        return left

    # -- who logs -----------------------------------------------------------------------------

    def _put(self, record: Record | _Picture) -> None:
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._complain(f"records are left out: {HELD_RECORDS} wait for the disk already")

    def _complain(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)

    def _open(self, first: Record) -> None:
        """Lock the spool, or share it with a process that is about to end; read what it knows."""
        try:
            self._spool.acquire(HANDOVER_S)
            for record, _ in self._spool.read_all():
                if record["kind"] == "tag":
                    self._spooled_tags[record["name"]] = record["text"]
            new = not self._spool.records.exists()
            self._spool.append([first if new else {"kind": "resumed"}])
        except OSError as error:
            self._complain(f"cannot write {self._spool.folder}: {error}; records stay in memory")

    # -- the thread that writes -----------------------------------------------------------------

    def _write(self) -> None:
        ended = False
        while not ended:
            waiting = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while waiting[-1] is not None:
                    waiting.append(self._queue.get_nowait())
            ended = waiting[-1] is None
            for item in waiting:
                for record in self._drawn(item) if isinstance(item, _Picture) else [item]:
                    if record is not None:
                        self._append(record)
            self._work.set()
        self._written.set()

    def _append(self, record: Record) -> None:
        with self._guard:
            self._held.append(record)
            try:
                self._spool.append(list(self._held))
                self._held.clear()
            except OSError as error:
                self._complain(
                    f"cannot write {self._spool.folder}: {error.strerror}; records stay in memory"
                )

    def _drawn(self, item: _Picture) -> list[Record]:
        """Write a picture's files; what is there to be sent, nothing where that fails."""
        try:
            return save_drawn(self._spool, self._run_id, item.draw(), item.names, item.at)
        except (OSError, RuntimeError, ValueError) as error:
            key, step = item.names[0]
            self._complain(f"the picture {key} of step {step} is left out: {error}")
            return []
        finally:
            self._drawing.release()

    # -- the thread that sends ------------------------------------------------------------------

    def _send(self) -> None:
        pauses = _pauses()
        while not self._stop.is_set():
            closing = self._closing.is_set()
            self._work.clear()
            try:
                if not self._connected.is_set():
                    self._tags = self._delivery.tags()
                    self._connected.set()
                self._delivery.send()
                self._send_held()
                pauses = _pauses()
                if closing:
                    self._idle.set()
                    return
            except Exception:  # whatever it is, the training goes on
                pause = next(pauses)
                self._closing.wait(pause)
                if self._closing.is_set():
                    self._stop.wait(min(pause, 1.0))
                continue
            self._work.wait()
            self._closing.wait(SEND_EVERY_S)

    def _send_held(self) -> None:
        """Send what could not be written; it may be written, and sent again, meanwhile."""
        with self._guard:
            held = list(self._held)
        if held:
            self._delivery.send_records(held)
            with self._guard:
                for record in held:
                    with contextlib.suppress(ValueError):
                        self._held.remove(record)


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
                    raise _RefusedError(_line(error)) from error
                raise NotTakenError(_line(error)) from error


def deliver(uri: str, run_id: str, spool: Spool, patience_s: float) -> str | None:
    """Send what is left in a spool, for so long if the server is away.

    Returns why not all was taken, None when nothing is left.
    """
    end, pauses = time.monotonic() + patience_s, _pauses()
    delivery = Delivery(uri, run_id, spool)
    while True:
        try:
            delivery.send()
        except NotTakenError as error:
            pause = min(next(pauses), 1.0)
            if time.monotonic() + pause > end:
                return str(error)
            time.sleep(pause)
        else:
            return None


def save_drawn(
    spool: Spool, run_id: str, rgb: NDArray[np.uint8], names: Sequence[Name], at: int
) -> list[Record]:
    """Write a picture and its thumbnail into a spool, by the names that MLflow's pages look for.

    Returns a record for each name.

    Raises:
        OSError: they cannot be written.
    """
    from PIL import Image

    folder = spool.folder / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(rgb)
    records: list[Record] = []
    for key, step in names:
        mark = uuid.uuid5(uuid.NAMESPACE_URL, f"{run_id}/{key}/{step}/{at}")
        name = f"{key.replace('/', '~')}+step+{step}+timestamp+{at}+{mark}"
        files = [f"{name}.png", f"{name}+compressed.webp"]
        if records:
            for there, file in zip(records[0]["files"], files, strict=True):
                shutil.copyfile(folder / there, folder / file)
        else:
            picture.save(folder / files[0], compress_level=1)
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            picture.save(folder / files[1])
        records.append({"kind": "picture", "at": at, "step": step, "files": files})
    return records


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


def _pauses() -> Iterator[float]:
    for tries in itertools.count():
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries, 10))
        yield pause * random.uniform(0.75, 1.0)  # noqa: S311


def _line(error: Exception) -> str:
    text = without_secrets(str(error)).strip() or type(error).__name__
    return text.splitlines()[0]


def _now() -> int:
    return time.time_ns() // 1_000_000
