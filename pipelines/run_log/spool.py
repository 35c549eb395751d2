"""A run's spool: a folder of records that the tracking server does not have yet.

::

    records.jsonl    one record per line, only ever appended to; the first one names the run
    sent             how many bytes of records.jsonl the server has acknowledged
    pictures/        pictures that records name, until they are acknowledged
    artifacts/       copies of files that records name and that may be gone by then
    refused.jsonl    records that the server refused, with its reason
    lock             held by the process that writes to the spool or sends it

The writer may be killed at any moment: the next one, or `cc resend`, continues after the last
acknowledged record. A spool is deleted once all its records are acknowledged. It never contains a
credential.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from colorcore.storage.atomic import replace_bytes
from colorcore.storage.lines import cut_unfinished_line
from colorcore.storage.location import open_store
from colorcore.storage.locks import try_lock
from colorcore.storage.store import Store
from pipelines.errors import JobError
from pipelines.tracking.redact import without_secrets

FOLDER = "run-log"
"""The folder of the spools in a training's ``--out``."""
RECORDS = "records.jsonl"
PICTURE_FOLDER = "pictures"
ARTIFACTS = "artifacts"
_SENT = "sent"
_REFUSED = "refused.jsonl"
_LOCK = "lock"

Record = dict[str, Any]


def spool_folder(run_id: str, out: Path | str | Store | None, part: str = "") -> Path:
    """The local folder of a run's spool: in ``out``, so that it moves along with the training.

    It is in a temporary folder if ``out`` is None or in an object store, which cannot append to a
    file. ``part`` separates writers of the same run on different nodes, because locks and appends
    are not reliable across nodes.
    """
    local = None if out is None else open_store(out).local
    top = Path(tempfile.gettempdir()) / f"colorcore-{FOLDER}" if local is None else local / FOLDER
    return top / (f"{run_id}-{part}" if part else run_id)


def header(run_id: str, uri: str) -> Record:
    """The first record of a spool, which tells `cc resend` where the others belong."""
    return {"kind": "run", "run_id": run_id, "uri": without_secrets(uri)}


class Spool:
    """One spool. One process writes to it; any of its threads may read and mark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: int | None = None
        self._lock: contextlib.ExitStack | None = None

    @property
    def records(self) -> Path:
        """The file of records."""
        return self.folder / RECORDS

    def acquire(self, wait_s: float) -> bool:
        """Lock the spool, waiting for another process that holds it; returns whether it is locked.

        Raises:
            OSError: the folder cannot be created.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + wait_s
        while self._lock is None and not self._try_lock():
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
        return True

    def _try_lock(self) -> bool:
        with contextlib.ExitStack() as stack:
            try:
                held = stack.enter_context(try_lock(self.folder / _LOCK))
            except OSError:  # a file system without locks, as on some clusters: do without
                held = True
            if held:
                self._lock = stack.pop_all()
            return held

    # -- writing ----------------------------------------------------------------------------------

    def append(self, records: Sequence[Record]) -> None:
        """Append whole lines.

        Raises:
            OSError: they cannot all be written, because of a full disk for instance.
        """
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            cut_unfinished_line(self.records)
            # Other users of the machine may read --out, but not what a run logs.
            self._file = os.open(self.records, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        try:
            # No fsync: a killed process loses nothing that the kernel has, and a power failure
            # costs the training its last steps anyway.
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            # Reopening cuts off half a line. Whole lines stay and may be appended once more, which
            # is harmless: the server stores equal records once.
            os.close(self._file)
            self._file = None
            raise

    def adopt(self, path: Path, name: str) -> str:
        """The path by which a record names a file or folder, relative to the spool.

        Files below the same ``--out`` are named where they are; others are copied into the spool,
        because the caller's temporary folder is gone when `cc resend` needs them.

        Raises:
            OSError: the copy cannot be made.
        """
        out = self.folder.parent.parent
        if self.folder.parent.name == FOLDER and path.absolute().is_relative_to(out.absolute()):
            return os.path.relpath(path.absolute(), self.folder.absolute())
        target = self.folder / ARTIFACTS / name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copy2(path, target)
        return str(target.relative_to(self.folder))

    # -- reading ----------------------------------------------------------------------------------

    def header(self) -> Record:
        """The first record.

        Raises:
            JobError: there is no such file, or it is not a spool's.
        """
        first, _ = next(self.read(), ({}, 0))
        if first.get("kind") != "run" or not first.get("run_id"):
            raise JobError(f"expected the records of a run in {self.records}, found none")
        return first

    def read(self, offset: int = 0) -> Iterator[tuple[Record, int]]:
        """Whole records from a byte on, each with the byte at which it ends."""
        try:
            file = self.records.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):  # the writer is not done with it
                    return
                offset += len(line)
                with contextlib.suppress(ValueError):  # damaged by a power failure
                    yield json.loads(line), offset

    def sent(self) -> int:
        """How many bytes of the records the server has acknowledged."""
        try:
            return int((self.folder / _SENT).read_text())
        except (OSError, ValueError):
            return 0

    def mark(self, offset: int) -> None:
        """Note that the server has acknowledged everything before this byte.

        Failing to do so costs time only: what is sent twice is stored once.
        """
        if self.folder.is_dir():
            with contextlib.suppress(OSError):
                replace_bytes(self.folder / _SENT, str(offset).encode(), sync=False)

    def unsent(self) -> int:
        """The number of records that the server has not acknowledged."""
        rest = self.read(self.sent())
        return sum(1 for record, _ in rest if record["kind"] not in ("run", "resumed"))

    # -- refused records, and the end -------------------------------------------------------------

    def refuse(self, record: Record, why: str) -> None:
        """Set aside a record that the server will never accept, so that it blocks no other."""
        with (self.folder / _REFUSED).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"why": why, **record}) + "\n")

    def refused(self) -> int:
        """The number of records that were set aside."""
        try:
            return len((self.folder / _REFUSED).read_text(encoding="utf-8").splitlines())
        except OSError:
            return 0

    def close(self) -> None:
        """Unlock the spool and leave its contents."""
        if self._file is not None:
            os.close(self._file)
        if self._lock is not None:
            self._lock.close()
        self._file = self._lock = None

    def remove(self) -> None:
        """Delete the spool, except for records that were refused."""
        self.close()
        for path in self.folder.glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _REFUSED:
                with contextlib.suppress(OSError):
                    path.unlink()
        with contextlib.suppress(OSError):  # not empty: something refused, or another spool
            self.folder.rmdir()
            self.folder.parent.rmdir()


# -- finding spools, here and in an object store --------------------------------------------------


def find_spools(place: Path) -> list[Spool]:
    """The spools at a place: a file of records, or a folder that contains some at any depth.

    Raises:
        JobError: there is nothing at that place.
    """
    if place.is_file():
        return [Spool(place.parent)]
    if not place.is_dir():
        raise JobError(f"expected records of a run at {place}, found nothing")
    return [Spool(path.parent) for path in sorted(place.rglob(RECORDS))]


def parts_of(folder: Path) -> list[Spool]:
    """A run's spool and the ones of its writers on other nodes, which are next to it."""
    names = sorted(folder.parent.glob(f"{folder.name}*/{RECORDS}"))
    return [Spool(path.parent) for path in names]


def upload(folder: Path, out: Store) -> str:
    """Copy a spool into an object store; returns its location there.

    Raises:
        StorageError: the store cannot be written.
    """
    target = remote_spool(folder, out)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _LOCK:
            target.write(path.relative_to(folder).as_posix(), path.read_bytes())
    return target.show()


def remote_spool(folder: Path, out: Store) -> Store:
    """The place to which :func:`upload` copies a spool."""
    return out.below(FOLDER).below(folder.name)


def fetch_spools(out: Store, run_id: str, folder: Path) -> None:
    """Copy a run's spools from an object store into a local folder, unless they are there.

    A spool that is already there is this machine's own, and at least as new.

    Raises:
        StorageError: the store cannot be read.
    """
    if out.kind(FOLDER) != "folder":
        return
    for entry in out.entries(FOLDER):
        name = Path(entry.name).name
        if name.startswith(run_id) and not (folder / name / RECORDS).exists():
            download(out.below(entry.name), folder / name)


def download(store: Store, folder: Path) -> None:
    """Copy an object store's files and folders into a local folder.

    Raises:
        StorageError: the store cannot be read.
    """
    for name in _files(store):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(name, target)


def forget(store: Store) -> None:
    """Delete the copy of a spool in an object store.

    Raises:
        StorageError: the store cannot be changed.
    """
    for name in _files(store):
        store.remove(name)


def _files(store: Store, folder: str = "") -> Iterator[str]:
    if store.kind(folder) == "folder":
        for entry in store.entries(folder):
            if entry.is_dir:
                yield from _files(store, entry.name)
            else:
                yield entry.name
