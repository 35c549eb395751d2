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

import contextlib
import io
import os
import random
import re
import shutil
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, unquote

import pyarrow as pa

from colorcore.storage.atomic import replace_bytes

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

TRIES = 6
"""Times a remote call is made before it counts as failed."""
FIRST_PAUSE_S = 0.2
"""Pause after the first failure; each next one is twice as long, give or take a half."""
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 20.0
_S3_OPTIONS = frozenset({"endpoint_override", "scheme", "region", "anonymous"})
_SECRETS = re.compile(r"key|secret|token|password|credential|sig", re.IGNORECASE)
_FINAL = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET|INVALID_CREDENTIALS"
    r"|HTTP status 40[013]",
)
_COPY = 1 << 20

Admit = Callable[[int], None]
_T = TypeVar("_T")


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
        return _join(self.location, name)

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


def open_store(location: str | Path | Store) -> Store:
    """The store of a location; nothing is read yet.

    Args:
        location: a local path, a ``file://`` URI, or a URI that `pyarrow.fs` opens. After an
            ``s3://`` URI, ``?endpoint_override=host:port&scheme=http&region=…`` names a store
            other than Amazon's (so do AWS_ENDPOINT_URL and AWS_REGION).

    Raises:
        LocationError: no such kind of store, or the location holds a secret.
    """
    if isinstance(location, Store):
        return location
    if isinstance(location, Path):
        return LocalStore(location)
    scheme, separator, rest = location.partition("://")
    if not separator:
        return LocalStore(Path(location))
    if scheme == "file":
        return LocalStore(Path(unquote(rest)))
    place, _, query = rest.partition("?")
    bucket, _, path = place.partition("/")
    _check_uri(scheme, bucket, query, user=":" in bucket and "@" in path)
    return RemoteStore(scheme, bucket, path.strip("/"), query)


@lru_cache(maxsize=1024)
def _check_uri(scheme: str, bucket: str, query: str, *, user: bool) -> None:
    """Say at once that a URI is of no known kind, or holds a secret (which may hold slashes)."""
    if user or "@" in bucket or any(_SECRETS.search(name) for name, _ in parse_qsl(query)):
        raise LocationError(
            f"expected no credentials in the location {scheme}://…; "
            "set them in the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, …)"
        )
    _filesystem(scheme, bucket, query)


def absolute_store(location: str | Path | Store) -> Store:
    """The same store, whatever the current folder is: for another process."""
    store = open_store(location)
    return store if store.local is None else LocalStore(store.local.absolute())


# -- local -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalStore(Store):
    """A folder of the file system."""

    path: Path

    @property
    def location(self) -> str:  # type: ignore[override]
        """The path as it was given."""
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
        return [Entry(_join(folder, os.fsdecode(name)), is_dir) for name, is_dir in pairs]

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
        replace_bytes(self.path / name, data)

    def put(self, path: Path, name: str) -> None:  # noqa: D102
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)

    def fetch(self, name: str, target: Path) -> None:  # noqa: D102
        shutil.copyfile(self.path / name, target)

    def remove(self, name: str) -> None:  # noqa: D102
        (self.path / name).unlink(missing_ok=True)

    def below(self, folder: str) -> LocalStore:  # noqa: D102
        return LocalStore(self.path / folder)

    def identity(self, folder: str = "") -> tuple[int, int]:
        """What tells a folder from all others, however many links lead to it."""
        status = (self.path / folder).stat()
        return status.st_dev, status.st_ino


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


# -- remote ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RemoteStore(Store):
    """A prefix of a bucket."""

    scheme: str
    bucket: str
    prefix: str
    query: str

    @property
    def location(self) -> str:  # type: ignore[override]
        """The URI, its options last."""
        return self.show()

    def show(self, name: str = "") -> str:  # noqa: D102
        uri = f"{self.scheme}://{self._path(name)}"
        return f"{uri}?{self.query}" if self.query else uri

    def filesystem(self) -> FileSystem:
        """The file system; one a process for each bucket."""
        return _filesystem(self.scheme, self.bucket, self.query)

    def kind(self, name: str = "") -> str:  # noqa: D102
        from pyarrow.fs import FileType

        info = self._try(name, lambda fs, path: fs.get_file_info(path))
        return {FileType.File: "file", FileType.Directory: "folder"}.get(info.type, "nothing")

    def entries(self, folder: str = "") -> list[Entry]:  # noqa: D102
        from pyarrow.fs import FileSelector, FileType

        found = self._try(folder, lambda fs, path: fs.get_file_info(FileSelector(path)))
        pairs = sorted(
            (info.base_name.encode(), info.type == FileType.Directory)
            for info in found
            if info.base_name
        )
        return [Entry(_join(folder, name.decode()), is_dir) for name, is_dir in pairs]

    def read(self, name: str, *, admit: Admit | None = None) -> bytes:  # noqa: D102
        def action(fs: FileSystem, path: str) -> bytes:
            with fs.open_input_file(path) as file:
                size = file.size()
                if admit is not None:
                    admit(size)
                return _whole(file.read(), size)

        return self._try(name, action)

    def read_range(self, name: str, offset: int, length: int) -> bytes:  # noqa: D102
        def action(fs: FileSystem, path: str) -> bytes:
            with fs.open_input_file(path) as file:
                there = min(length, file.size() - offset)
                return _whole(file.read_at(there, offset), there) if there > 0 else b""

        return self._try(name, action)

    def size(self, name: str) -> int:  # noqa: D102
        def action(fs: FileSystem, path: str) -> int:
            with fs.open_input_file(path) as file:
                return int(file.size())

        return self._try(name, action)

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:  # noqa: D102
        return io.BufferedReader(_RemoteFile(self, name))

    def stream(self, name: str) -> AbstractContextManager[IO[bytes]]:  # noqa: D102
        return io.BufferedReader(_RemoteFile(self, name), 8 * _COPY)  # one request a buffer

    def write(self, name: str, data: bytes) -> None:  # noqa: D102
        def action(fs: FileSystem, path: str) -> None:
            with fs.open_output_stream(path) as file:
                file.write(data)

        self._try(name, action)

    def put(self, path: Path, name: str) -> None:  # noqa: D102
        def action(fs: FileSystem, target: str) -> None:
            with path.open("rb") as source, fs.open_output_stream(target) as file:
                shutil.copyfileobj(source, file, 8 * _COPY)

        self._try(name, action)
        path.unlink()

    def fetch(self, name: str, target: Path) -> None:  # noqa: D102
        def action(fs: FileSystem, path: str) -> None:
            with fs.open_input_file(path) as source, target.open("wb") as file:
                size, done = source.size(), 0
                while done < size:
                    part = source.read(min(16 * _COPY, size - done))
                    file.write(_whole(part, min(16 * _COPY, size - done)))
                    done += len(part)

        self._try(name, action)

    def remove(self, name: str) -> None:  # noqa: D102
        with contextlib.suppress(FileNotFoundError):
            self._try(name, lambda fs, path: fs.delete_file(path))

    def below(self, folder: str) -> RemoteStore:  # noqa: D102
        return RemoteStore(self.scheme, self.bucket, _join(self.prefix, folder), self.query)

    def _path(self, name: str) -> str:
        return _join(_join(self.bucket, self.prefix), name)

    def _try(self, name: str, action: Callable[[FileSystem, str], _T]) -> _T:
        """Run a call, and again with growing pauses while it fails for a passing reason."""
        path = self._path(name)
        for attempt in range(1, TRIES + 1):
            try:
                return action(self.filesystem(), path)
            except FileNotFoundError:
                raise
            except (OSError, pa.ArrowException) as error:
                if attempt == TRIES or _FINAL.search(str(error)):
                    raise self._failed(name, error, attempt) from error
                pause = FIRST_PAUSE_S * 2 ** (attempt - 1)
                time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
        raise AssertionError("unreachable")

    def _failed(self, name: str, error: Exception, tries: int = 1) -> StorageError:
        cause = " ".join(str(error).split()) or type(error).__name__
        times = f" {tries} times" if tries > 1 else ""
        return StorageError(f"{self.show(name)} failed{times}: {cause}")


class _RemoteFile(io.RawIOBase):
    """A remote file; each of its reads is repeated, from where it was, as all remote calls are."""

    def __init__(self, store: RemoteStore, name: str) -> None:
        def action(fs: FileSystem, path: str) -> tuple[Any, int]:
            file = fs.open_input_file(path)
            return file, int(file.size())

        self._store, self._name, self._at = store, name, 0
        self._file: Any = None
        self._file, self._size = store._try(name, action)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._at))
        if not length:
            return 0
        data = self._store._try(
            self._name, lambda _fs, _path: _whole(self._file.read_at(length, self._at), length)
        )
        buffer[:length] = data
        self._at += length
        return length

    def close(self) -> None:
        if self._file is not None and not self.closed:
            self._file.close()
        super().close()


@lru_cache(maxsize=64)
def _filesystem(scheme: str, bucket: str, query: str) -> Any:
    from pyarrow import fs

    try:
        if scheme == "s3":
            return _s3(bucket, dict(parse_qsl(query)))
        uri = f"{scheme}://{bucket}{f'?{query}' if query else ''}"
        return fs.FileSystem.from_uri(uri)[0]
    except (pa.ArrowException, OSError, ValueError) as error:
        detail = str(error).splitlines()[0]
        raise LocationError(
            f"cannot open {scheme}://{bucket}: {detail}; expected a local path or a URI such as "
            "s3://bucket/folder"
        ) from error


def _s3(bucket: str, options: dict[str, str]) -> Any:
    from pyarrow import fs

    if unknown := set(options) - _S3_OPTIONS:
        raise ValueError(
            f"unknown option {sorted(unknown)[0]!r} in the URI, "
            f"expected one of {', '.join(sorted(_S3_OPTIONS))}"
        )
    endpoint = options.get("endpoint_override") or os.environ.get(
        "AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")
    )
    region = options.get("region") or os.environ.get(
        "AWS_REGION", os.environ.get("AWS_DEFAULT_REGION")
    )
    scheme = options.get("scheme")
    if endpoint and "://" in endpoint:
        scheme, _, endpoint = endpoint.partition("://")
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        scheme=scheme,
        region=region,
        anonymous=options.get("anonymous", "").lower() in {"1", "true"},
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
        allow_delayed_open=True,  # one PUT for what is smaller than a part (10 MB)
    )


def _whole(data: bytes, expected: int) -> bytes:
    if len(data) < expected:
        raise OSError(f"the transfer ended after {len(data):,} of {expected:,} bytes")
    return data


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if folder and name else folder or name
