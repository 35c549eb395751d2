"""List the photos of sources in an order that never changes, and count the files skipped."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from colorcore.photos.read import PHOTO_SUFFIXES
from colorcore.storage.local import LocalStore
from colorcore.storage.store import Entry, Store
from pipelines.sources.lists import listed_photos
from pipelines.sources.litter import litter_file, litter_folder
from pipelines.sources.patterns import expand_pattern
from pipelines.sources.source import TAR_SUFFIX, PlannedPhoto, Source, Tally, kind_of

FOLDERS_AHEAD = 16
"""Folders of a remote source listed ahead of the walk, to hide each request's latency."""


def list_photos(
    sources: Sequence[Source],
    ignored: Counter[str],
    *,
    skip: Store | None = None,
    tallies: Sequence[Tally] | None = None,
) -> Iterator[PlannedPhoto]:
    """Every photo and tar of the sources, in order; holds one directory's names at a time.

    ``skip`` is a directory to leave out (the dataset, if it lies inside a source). ``ignored``
    counts the files that are not photos, by kind: their suffix, or what put them there
    (``pipelines.sources.litter``). ``tallies`` counts the same for each source, and its photos.
    A local directory that cannot be listed is yielded as if it were a photo: reading refuses it by
    name, so nothing is lost silently. For a source that is itself a photo or tar, the path is its
    file name.

    Raises:
        WrongCallError: a list has no column of photos or is damaged.
        StorageError: a remote folder cannot be listed.
    """
    for root, source in enumerate(sources):
        tally = tallies[root] if tallies is not None else Tally()

        def count(kind: str, tally: Tally = tally) -> None:
            ignored[kind] += 1
            tally.skipped[kind] += 1

        for path in _paths(source, skip, count):
            tally.listed += 1
            yield PlannedPhoto(root, os.fsencode(path))


def is_tar(photo: PlannedPhoto) -> bool:
    """Whether a planned photo is a tar of photos."""
    path = photo.path.partition(b"?")[0] if b"://" in photo.path else photo.path
    return path[-len(TAR_SUFFIX) :].lower() == TAR_SUFFIX.encode()


def _paths(source: Source, skip: Store | None, count: Callable[[str], None]) -> Iterator[str]:
    if source.kind == "file":
        yield source.name
    elif source.kind == "list":
        yield from listed_photos(source, count)
    elif source.kind == "pattern":
        yield from expand_pattern(source.location) or ()
    else:
        yield from _walk(source.store, skip, count)


def _walk(top: Store, skip: Store | None, count: Callable[[str], None]) -> Iterator[str]:
    # A stack of iterators instead of recursion: folders may nest deeper than Python recurses.
    with _Folders(top, skip) as folders:
        opened = [folders.entries("")]
        while opened:
            entry = next(opened[-1], None)
            if entry is None:
                opened.pop()
                continue
            if entry.is_dir:
                if kind := litter_folder(entry.name):
                    for _ in range(_litter_files(folders, entry.name)):
                        count(kind)
                    continue
                try:
                    opened.append(folders.entries(entry.name))
                except OSError:  # reading the folder as a photo will refuse it by name
                    yield entry.name
                continue
            suffix = posixpath.splitext(entry.name)[1].lower()
            if kind := litter_file(entry.name):
                count(kind)
            elif suffix in PHOTO_SUFFIXES or suffix == TAR_SUFFIX:
                yield entry.name
            else:
                count(kind_of(entry.name))


def _litter_files(folders: _Folders, top: str) -> int:
    """Count the files below a folder of litter; a link and what cannot be listed count as one."""
    files = 0
    waiting = [top]
    while waiting:
        try:
            entries = folders.entries_apart(waiting.pop())
        except OSError:
            entries = None
        if entries is None:
            files += 1
            continue
        inside = [entry.name for entry in entries if entry.is_dir]
        files += len(entries) - len(inside)
        waiting += inside
    return files


class _Folders:
    """Lists the folders of a source, each once; remote ones ahead of the walk, in threads.

    Local folders are compared by inode, because links may lead to a folder twice or in circles.
    Object stores have no links, so nothing needs to be remembered for them.
    """

    def __init__(self, top: Store, skip: Store | None) -> None:
        self._top = top
        self._pool: ThreadPoolExecutor | None = None
        self._listed: dict[str, Future[list[Entry]]] = {}
        self._visited: set[tuple[int, int]] = set()
        self._skip = skip.show() if skip is not None else None
        if isinstance(top, LocalStore):
            # As if visited before: then links to the skipped folder are not followed either.
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
        """The contents of a folder, sorted by name; empty if the folder was listed before."""
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

    def entries_apart(self, folder: str) -> list[Entry] | None:
        """The contents of a folder that does not count as visited; None if it is a link.

        A link may lead out of the litter, to photos that the walk has yet to list.
        """
        if isinstance(self._top, LocalStore):
            return None if self._top.below(folder).path.is_symlink() else self._top.entries(folder)
        ready = self._listed.pop(folder, None)
        return self._top.entries(folder) if ready is None else ready.result()

    def _ahead(self, entries: list[Entry]) -> Iterator[Entry]:
        """Yield the entries, and before each folder start listing the folders after it."""
        # Only siblings: the walk enters each of them next, and children are not known yet.
        folders = [entry.name for entry in entries if entry.is_dir]
        at = 0
        for entry in entries:
            if entry.is_dir and self._pool is not None:
                for name in folders[at + 1 : at + 1 + FOLDERS_AHEAD]:
                    if name not in self._listed:
                        self._listed[name] = self._pool.submit(self._top.entries, name)
                at += 1
            yield entry
