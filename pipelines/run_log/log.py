"""Logging into a run: never keeps a training waiting, and loses nothing.

A caller puts a record into a queue in memory and continues. One thread draws pictures and appends
records to the run's spool (:mod:`pipelines.run_log.spool`); another one sends the spool's records
to MLflow in order, in batches, and notes how far it got. While the server is down, it retries with
growing pauses.
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
"""Seconds that reading a run's tags waits for the server to answer."""
HANDOVER_S = 5.0
"""Seconds that a worker waits for the server at its end; the driver then waits longer."""
WRITE_S = 60.0
"""Seconds that a log's end waits for its own disk, and for the last picture to be drawn."""
HELD_PICTURES = 16
"""Pictures that wait to be drawn. Each holds its photos, so more would fill the memory."""
HELD_RECORDS = 100_000
"""Records that wait in memory while the disk is full: about 20 MB."""

Draw = Callable[[], "NDArray[np.uint8]"]
"""Makes a picture, (H, W, 3) uint8 sRGB, in the writing thread."""


@dataclass(frozen=True, slots=True)
class _Picture:
    draw: Draw
    names: tuple[Name, ...]
    at: int


class RunLog:
    """Logs from one process into one run. Its methods return at once, whatever the server does.

    Logging reports no success; :meth:`close` returns how much is left unsent.
    """

    def __init__(
        self, uri: str, run_id: str, folder: Path, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        """Open the spool in ``folder`` and begin to send, without waiting for the server.

        warn  receives each reason why something cannot be kept, once
        """
        self._warn, self._warned = warn, set[str]()
        self._run_id, self._spool = run_id, Spool(folder)
        self._delivery = Delivery(uri, run_id, self._spool)
        self._queue: queue.SimpleQueue[Record | _Picture | None] = queue.SimpleQueue()
        self._unwritten: list[Record] = []
        self._lost = 0
        self._room = threading.Semaphore(HELD_PICTURES)
        self._tags: dict[str, str] = {}
        self._spooled_tags: dict[str, str] = {}
        self._connected, self._work = threading.Event(), threading.Event()
        self._closing, self._stop = threading.Event(), threading.Event()
        self._open(header(run_id, uri))
        # Daemons: a server that never answers must not keep the process from ending.
        self._writer = threading.Thread(target=self._write, name="run-log-write", daemon=True)
        self._sender = threading.Thread(target=self._send, name="run-log-send", daemon=True)
        self._writer.start()
        self._sender.start()

    def tags(self) -> dict[str, str]:
        """The run's tags when this log was opened, from the server and from the spool.

        Waits up to ``START_S`` for the server's; without an answer, they are left out.
        """
        self._connected.wait(START_S)
        return {**self._tags, **self._spooled_tags}

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""
        # The time is part of the record, so that MLflow recognizes what it is sent twice.
        self._queue.put({"kind": "metrics", "at": now_ms(), "step": step, "values": dict(values)})

    def tag(self, name: str, text: str) -> None:
        """Set a tag."""
        self._queue.put({"kind": "tag", "name": name, "text": without_secrets(text)})

    def picture(self, draw: Draw, *names: Name) -> None:
        """Log a picture under these names; it is drawn and encoded later, in another thread.

        If a name is used again, MLflow's pages show the later picture. Where ``HELD_PICTURES``
        wait already, this one is left out with a warning.
        """
        if not self._room.acquire(blocking=False):
            key, step = names[0]
            self._complain(
                f"the picture {key} of step {step} is left out: {HELD_PICTURES} wait to be drawn"
            )
            return
        self._queue.put(_Picture(draw, names, now_ms()))

    def close(self, wait_s: float = HANDOVER_S) -> int:
        """Wait until everything is written, and up to ``wait_s`` until it is sent.

        Returns the number of unsent records. They stay in the spool, which is deleted if there are
        none.
        """
        self._queue.put(None)
        self._writer.join(max(wait_s, WRITE_S))
        self._closing.set()
        self._work.set()
        self._sender.join(wait_s)
        self._stop.set()
        self._work.set()
        if lost := len(self._unwritten) + self._lost:
            self._complain(f"{lost} records are lost: {self._spool.folder} cannot be written")
        left = self._spool.unsent() + lost
        if left or self._writer.is_alive():
            self._spool.close()
        else:
            self._spool.remove()
        return left

    def _complain(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)

    def _open(self, first: Record) -> None:
        """Lock the spool, read the tags in it, and append a first record."""
        try:
            # The process that this one replaces may take a moment to die. Without the lock the two
            # would share the spool, which does no harm: both only append whole lines.
            self._spool.acquire(HANDOVER_S)
            for record, _ in self._spool.read():
                if record["kind"] == "tag":
                    self._spooled_tags[record["name"]] = record["text"]
            new = not self._spool.records.exists()
            self._spool.append([first if new else {"kind": "resumed"}])
        except OSError as error:
            # Resending needs the first record, so it has to be the first to be written.
            self._unwritten.append(first)
            self._cannot_write(error)

    def _cannot_write(self, error: OSError) -> None:
        self._complain(
            f"cannot write {self._spool.folder}: {error.strerror}; records wait in memory"
        )

    # -- the writing thread -----------------------------------------------------------------------

    def _write(self) -> None:
        ended, pictures = False, deque[_Picture]()
        while not ended or pictures:
            # Everything that waits goes into one call of the disk, and before any picture: drawing
            # takes a third of a second, and a process killed meanwhile would lose the records.
            for item in self._waiting(block=not ended and not pictures):
                if item is None:
                    ended = True
                elif isinstance(item, _Picture):
                    pictures.append(item)
                else:
                    self._unwritten.append(item)
            self._append()
            if pictures:
                self._unwritten += self._drawn(pictures.popleft())
                self._append()
            self._work.set()

    def _waiting(self, *, block: bool) -> list[Record | _Picture | None]:
        """What is in the queue; with ``block``, wait until there is something."""
        items = [self._queue.get()] if block else []
        with contextlib.suppress(queue.Empty):
            while True:
                items.append(self._queue.get_nowait())
        return items

    def _append(self) -> None:
        """Append what is unwritten; a full disk is tried again with the next record."""
        if not self._unwritten:
            return
        try:
            self._spool.append(self._unwritten)
            self._unwritten.clear()
        except OSError as error:
            self._cannot_write(error)
            self._lost += max(0, len(self._unwritten) - HELD_RECORDS)
            del self._unwritten[HELD_RECORDS:]

    def _drawn(self, item: _Picture) -> list[Record]:
        """Write a picture's files; returns the records that send them."""
        try:
            return save_drawn(self._spool, self._run_id, item.draw(), item.names, item.at)
        except (OSError, RuntimeError, ValueError) as error:
            # A picture is the least important thing that a training makes: warn and carry on.
            key, step = item.names[0]
            self._complain(f"the picture {key} of step {step} is left out: {error}")
            return []
        finally:
            self._room.release()

    # -- the sending thread -----------------------------------------------------------------------

    def _send(self) -> None:
        waits = pauses()
        while not self._stop.is_set():
            # Read first: what is written before closing must still be sent after it.
            closing = self._closing.is_set()
            self._work.clear()
            try:
                if not self._connected.is_set():
                    self._tags = self._delivery.tags()
                    self._connected.set()
                self._delivery.send()
            except Exception:  # whatever it is, the training continues
                pause = next(waits)
                self._closing.wait(pause)
                if self._closing.is_set():  # somebody waits for this log's end
                    self._stop.wait(min(pause, 1.0))
                continue
            if closing:
                return
            waits = pauses()
            self._work.wait()
            self._closing.wait(SEND_EVERY_S)
