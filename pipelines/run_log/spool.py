"""A run's spool: a folder of records that a tracking server is still to be told.

::

    records.jsonl    one record a line, only ever appended to; the first says of which run
    sent             bytes of records.jsonl that the server has acknowledged
    pictures/        pictures that records name, until they are acknowledged
    artifacts/       files that records name and that lie nowhere else
    refused.jsonl    records that the server will not take, with its reason
    lock             held while a process writes to the spool or sends it

Whoever writes may be killed at any moment: the next one, or `cc ui import`, goes on after what was
acknowledged. A spool whose records were all taken is removed. It holds no credential.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colorcore.storage.atomic import replace_bytes
from colorcore.storage.location import open_store
from colorcore.storage.locks import try_lock
from colorcore.storage.store import Store
from pipelines.errors import JobError

FOLDER = "run-log"
"""Where the spools lie in a training's ``--out``."""
RECORDS = "records.jsonl"
PICTURES = "pictures"
ARTIFACTS = "artifacts"
_SENT = "sent"
_REFUSED = "refused.jsonl"
_LOCK = "lock"
_PIECE = 1 << 20
"""Bytes of records that are read at a time."""

Record = dict[str, Any]


def spool_folder(run_id: str, out: Path | str | Store | None, part: str = "") -> Path:
    """Where a run's spool lies on this machine: in ``out``, or in a temporary folder.

    The latter where ``out`` is None or in an object store. ``part`` tells writers of the same run
    apart that may not share a file.
    """
    local = None if out is None else open_store(out).local
    top = Path(tempfile.gettempdir()) / f"colorcore-{FOLDER}" if local is None else local / FOLDER
    return top / (f"{run_id}-{part}" if part else run_id)


class Spool:
    """One spool. One process writes, and any number of its threads may read and mark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: int | None = None
        self._lock: contextlib.ExitStack | None = None

    @property
    def records(self) -> Path:
        """The file of records."""
        return self.folder / RECORDS

    def header(self) -> Record:
        """The first record: of which run, and what of its tracking URI is no secret.

        Raises:
            JobError: there is no such file, or it is none of a spool's.
        """
        try:
            with self.records.open("rb") as file:
                first = json.loads(file.readline())
            if first["kind"] == "run" and first["run_id"]:
                return dict(first)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JobError(
                f"expected the records of a run, found none in {self.records}: {error}"
            ) from error
        raise JobError(f"expected the records of a run, found something else in {self.records}")

    def acquire(self, wait_s: float) -> bool:
        """Lock it, if no other process holds it for so long; the system unlocks for the dead."""
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
            except OSError:  # a file system without locks
                held = True
            if held:
                self._lock = stack.pop_all()
            return held

    def append(self, records: Sequence[Record]) -> None:
        """Write whole lines in one call; a line that a killed process left half is cut off.

        Raises:
            OSError: they cannot be written.
        """
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            _cut_half_a_line(self.records)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._file = os.open(self.records, flags, 0o600)
        before = os.fstat(self._file).st_size
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise

    def read(self, offset: int) -> Iterator[tuple[Record, int]]:
        """Whole records from a byte on, about a megabyte of them, each with where it ends."""
        try:
            with self.records.open("rb") as file:
                file.seek(offset)
                data = file.read(_PIECE)
                while data and b"\n" not in data and (more := file.read(_PIECE)):
                    data += more
        except FileNotFoundError:
            return
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            with contextlib.suppress(ValueError):
                yield json.loads(line), offset

    def read_all(self, offset: int = 0) -> Iterator[tuple[Record, int]]:
        """All whole records from a byte on, each with where it ends."""
        while True:
            before = offset
            for record, end in self.read(offset):
                offset = end
                yield record, end
            if offset == before:
                return

    def sent(self) -> int:
        """Bytes of the records that were acknowledged."""
        try:
            return int((self.folder / _SENT).read_text())
        except (OSError, ValueError):
            return 0

    def mark(self, offset: int) -> None:
        """Note that all before this byte was acknowledged.

        A note that cannot be written is none: what is sent twice is not stored twice.
        """
        if self.folder.is_dir():
            with contextlib.suppress(OSError):
                replace_bytes(self.folder / _SENT, str(offset).encode())

    def unsent(self) -> int:
        """Records with something to tell that were not acknowledged yet."""
        rest = self.read_all(self.sent())
        return sum(1 for record, _ in rest if record["kind"] not in ("run", "resumed"))

    def refuse(self, record: Record, why: str) -> None:
        """Set a record aside that the server will never take."""
        with (self.folder / _REFUSED).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"why": why, **record}) + "\n")

    def refused(self) -> int:
        """Records that were set aside."""
        try:
            return len((self.folder / _REFUSED).read_text(encoding="utf-8").splitlines())
        except OSError:
            return 0

    def adopt(self, path: Path, name: str) -> str:
        """How a record names a file or folder: as it lies below the same ``--out``, or a copy.

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

    def close(self) -> None:
        """Unlock it; what is in it stays."""
        if self._file is not None:
            os.close(self._file)
        if self._lock is not None:
            self._lock.close()
        self._file = self._lock = None

    def remove(self) -> None:
        """Remove it with all that is in it, but for what was refused."""
        self.close()
        if self.refused():
            for path in (self.records, self.folder / _SENT, self.folder / _LOCK):
                path.unlink(missing_ok=True)
            for name in (PICTURES, ARTIFACTS):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()  # if it was the last one


def find_spools(place: Path) -> list[Spool]:
    """The spools at a place: a file of records, a spool's folder, or whatever holds some.

    Raises:
        JobError: there is nothing at that place.
    """
    if place.is_file():
        return [Spool(place.parent)]
    if not place.is_dir():
        raise JobError(f"expected records of a run, found nothing at {place}")
    return [Spool(path.parent) for path in sorted(place.rglob(RECORDS))]


def parts_of(folder: Path) -> list[Spool]:
    """A run's spool and those of its other writers, that lie beside it."""
    names = sorted(folder.parent.glob(f"{folder.name}*/{RECORDS}"))
    return [Spool(path.parent) for path in names]


def upload(folder: Path, out: Store) -> str:
    """Copy a spool into an object store; returns its place there.

    Raises:
        StorageError: the store does not take it.
    """
    target = remote_spool(folder, out)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _LOCK:
            target.write(path.relative_to(folder).as_posix(), path.read_bytes())
    return target.show()


def remote_spool(folder: Path, out: Store) -> Store:
    """Where :func:`upload` copies a spool to."""
    return out.below(FOLDER).below(folder.name)


def forget(there: Store) -> None:
    """Remove a spool's copy in an object store.

    Raises:
        StorageError: the store does not answer.
    """
    for name in _files(there):
        there.remove(name)


def fetch_spools(out: Store, run_id: str, folder: Path) -> None:
    """Copy a run's spools from an object store into a local folder, where they are not yet.

    Raises:
        StorageError: the store does not answer.
    """
    if out.local is not None or out.kind(FOLDER) != "folder":
        return
    for entry in out.entries(FOLDER):
        name = Path(entry.name).name
        if name.startswith(run_id) and not (folder / name / RECORDS).exists():
            download(out.below(entry.name), folder / name)


def _files(store: Store, folder: str = "") -> Iterator[str]:
    if (folder and store.kind(folder) != "folder") or store.kind() != "folder":
        return
    for entry in store.entries(folder):
        if entry.is_dir:
            yield from _files(store, entry.name)
        else:
            yield entry.name


def download(place: str | Store, folder: Path) -> None:
    """Copy what an object store holds at a place, folders and all, into a local folder.

    Raises:
        StorageError: it cannot be read.
    """
    store = open_store(place)
    for name in _files(store):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(name, target)


def header(run_id: str, experiment_id: str, uri: str) -> Record:
    """A spool's first record; ``uri`` is without secrets."""
    values: Mapping[str, str] = {"run_id": run_id, "experiment_id": experiment_id, "uri": uri}
    return {"kind": "run", **values}


def _cut_half_a_line(path: Path) -> None:
    """Cut what a killed process left behind the last whole line."""
    try:
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            end = size
            while end:
                start = max(0, end - _PIECE)
                file.seek(start)
                at = file.read(end - start).rfind(b"\n")
                if at >= 0:
                    end = start + at + 1
                    break
                end = start
            if end < size:
                file.truncate(end)
    except FileNotFoundError:
        return
