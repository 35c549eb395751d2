"""A folder of the file system as a store."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from colorcore.storage.atomic import move_into_place, replace_bytes, sync_by_default
from colorcore.storage.store import Admit, Entry, NotAFileError, Store, join_name


@dataclass(frozen=True)
class LocalStore(Store):
    """A folder of the file system.

    sync  whether what is written survives a power cut; the store takes it along to other processes
    """

    path: Path
    sync: bool = field(default_factory=sync_by_default, compare=False)

    @property
    def location(self) -> str:  # type: ignore[override]
        """The path as the user wrote it."""
        return str(self.path)

    @property
    def local(self) -> Path:  # type: ignore[override]
        """The path."""
        return self.path

    def kind(self, name: str = "") -> str:  # noqa: D102
        path = self.path / name
        return "folder" if path.is_dir() else "file" if path.exists() else "nothing"

    def entries(self, folder: str = "") -> list[Entry]:  # noqa: D102
        with os.scandir(self.path / folder) as found:
            pairs = sorted((os.fsencode(entry.name), _is_dir(entry)) for entry in found)
        return [Entry(join_name(folder, os.fsdecode(name)), is_dir) for name, is_dir in pairs]

    def read(self, name: str, *, admit: Admit | None = None) -> bytes:  # noqa: D102
        with self.open(name) as file:
            if admit is not None:
                admit(os.fstat(file.fileno()).st_size)
            return file.read()

    def read_range(self, name: str, offset: int, length: int) -> bytes:  # noqa: D102
        with self.open(name) as file:
            file.seek(offset)
            return file.read(length)

    def size(self, name: str) -> int:  # noqa: D102
        return (self.path / name).stat().st_size

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:  # noqa: D102
        path = self.path / name if name else self.path
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise NotAFileError("expected a file, got a pipe, socket or device")
        with path.open("rb") as file:
            yield file

    def stream(self, name: str) -> AbstractContextManager[IO[bytes]]:  # noqa: D102
        return self.open(name)

    def write(self, name: str, data: bytes) -> None:  # noqa: D102
        replace_bytes(self.path / name, data, sync=self.sync)

    def put(self, path: Path, name: str) -> None:  # noqa: D102
        self.put_all({name: path})

    def put_all(self, files: Mapping[str, Path]) -> None:  # noqa: D102
        moves = {path: self.path / name for name, path in files.items()}
        move_into_place(moves, sync=self.sync)

    def copy_from(self, other: Store, theirs: str, name: str) -> bool:
        """As in :class:`Store`, by a hard link: whoever writes into one file changes the other."""
        if other.local is None:
            return False
        try:
            (self.path / name).hardlink_to(other.local / theirs)
        except OSError:  # FAT and some network file systems have no links, or it is another disk
            return False
        return True

    def fetch(self, name: str, target: Path) -> None:  # noqa: D102
        shutil.copyfile(self.path / name, target)

    def remove(self, name: str) -> None:  # noqa: D102
        (self.path / name).unlink(missing_ok=True)

    def below(self, folder: str) -> LocalStore:  # noqa: D102
        return LocalStore(self.path / folder, self.sync)

    def identity(self, folder: str = "") -> tuple[int, int]:
        """Device and inode: the same for all links to a folder, different for any other folder."""
        return identity(self.path / folder)


def cache_folder() -> Path:
    """``COLORCORE_CACHE``, or ``colorcore`` in the user's cache folder."""
    if given := os.environ.get("COLORCORE_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "colorcore"


def identity(path: str | Path) -> tuple[int, int]:
    """A file's device and inode: the same for every path of it, through links and in any case.

    Raises:
        OSError: there is nothing.
        ValueError: no file can have this name.
    """
    status = os.stat(path)  # noqa: PTH116 (called per photo: Path objects are slow)
    return status.st_dev, status.st_ino


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
