"""A prefix of a bucket as a store, through pyarrow.fs: calls are retried with backoff.

Files from 10 MB on are uploaded in parts, which stay in the bucket, and cost money, when the upload
fails. `pyarrow.fs` can neither abort an upload nor list what was left, so boto3 does that, where it
is installed. The backstop is a lifecycle rule of the bucket (docs/datasets.md).
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

import pyarrow as pa

from colorcore.storage.store import Admit, Entry, LocationError, StorageError, Store, join_name
from colorcore.waiting import waiting_for

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

TRIES = 6
"""Attempts of a remote call before it counts as failed."""
FIRST_PAUSE_S = 0.2
"""Pause after the first failure. It doubles with each retry, with a jitter of ±50% so that many
workers do not retry in step."""
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 20.0
_S3_OPTIONS = frozenset({"endpoint_override", "scheme", "region", "anonymous"})
_FINAL = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET|INVALID_CREDENTIALS"
    r"|HTTP status 40[013]",
)
_COPY = 1 << 20
_LEAST_PART = 5 << 20
"""Smallest part of an upload, by S3's rules: smaller files have none."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class RemoteStore(Store):
    """A prefix of a bucket."""

    scheme: str
    bucket: str
    prefix: str
    query: str

    @property
    def location(self) -> str:  # type: ignore[override]
        """The URI, with its options at the end."""
        return self.show()

    def show(self, name: str = "") -> str:  # noqa: D102
        uri = f"{self.scheme}://{self._path(name)}"
        return f"{uri}?{self.query}" if self.query else uri

    def filesystem(self) -> FileSystem:
        """The file system; each process opens one per bucket."""
        return filesystem_of(self.scheme, self.bucket, self.query)

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
        return [Entry(join_name(folder, name.decode()), is_dir) for name, is_dir in pairs]

    def read(self, name: str, *, admit: Admit | None = None) -> bytes:  # noqa: D102
        def action(fs: FileSystem, path: str) -> bytes:
            with fs.open_input_file(path) as file:
                size = file.size()
                if admit is not None:
                    admit(size)
                return _whole(file.read(), size)

        return self._try(name, action, is_long=True)

    def read_range(self, name: str, offset: int, length: int) -> bytes:  # noqa: D102
        def action(fs: FileSystem, path: str) -> bytes:
            with fs.open_input_file(path) as file:
                there = min(length, file.size() - offset)
                return _whole(file.read_at(there, offset), there) if there > 0 else b""

        return self._try(name, action, is_long=True)

    def size(self, name: str) -> int:  # noqa: D102
        def action(fs: FileSystem, path: str) -> int:
            with fs.open_input_file(path) as file:
                return int(file.size())

        return self._try(name, action)

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:  # noqa: D102
        return io.BufferedReader(_RemoteFile(self, name))

    def stream(self, name: str) -> AbstractContextManager[IO[bytes]]:  # noqa: D102
        return io.BufferedReader(_RemoteFile(self, name), 8 * _COPY)  # one request per buffer

    def write(self, name: str, data: bytes) -> None:  # noqa: D102
        self._try(name, lambda fs, _: self._upload(fs, name, iter([data])), is_long=True)

    def put(self, path: Path, name: str) -> None:  # noqa: D102
        self._try(name, lambda fs, _: self._upload(fs, name, _pieces(path)), is_long=True)
        path.unlink()

    def copy_from(self, other: Store, theirs: str, name: str) -> bool:
        """As in :class:`Store`, by a copy that the object store makes itself."""
        if not isinstance(other, RemoteStore) or (other.scheme, other.bucket, other.query) != (
            self.scheme,
            self.bucket,
            self.query,
        ):
            return False
        source = other._path(theirs)
        try:
            self._try(name, lambda fs, path: fs.copy_file(source, path), is_long=True)
        except (OSError, StorageError, NotImplementedError):
            # Such as a file above 5 GB, the most that S3 copies in one call, or a file system that
            # cannot copy, for which pyarrow raises NotImplementedError. The caller uploads it then,
            # so nothing is lost, and a store that is gone is reported by that.
            return False
        return True

    def _upload(self, fs: FileSystem, name: str, pieces: Iterator[bytes]) -> None:
        # The first piece first: if it cannot be read, nothing is uploaded.
        piece: bytes | None = next(pieces, b"")
        file = fs.open_output_stream(self._path(name))
        reading, sent = False, 0
        try:
            while piece is not None:
                sent += len(piece)
                file.write(piece)
                reading = True
                piece = next(pieces, None)
                reading = False
            file.close()
        except BaseException as error:
            aborted = self.drop_uploads(name) if sent >= _LEAST_PART else 0
            with contextlib.suppress(OSError, pa.ArrowException):
                # Unless aborted or failed itself, this completes the upload with what it has.
                file.close()
                if not aborted and (reading or not isinstance(error, Exception)):
                    fs.delete_file(self._path(name))
            raise

    def drop_uploads(self, name: str = "") -> int:
        """Abort the unfinished uploads of a file, or of all files if none is named.

        Whatever uploads these files must be dead. Returns how many there were: 0 without boto3,
        without permission, or in a store that is not S3.
        """
        client = (
            _boto3_client(self.bucket, self.query, os.getpid()) if self.scheme == "s3" else None
        )
        if client is None:
            return 0
        from botocore.exceptions import BotoCoreError, ClientError

        key = join_name(self.prefix, name)
        dropped = 0
        with contextlib.suppress(BotoCoreError, ClientError):
            pages = client.get_paginator("list_multipart_uploads")
            prefix = key if name or not key else f"{key}/"
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
                for upload in page.get("Uploads", ()):
                    if name and upload["Key"] != key:
                        continue
                    client.abort_multipart_upload(
                        Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    dropped += 1
        return dropped

    def fetch(self, name: str, target: Path) -> None:  # noqa: D102
        def action(fs: FileSystem, path: str) -> None:
            with fs.open_input_file(path) as source, target.open("wb") as file:
                size, done = source.size(), 0
                while done < size:
                    part = source.read(min(16 * _COPY, size - done))
                    file.write(_whole(part, min(16 * _COPY, size - done)))
                    done += len(part)

        self._try(name, action, is_long=True)

    def remove(self, name: str) -> None:  # noqa: D102
        with contextlib.suppress(FileNotFoundError):
            self._try(name, lambda fs, path: fs.delete_file(path))

    def below(self, folder: str) -> RemoteStore:  # noqa: D102
        return RemoteStore(self.scheme, self.bucket, join_name(self.prefix, folder), self.query)

    def _path(self, name: str) -> str:
        return join_name(join_name(self.bucket, self.prefix), name)

    def _try(
        self, name: str, action: Callable[[FileSystem, str], _T], *, is_long: bool = False
    ) -> _T:
        """Run a call, and retry it with exponential backoff while it fails for a passing reason.

        is_long  whether it may take long without any failure, because it moves a file's content
        """
        path = self._path(name)
        with contextlib.ExitStack() as stack:
            if not is_long:
                stack.enter_context(waiting_for(f"an answer about {self.show(name)}"))
            for attempt in range(1, TRIES + 1):
                try:
                    return action(self.filesystem(), path)
                except FileNotFoundError:
                    raise
                except (OSError, pa.ArrowException) as error:
                    if attempt == TRIES or _FINAL.search(str(error)):
                        raise self._failed(name, error, attempt) from error
                    if is_long and attempt == 1:
                        what = f"{self.show(name)}, which failed once: {_one_line(error)}"
                        stack.enter_context(waiting_for(what))
                    pause = FIRST_PAUSE_S * 2 ** (attempt - 1)
                    time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
        raise AssertionError("unreachable")

    def _failed(self, name: str, error: Exception, tries: int = 1) -> StorageError:
        times = f" {tries} times" if tries > 1 else ""
        return StorageError(f"{self.show(name)} failed{times}: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _RemoteFile(io.RawIOBase):
    """A remote file. Each read is retried from its offset, like every remote call."""

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
            self._name,
            lambda _fs, _path: _whole(self._file.read_at(length, self._at), length),
            is_long=True,
        )
        buffer[:length] = data
        self._at += length
        return length

    def close(self) -> None:
        if self._file is not None and not self.closed:
            self._file.close()
        super().close()


def filesystem_of(scheme: str, bucket: str, query: str) -> Any:
    """The pyarrow file system of a bucket, opened once per process."""
    # A forked process, such as a DataLoader's worker, must not send on its parent's connections.
    return opened_filesystem(scheme, bucket, query, os.getpid())


@lru_cache(maxsize=64)
def opened_filesystem(scheme: str, bucket: str, query: str, _process: int) -> Any:
    """:func:`filesystem_of` for one process."""
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

    place = _s3_place(bucket, options)
    return fs.S3FileSystem(
        **place,
        anonymous=_is_anonymous(options),
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
        allow_delayed_open=True,  # one PUT for files smaller than a part (10 MB)
    )


def _is_anonymous(options: dict[str, str]) -> bool:
    return options.get("anonymous", "").lower() in {"1", "true"}


def _s3_place(bucket: str, options: dict[str, str]) -> dict[str, str | None]:
    """endpoint_override, scheme and region of a bucket, from the URI and the environment."""
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
    return {"endpoint_override": endpoint, "scheme": scheme, "region": region}


@lru_cache(maxsize=64)
def _boto3_client(bucket: str, query: str, _process: int) -> Any | None:
    """What the file system cannot do; None if boto3 is missing or has no credentials."""
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return None
    options = dict(parse_qsl(query))
    try:
        place = _s3_place(bucket, options)
        endpoint = place["endpoint_override"]
        return boto3.client(
            "s3",
            region_name=place["region"],
            endpoint_url=endpoint and f"{place['scheme'] or 'https'}://{endpoint}",
            config=Config(
                signature_version=UNSIGNED if _is_anonymous(options) else None,
                s3={"addressing_style": "path" if endpoint else "auto"},
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=REQUEST_TIMEOUT_S,
                retries={"max_attempts": 2},
                proxies={},  # like the file system
            ),
        )
    except (BotoCoreError, pa.ArrowException, OSError, ValueError):
        return None


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as source:
        while piece := source.read(8 * _COPY):
            yield piece


def _whole(data: bytes, expected: int) -> bytes:
    if len(data) < expected:
        raise OSError(f"the transfer ended after {len(data):,} of {expected:,} bytes")
    return data
