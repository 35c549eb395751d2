"""List the photos of sources: the walk over folders, and what it left out."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from colorcore.photos.read import PHOTO_SUFFIXES
from colorcore.storage.local import LocalStore
from colorcore.storage.store import Entry, Store
from pipelines.sources.lists import listed_photos
from pipelines.sources.source import TAR_SUFFIX, PlannedPhoto, Source

FOLDERS_AHEAD = 16
"""Folders of a remote source that are listed ahead of the walk."""


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
            for path in listed_photos(source):
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
