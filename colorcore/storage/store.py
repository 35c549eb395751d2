"""Folders of files, here or in an object store, behind one small interface.

Everything that reads or writes a dataset or a source goes through a :class:`Store`. A local one
is the file system itself; a remote one is whatever `pyarrow.fs` opens (``s3://``, ``gs://``, …).
Both promise the same: a reader sees a file whole or not at all. Locally that is a rename, in an
object store one PUT. Remote calls that fail for a passing reason are repeated with growing
pauses; what still fails is a :class:`StorageError` that names the file and the cause.

Credentials come from the environment, as the store's own tools take them; a location that
carries a secret is refused, because locations are written into datasets and logs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    pass


Admit = Callable[[int], None]


class StorageError(Exception):
    """A store does not answer, refuses, or cannot be opened; the message is one line."""


class LocationError(StorageError):
    """A location that cannot be opened as it is written."""


class NotAFileError(OSError):
    """A pipe, socket or device: opening it could wait for ever."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder: its path below the store's top."""

    name: str
    is_dir: bool


class Store(ABC):
    """A folder. Names are paths below it, with ``/``; bytes that are no UTF-8 as surrogates."""

    location: str
    """Where it is, as a user would write it."""
    local: Path | None = None
    """Its path when it is on this machine."""

    def show(self, name: str = "") -> str:
        """A file's whole location, for messages."""
        return join_name(self.location, name)

    @abstractmethod
    def kind(self, name: str = "") -> str:
        """``"file"``, ``"folder"`` or ``"nothing"``."""

    @abstractmethod
    def entries(self, folder: str = "") -> list[Entry]:
        """What a folder holds, sorted by name as bytes; holds all of its names at once."""

    @abstractmethod
    def read(self, name: str, *, admit: Admit | None = None) -> bytes:
        """A whole file.

        ``admit`` is called with the file's size before its bytes are read; it may wait, or
        raise, which this passes on.

        Raises:
            FileNotFoundError: there is none.
            OSError: a local file cannot be read.
            StorageError: a remote file cannot.
        """

    @abstractmethod
    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on (fewer at the end); errors as :meth:`read`."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file; errors as :meth:`read`."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A file to be read here and there; errors as :meth:`read`."""

    @abstractmethod
    def stream(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A file to be read once from its start; errors as :meth:`read`."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a whole file in one step; folders come by themselves."""

    @abstractmethod
    def put(self, path: Path, name: str) -> None:
        """Move a local file into the store in one step."""

    @abstractmethod
    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to a local path (not in one step)."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""

    @abstractmethod
    def below(self, folder: str) -> Store:
        """The store of one of its folders."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.kind(name) == "file"

    def names(self, folder: str) -> list[str]:
        """The names of a folder's files, without the folder; none when there is no folder."""
        try:
            found = self.entries(folder)
        except FileNotFoundError:
            return []
        return [entry.name.rpartition("/")[2] for entry in found if not entry.is_dir]


def join_name(folder: str, name: str) -> str:
    """A name below a folder, either of which may be empty."""
    return f"{folder.rstrip('/')}/{name}" if folder and name else folder or name
