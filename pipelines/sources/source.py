"""Where photos come from: folders, lists and tars, here or in an object store.

A source is a folder (walked in an order that never changes), a photo, a list of photos (text,
CSV or Parquet, in the list's own order) or a WebDataset tar of photos, such as img2dataset
writes. In folders, photos and tars are told by their suffix
(``colorcore.photos.read.PHOTO_SUFFIXES``
and ``.tar``, any case). Each directory is walked once, however many links lead to it.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import tarfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Literal
from urllib.parse import unquote

from colorcore.dataset.layout import PlannedPhoto
from colorcore.dataset.unit import SourcePhoto
from colorcore.photos.read import PHOTO_SUFFIXES
from colorcore.photos.refusal import PhotoRefused, Reason
from colorcore.storage.store import (
    Entry,
    LocalStore,
    LocationError,
    StorageError,
    Store,
    absolute_store,
    open_store,
)
from pipelines.errors import WrongCallError

LIST_SUFFIXES = (".txt", ".csv", ".parquet")
LIST_COLUMNS = ("path", "uri", "url", "file", "filename", "file_name", "image", "source")
"""What a list's column of photos may be called; a list with one column may call it anything."""
TAR_SUFFIX = ".tar"
REMOTE_READS = 16
"""Remote photos that a task reads at a time, and twice that many ahead."""
AHEAD_BYTES = 128 << 20
"""Bytes of remote photos that a task holds read ahead; one photo may be larger."""
READ_TOGETHER = 256
FOLDERS_AHEAD = 16
"""Folders of a remote source that are listed ahead of the walk."""
_TAR_END = 1024
_TAR_BUFFER = 1 << 20


@dataclass(frozen=True)
class Source:
    """A source that exists: ``store`` is its folder, or the folder of the photo, tar or list."""

    location: str
    kind: Literal["folder", "file", "list"]
    store: Store
    name: str = ""

    def absolute(self) -> Source:
        """The same source, whatever the current folder is."""
        return replace(self, store=absolute_store(self.store))

    def place(self, photo: PlannedPhoto) -> tuple[Store, str]:
        """The store of one of its photos, and the name there."""
        path = os.fsdecode(photo.path)
        if self.kind == "folder":
            return self.store, path
        if self.kind == "file":
            return self.store, self.name
        if path.startswith("file://"):
            return LocalStore(Path("/")), unquote(path.removeprefix("file://")).lstrip("/")
        if "://" in path:
            folder, _, name = path.partition("?")[0].rpartition("/")
            return open_store(folder + path[len(folder) + 1 + len(name) :]), name
        if os.path.isabs(path):  # noqa: PTH117 (surrogates)
            return LocalStore(Path("/")), path.lstrip("/")
        return self.store, path

    def show(self, photo: PlannedPhoto) -> str:
        """A photo's whole location, for people."""
        store, name = self.place(photo)
        return store.show(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def local_path(location: str, what: str) -> Path:
    """The local path of a location on the command line.

    Raises:
        WrongCallError: it is a URI, which this command does not open.
    """
    store = open_store(location)
    if store.local is None:
        raise WrongCallError(
            f"expected a local path for {what}, got {location}; copy it here first"
        )
    return store.local


def open_sources(locations: Sequence[str | Path]) -> list[Source]:
    """The sources on the command line.

    Raises:
        WrongCallError: one of them does not exist.
        StorageError: a store cannot be opened or does not answer.
    """
    return [_open_source(location) for location in locations]


def _open_source(location: str | Path) -> Source:
    store = open_store(location)
    kind = store.kind()
    if kind == "nothing":
        raise WrongCallError(
            f"expected a folder of photos, a photo, a list or a tar, found nothing at {location}"
        )
    if kind == "folder":
        return Source(str(location), "folder", store)
    folder, name = _parent(store)
    listed = name.lower().endswith(LIST_SUFFIXES)
    return Source(str(location), "list" if listed else "file", folder, name)


def _parent(store: Store) -> tuple[Store, str]:
    if store.local is not None:
        return LocalStore(store.local.parent), store.local.name
    uri, question, options = store.show().partition("?")
    folder, _, name = uri.rpartition("/")
    return open_store(folder + question + options), name


# -- listing -----------------------------------------------------------------------------------


def list_photos(
    sources: Sequence[Source], ignored: Counter[str], *, skip: Store | None = None
) -> Iterator[PlannedPhoto]:
    """Every photo and tar of the sources, in order; holds one directory's names at a time.

    ``skip`` is a directory that is not entered (the dataset, when it lies inside a source).
    ``ignored`` counts the files that are no photos, by suffix. A local directory that cannot be
    listed is yielded as a photo: reading it will refuse it, so that nothing is lost silently.
    A source that is a photo or tar itself has the path of its name.

    Raises:
        WrongCallError: a list has no column of photos, or is damaged.
        StorageError: a remote folder cannot be listed.
    """
    for root, source in enumerate(sources):
        if source.kind == "file":
            yield PlannedPhoto(root, os.fsencode(source.name))
        elif source.kind == "list":
            for path in _listed(source):
                yield PlannedPhoto(root, os.fsencode(path))
        else:
            for name in _walk(source.store, skip, ignored):
                yield PlannedPhoto(root, os.fsencode(name))


def is_tar(photo: PlannedPhoto) -> bool:
    """Whether a planned photo is a tar of photos."""
    path = photo.path.partition(b"?")[0] if b"://" in photo.path else photo.path
    return path[-len(TAR_SUFFIX) :].lower() == TAR_SUFFIX.encode()


def _walk(top: Store, skip: Store | None, ignored: Counter[str]) -> Iterator[str]:
    with _Folders(top, skip) as folders:
        opened = [folders.entries("")]
        while opened:
            entry = next(opened[-1], None)
            if entry is None:
                opened.pop()
                continue
            if entry.is_dir:
                try:
                    opened.append(folders.entries(entry.name))
                except OSError:
                    yield entry.name
                continue
            suffix = posixpath.splitext(entry.name)[1].lower()
            if suffix in PHOTO_SUFFIXES or suffix == TAR_SUFFIX:
                yield entry.name
            else:
                ignored[suffix or "(none)"] += 1


class _Folders:
    """The folders of a source, each once; those of a remote one are listed ahead in threads.

    A local folder is told by its inode and links are followed; a remote one has one name, so
    nothing is remembered of it.
    """

    def __init__(self, top: Store, skip: Store | None) -> None:
        self._top = top
        self._pool: ThreadPoolExecutor | None = None
        self._listed: dict[str, Future[list[Entry]]] = {}
        self._visited: set[tuple[int, int]] = set()
        self._skip = skip.show() if skip is not None else None
        if isinstance(top, LocalStore):
            if isinstance(skip, LocalStore) and skip.kind() == "folder":
                self._visited.add(skip.identity())
        else:
            self._pool = ThreadPoolExecutor(FOLDERS_AHEAD, "listing")

    def __enter__(self) -> _Folders:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def entries(self, folder: str) -> Iterator[Entry]:
        """What a folder holds, sorted by name; nothing when it was there before."""
        if isinstance(self._top, LocalStore):
            identity = self._top.identity(folder)
            if identity in self._visited:
                return iter(())
            self._visited.add(identity)
            return iter(self._top.entries(folder))
        if self._top.show(folder) == self._skip:
            return iter(())
        ready = self._listed.pop(folder, None)
        return self._ahead(self._top.entries(folder) if ready is None else ready.result())

    def _ahead(self, entries: list[Entry]) -> Iterator[Entry]:
        folders = [entry.name for entry in entries if entry.is_dir]
        at = 0
        for entry in entries:
            if entry.is_dir and self._pool is not None:
                for name in folders[at + 1 : at + 1 + FOLDERS_AHEAD]:
                    if name not in self._listed:
                        self._listed[name] = self._pool.submit(self._top.entries, name)
                at += 1
            yield entry


def _listed(source: Source) -> Iterator[str]:
    """The rows of a list, in order; holds one batch of them."""
    suffix = source.name.lower().rpartition(".")[2]
    rows = {"txt": _text_rows, "csv": _csv_rows, "parquet": _parquet_rows}[suffix]
    try:
        opened = source.store.open if suffix == "parquet" else source.store.stream
        with opened(source.name) as file:
            for row in filter(None, rows(file, source.location)):
                if "://" in row:
                    open_store(row)  # a row of no known kind or with a secret goes no further
                yield row
    except LocationError as error:
        raise WrongCallError(f"in the list {source.location}: {error}") from error
    except (OSError, ValueError, csv.Error) as error:  # of Arrow too
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise WrongCallError(f"the list {source.location} cannot be read: {detail}") from error


def _text_rows(file: IO[bytes], _: str) -> Iterator[str]:
    with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape") as lines:
        for line in lines:
            yield line.strip()


def _csv_rows(file: IO[bytes], location: str) -> Iterator[str]:
    with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as lines:
        rows = filter(None, csv.reader(lines))
        header = next(rows, [])
        suffixes = (*PHOTO_SUFFIXES, TAR_SUFFIX)
        if len(header) == 1 and ("/" in header[0] or header[0].lower().endswith(suffixes)):
            yield header[0].strip()  # no header: the first row is a photo
            column = 0
        else:
            column = header.index(_column(header, location)) if header else 0
        for row in rows:
            yield row[column].strip() if len(row) > column else ""


def _parquet_rows(file: IO[bytes], location: str) -> Iterator[str]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    column = _column(parquet.schema_arrow.names, location)
    for batch in parquet.iter_batches(batch_size=8192, columns=[column]):
        for value in batch[0].to_pylist():
            yield os.fsdecode(value) if isinstance(value, bytes) else str(value or "")


def _column(names: Sequence[str], location: str) -> str:
    if len(names) == 1:
        return names[0]
    lower = {name.lower(): name for name in reversed(names)}
    for name in LIST_COLUMNS:
        if name in lower:
            return lower[name]
    raise WrongCallError(
        f"expected a column of photos in {location}, named one of {', '.join(LIST_COLUMNS)}; "
        f"found {', '.join(names)}"
    )


# -- reading -----------------------------------------------------------------------------------


def read_photos(
    sources: Sequence[Source], photos: Sequence[PlannedPhoto], max_bytes: int
) -> Iterator[SourcePhoto]:
    """The bytes of photos, in order, and of the photos in tars; remote ones are read ahead.

    A photo that is gone, too large or no file comes as its refusal.

    Raises:
        StorageError: a store does not answer, or refuses.
    """
    files = [photo for photo in photos if not is_tar(photo)]
    with ExitStack() as stack:
        if any(sources[photo.root].place(photo)[0].local is None for photo in files):
            ahead = stack.enter_context(_ReadAhead(sources, files, max_bytes))
            contents = iter(ahead)
        else:
            contents = (_content(sources, photo, partial(_check, max_bytes)) for photo in files)
        for photo in photos:
            if is_tar(photo):
                yield from _members(sources, photo, max_bytes)
            else:
                yield SourcePhoto(photo.root, photo.source, next(contents))


def photos_of(
    locations: Sequence[str | Path], max_bytes: int, *, skip: Store | None = None
) -> Iterator[SourcePhoto]:
    """List and read all photos of some sources; holds ``READ_TOGETHER`` paths at a time.

    Raises:
        WrongCallError, StorageError: as :func:`open_sources` and :func:`list_photos`.
    """
    sources = open_sources(locations)
    listed = list_photos(sources, Counter(), skip=skip)
    while photos := list(islice(listed, READ_TOGETHER)):
        yield from read_photos(sources, photos, max_bytes)


def _check(max_bytes: int, size: int) -> None:
    if size > max_bytes:
        raise PhotoRefused(Reason.TOO_LARGE, f"{size:,} bytes, expected at most {max_bytes:,}")


def _content(
    sources: Sequence[Source], photo: PlannedPhoto, admit: Callable[[int], None]
) -> bytes | PhotoRefused:
    try:
        store, name = sources[photo.root].place(photo)
        return store.read(name, admit=admit)
    except PhotoRefused as refusal:
        return refusal
    except OSError as error:
        detail = error.strerror or str(error) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            detail = "no such file"
        return PhotoRefused(Reason.UNREADABLE, detail)
    except ValueError as error:  # a name that no file can have
        return PhotoRefused(Reason.UNREADABLE, str(error))


class _ReadAhead:
    """Reads photos in threads, in order, at most ``AHEAD_BYTES`` ahead of the consumer."""

    def __init__(
        self, sources: Sequence[Source], photos: Sequence[PlannedPhoto], max_bytes: int
    ) -> None:
        self._sources, self._photos, self._max_bytes = sources, photos, max_bytes
        self._pool = ThreadPoolExecutor(REMOTE_READS, "photos")
        self._change = threading.Condition()
        self._held: dict[int, int] = {}
        self._next = 0
        self._stopped = False

    def __enter__(self) -> _ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        with self._change:
            self._stopped = True
            self._change.notify_all()
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[bytes | PhotoRefused]:
        running: deque[Future[bytes | PhotoRefused]] = deque()
        submitted = 0
        for number in range(len(self._photos)):
            while submitted < len(self._photos) and submitted - number < 2 * REMOTE_READS:
                running.append(self._pool.submit(self._read, submitted))
                submitted += 1
            yield running.popleft().result()
            with self._change:
                self._held.pop(number, None)
                self._next = number + 1
                self._change.notify_all()

    def _read(self, number: int) -> bytes | PhotoRefused:
        return _content(self._sources, self._photos[number], partial(self._admit, number))

    def _admit(self, number: int, size: int) -> None:
        """Wait until the photo fits; the next one to be consumed always does."""
        _check(self._max_bytes, size)
        with self._change:
            self._change.wait_for(
                lambda: (
                    self._stopped
                    or number <= self._next
                    or number in self._held
                    or sum(self._held.values()) + size <= AHEAD_BYTES
                )
            )
            if self._stopped:
                raise StorageError("nobody waits for this photo any more")
            self._held[number] = size


def _members(
    sources: Sequence[Source], photo: PlannedPhoto, max_bytes: int
) -> Iterator[SourcePhoto]:
    """The photos in a tar, in its order; what does not end as a tar must is refused, by name."""
    found = 0

    def refused(reason: Reason, detail: str) -> SourcePhoto:
        return SourcePhoto(photo.root, photo.source, PhotoRefused(reason, detail))

    try:
        store, name = sources[photo.root].place(photo)
        size = store.size(name)
        with (
            store.stream(name) as file,
            tarfile.open(fileobj=file, mode="r|", bufsize=_TAR_BUFFER) as tar,
        ):
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                # tarfile would go on to wherever the header says, step by step
                if member.size < 0 or tar.offset >= size + tarfile.BLOCKSIZE:
                    what = f"{_printable(member.name)} has {member.size:,} bytes by its header"
                    raise tarfile.ReadError(f"{what}, the tar has {size:,}")
                suffix = posixpath.splitext(member.name)[1].lower()
                if not member.isreg() or suffix not in PHOTO_SUFFIXES:
                    continue
                yield SourcePhoto(
                    photo.root,
                    f"{photo.source}#{_printable(member.name)}",
                    _member(tar, member, max_bytes),
                )
                found += 1
            end = tar.offset
        ending = store.read_range(name, end, _TAR_BUFFER)
    except (tarfile.TarError, EOFError) as error:
        reason = Reason.TRUNCATED if found else Reason.UNREADABLE
        yield refused(reason, f"the tar is damaged after {found} photos: {error}")
    except (OSError, ValueError) as error:  # a name that no file can have, too
        yield refused(Reason.UNREADABLE, getattr(error, "strerror", None) or str(error))
    else:
        if ending.strip(b"\0"):
            what = f"expected its end or a header at byte {end:,}"
            yield refused(Reason.TRUNCATED, f"the tar is damaged after {found} photos: {what}")
        elif len(ending) < _TAR_END:
            yield refused(Reason.TRUNCATED, f"the tar ends early, after {found} photos")


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes | PhotoRefused:
    try:
        _check(max_bytes, member.size)
    except PhotoRefused as refusal:
        return refusal
    file = tar.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) < member.size:
        raise tarfile.ReadError(f"{member.name} has {len(data):,} of {member.size:,} bytes")
    return data


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
