"""Where a study's journal is: a file in its folder, or pieces of one in an object store.

Optuna appends to a file, which object stores cannot. There the journal is a temporary file on this
machine, and what is appended to it is uploaded every few seconds as one more object::

    study.log/0000000000000000    the first lines
    study.log/0000000000004711    those from byte 4711, …

A machine that is lost takes the last seconds of the journal along. That costs little: a trial
whose start is missing gets the same number and values again, and continues from its checkpoint in
the store; so does one whose last validations are missing. Before checkpoints are removed, the
journal is uploaded.

Only one `cc tune` may write to a study. In a local folder a lock guards that; in an object store
the file ``study.lock``, which its owner rewrites with each upload.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from colorcore.storage.locks import try_lock
from colorcore.storage.store import StorageError, Store
from pipelines.errors import JobError, WrongCallError

JOURNAL = "study.log"
LOCK = "study.lock"
UPLOAD_S = 5.0
"""Seconds between two uploads."""
MOST_PIECES = 100
"""More pieces become one when a study is resumed: each costs a request."""
LEASE_S = 20.0
"""Seconds without an upload after which the owner of ``study.lock`` is held to be dead."""


class Journal:
    """A study's journal as a local file, which only grows.

    file  for Optuna to read and append to
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def flush(self) -> None:
        """Make sure that everything in the file outlives this machine.

        Raises:
            StorageError: the store does not answer, or refuses.
            JobError: another `cc tune` has taken over the study.
        """


@contextmanager
def open_journal(out: Store) -> Iterator[Journal]:
    """Open the journal of the study in ``out``, alone; it is complete when the block ends.

    Raises:
        WrongCallError: another `cc tune` runs this study.
        StorageError: the store does not answer, or refuses.
    """
    if out.local is not None:
        with try_lock(out.local / ".lock") as held:
            if not held:
                raise WrongCallError(_busy(out))
            yield Journal(out.local / JOURNAL)
        return
    with (
        tempfile.TemporaryDirectory(prefix="colorcore-study-") as folder,
        _leased(out) as owner,
    ):
        journal = _UploadedJournal(out, Path(folder) / JOURNAL, owner)
        try:
            yield journal
        finally:
            journal.close()


class _UploadedJournal(Journal):
    """Uploads what is appended to the file, in a thread and on :meth:`flush`."""

    def __init__(self, out: Store, file: Path, owner: str) -> None:
        super().__init__(file)
        self._out, self._owner = out, owner
        self._guard = threading.Lock()
        file.write_bytes(_whole(out))
        self._uploaded = file.stat().st_size
        self._beats = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._upload_often, name="journal", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        with self._guard:
            with self.file.open("rb") as file:
                file.seek(self._uploaded)
                lines = file.read()
            lines = lines[: lines.rfind(b"\n") + 1]  # Optuna may be writing the next one
            if lines:
                self._check_owner()
                self._out.write(_piece(self._uploaded), lines)
                self._uploaded += len(lines)

    def close(self) -> None:
        """Upload the rest."""
        self._closing.set()
        self._thread.join()
        self.flush()

    def _upload_often(self) -> None:
        while not self._closing.wait(UPLOAD_S):
            # What fails now is tried again; flush() raises if it still fails when it matters.
            with suppress(StorageError, JobError):
                self.flush()
                self._beats += 1
                self._check_owner()
                _write_lease(self._out, self._owner, self._beats)

    def _check_owner(self) -> None:
        if (lease := _read_lease(self._out)) is not None and lease["owner"] != self._owner:
            raise JobError(
                f"another cc tune has taken over the study in {self._out.show()}, because this one "
                f"did not answer for {LEASE_S:.0f} s; this one ends"
            )


def _piece(start: int) -> str:
    return f"{JOURNAL}/{start:016d}"


def _whole(out: Store) -> bytes:
    """The journal from its pieces, which become one if they are many."""
    names = sorted(out.names(JOURNAL))
    journal = b""
    for name in names:
        # Pieces within the journal so far are left from when they became one.
        if int(name) == len(journal):
            journal += out.read(f"{JOURNAL}/{name}")
    if len(names) > MOST_PIECES:
        out.write(_piece(0), journal)
        for name in names[1:]:
            out.remove(f"{JOURNAL}/{name}")
    return journal


@contextmanager
def _leased(out: Store) -> Iterator[str]:
    """Hold ``study.lock`` during the block; yields its owner's name.

    Clocks of two machines may differ, so a dead owner is recognized by waiting.
    """
    found = _read_lease(out)
    if found is not None and not _is_dead_here(found):
        end = time.monotonic() + LEASE_S
        while time.monotonic() < end:
            time.sleep(1.0)
            if _read_lease(out) != found:
                raise WrongCallError(_busy(out))
    owner = secrets.token_hex(8)
    _write_lease(out, owner, 0)
    try:
        yield owner
    finally:
        lease = _read_lease(out)
        if lease is not None and lease["owner"] == owner:
            out.remove(LOCK)


def _read_lease(out: Store) -> dict[str, object] | None:
    try:
        lease = json.loads(out.read(LOCK))
    except FileNotFoundError:
        return None
    except ValueError:
        return {"owner": ""}
    return lease if isinstance(lease, dict) and "owner" in lease else {"owner": ""}


def _write_lease(out: Store, owner: str, beats: int) -> None:
    lease = {"owner": owner, "host": socket.gethostname(), "pid": os.getpid(), "beats": beats}
    out.write(LOCK, json.dumps(lease).encode())


def _is_dead_here(lease: dict[str, object]) -> bool:
    """Whether the owner was a process of this machine that is gone."""
    pid = lease.get("pid")
    return (
        lease.get("host") == socket.gethostname()
        and isinstance(pid, int)
        and not psutil.pid_exists(pid)
    )


def _busy(out: Store) -> str:
    return f"another cc tune is running in {out.show()}; wait for it to end"
