"""Folders of files, here or in an object store, behind one small interface.

All code that reads or writes a dataset or a source goes through a :class:`Store`. A local store is
the file system itself; a remote one is anything that `pyarrow.fs` opens (``s3://``, ``gs://``, …).
Both guarantee that a reader sees a file whole or not at all: locally by a rename, in an object
store by one PUT. What they have written survives a power cut (``colorcore.storage.atomic``).
Remote calls that fail for a passing reason are retried with exponential backoff; a call that keeps
failing raises a :class:`StorageError` that names the file and the cause.

Credentials come from the environment, as for the store's own tools. A location that contains a
secret is refused, because locations are written into datasets and logs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

Admit = Callable[[int], None]


class StorageError(Exception):
    """A store does not answer, refuses access, or cannot be opened; the message is one line."""


class LocationError(StorageError):
    """A location that cannot be opened as written."""


class NotAFileError(OSError):
    """A pipe, socket or device: opening one could block forever."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a folder: its path relative to the store."""

    name: str
    is_dir: bool


class Store(ABC):
    """A folder. Names are relative paths with ``/``; bytes that are not UTF-8 become surrogates."""

    location: str
    """The location, as a user would write it."""
    local: Path | None = None
    """The path, if the folder is on this machine."""

    def show(self, name: str = "") -> str:
        """A file's full location, for messages."""
        return join_name(self.location, name)

    @abstractmethod
    def kind(self, name: str = "") -> str:
        """``"file"``, ``"folder"`` or ``"nothing"``."""

    @abstractmethod
    def entries(self, folder: str = "") -> list[Entry]:
        """A folder's entries, sorted by the bytes of their names; all are in memory at once."""

    @abstractmethod
    def read(self, name: str, *, admit: Admit | None = None) -> bytes:
        """A whole file.

        ``admit`` is called with the file's size before its bytes are read. It may block until
        there is memory, or raise; the exception passes through.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: a local file cannot be read.
            StorageError: a remote file cannot be read.
        """

    @abstractmethod
    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` (fewer at the end); errors as :meth:`read`."""

    @abstractmethod
    def size(self, name: str) -> int:
        """A file's size in bytes; errors as :meth:`read`."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file for random access; errors as :meth:`read`."""

    @abstractmethod
    def stream(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file to read it once from its start; errors as :meth:`read`."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a whole file in one step; creates its folders."""

    @abstractmethod
    def put(self, path: Path, name: str) -> None:
        """Move a local file into the store in one step."""

    def put_all(self, files: Mapping[str, Path]) -> None:
        """Move local files into the store, name -> path, each in one step and in this order."""
        for name, path in files.items():
            self.put(path, name)

    def copy_from(self, other: Store, theirs: str, name: str) -> bool:
        """Give a file of another store a name here too, if that moves none of its bytes.

        Returns whether it was done: False where the two are not in one place, or where the place
        cannot do so, and then nothing has changed.
        """
        return False

    @abstractmethod
    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to a local path; an error may leave a part of it."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    @abstractmethod
    def below(self, folder: str) -> Store:
        """The store of a subfolder."""

    def drop_uploads(self, name: str = "") -> int:
        """Drop what killed writers left of a file, or of all files; returns how many uploads."""
        return 0

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        return self.kind(name) == "file"

    def names(self, folder: str) -> list[str]:
        """The names of a folder's files, without the folder; empty if there is no folder."""
        return self._names(folder, are_dirs=False)

    def folders(self, folder: str) -> list[str]:
        """The names of a folder's folders, likewise."""
        return self._names(folder, are_dirs=True)

    def _names(self, folder: str, *, are_dirs: bool) -> list[str]:
        try:
            found = self.entries(folder)
        except FileNotFoundError:
            return []
        return [entry.name.rpartition("/")[2] for entry in found if entry.is_dir == are_dirs]


def join_name(folder: str, name: str) -> str:
    """Join a folder and a name, either of which may be empty."""
    return f"{folder.rstrip('/')}/{name}" if folder and name else folder or name
