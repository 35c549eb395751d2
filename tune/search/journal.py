"""Where a study's journal is: a file in its folder, or pieces of one in an object store.

Optuna appends to a file, which object stores cannot. There the journal is a temporary file on this
machine, and what is appended to it is uploaded every few seconds as one more object::

    study.log/0000000000000000    the first lines
    study.log/0000000000004711    those from byte 4711, …

A machine that is lost takes the last seconds of the journal along. That costs little: a trial
whose start is missing gets the same number and values again, and continues from its checkpoint in
the store; so does one whose last validations are missing. Before checkpoints are removed, the
journal is uploaded.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from colorcore.storage.locks import Claim, claim
from colorcore.storage.store import StorageError, Store

JOURNAL = "study.log"
UPLOAD_S = 5.0
"""Seconds between two uploads."""
MOST_PIECES = 100
"""More pieces become one when a study is resumed: each costs a request."""


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
            BusyError: another process has taken over the study.
        """


@contextmanager
def open_journal(out: Store) -> Iterator[Journal]:
    """Open the journal of the study in ``out``, as its only writer; complete when the block ends.

    Raises:
        BusyError: another process writes to the study.
        StorageError: the store does not answer, or refuses.
    """
    with claim(out, "cc tune") as claimed:
        if out.local is not None:
            yield Journal(out.local / JOURNAL)
            return
        with tempfile.TemporaryDirectory(prefix="colorcore-study-") as folder:
            journal = _UploadedJournal(out, Path(folder) / JOURNAL, claimed)
            try:
                yield journal
            finally:
                journal.close()


class _UploadedJournal(Journal):
    """Uploads what is appended to the file, in a thread and on :meth:`flush`."""

    def __init__(self, out: Store, file: Path, claimed: Claim) -> None:
        super().__init__(file)
        self._out, self._claim = out, claimed
        self._guard = threading.Lock()
        file.write_bytes(_whole(out))
        self._uploaded = file.stat().st_size
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
                self._claim.check()
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
            with suppress(StorageError):
                self.flush()


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
