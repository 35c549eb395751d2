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
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.run_log.delivery import SEND_EVERY_S, Delivery, now_ms, pauses
from pipelines.run_log.picture_files import Name, save_drawn
from pipelines.run_log.spool import Record, Spool, header
from pipelines.tracking.redact import without_secrets

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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

Draw = Callable[[], "NDArray[np.uint8]"]
"""Makes a picture, (H, W, 3) uint8 sRGB, in the thread that writes."""


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
        record = {"kind": "metrics", "at": now_ms(), "step": step, "values": dict(values)}
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
        self._put(_Picture(draw, names, now_ms()))

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
        waits = pauses()
        while not self._stop.is_set():
            closing = self._closing.is_set()
            self._work.clear()
            try:
                if not self._connected.is_set():
                    self._tags = self._delivery.tags()
                    self._connected.set()
                self._delivery.send()
                self._send_held()
                waits = pauses()
                if closing:
                    self._idle.set()
                    return
            except Exception:  # whatever it is, the training goes on
                pause = next(waits)
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
