"""A source of photos on the command line, and a photo in it.

A source is a folder (walked in an order that never changes), a photo, a list of photos (text,
CSV or Parquet, in the list's own order), a WebDataset tar of photos, as img2dataset writes them, or
a pattern of such tars; local or in an object store. Inside folders, photos and tars are recognized
by their suffix, in any case.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from colorcore.photos.read import PHOTO_SUFFIXES
from colorcore.storage.local import LocalStore
from colorcore.storage.location import absolute_store, open_store
from colorcore.storage.store import Store
from pipelines.errors import WrongCallError
from pipelines.sources.patterns import expand_pattern

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".parquet")
TAR_SUFFIX = ".tar"


@dataclass(frozen=True, slots=True)
class PlannedPhoto:
    """A photo (or tar) to read: the number of its source and its path there, in bytes.

    Bytes, because file names on Linux need not be UTF-8.
    """

    root: int
    path: bytes

    @property
    def source(self) -> str:
        """The path for display; bytes that are not UTF-8 become backslash escapes."""
        return self.path.decode("utf-8", "backslashreplace")


@dataclass(slots=True)
class Tally:
    """What a source held.

    listed   photos and tars that were listed
    empty    those of them in which there was no photo: tars without photos, AppleDouble files
    skipped  files that are not photos, in folders and in tars, by kind (mostly the suffix)
    """

    listed: int = 0
    empty: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def without_photos(self) -> bool:
        """Whether there was no photo at all, not even a damaged one."""
        return self.listed <= self.empty

    def add(self, other: Tally) -> None:
        """Add what was found elsewhere in the same source."""
        self.listed += other.listed
        self.empty += other.empty
        self.skipped += other.skipped


def kind_of(name: str) -> str:
    """The kind of a file that is not a photo: its suffix in lower case, or "(none)"."""
    return posixpath.splitext(name)[1].lower() or "(none)"


def describe(skipped: Counter[str] | dict[str, int]) -> str:
    """Skipped files by kind, for messages, the most frequent first: ``5 .jxl, 1 .txt``."""
    kinds = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds)


def no_photos_in(sources: Sequence[Source], tallies: Sequence[Tally]) -> list[str]:
    """One sentence for each source without photos: what was found in it instead."""
    return [
        f"expected photos in {source.location}, found none: "
        + (f"skipped {describe(tally.skipped)}" if tally.skipped else "it is empty")
        for source, tally in zip(sources, tallies, strict=True)
        if tally.without_photos
    ]


@dataclass(frozen=True)
class Source:
    """An existing source.

    store  the folder itself, the folder that holds ``name``, or, for a pattern, the current folder
    """

    location: str
    kind: Literal["folder", "file", "list", "pattern"]
    store: Store
    name: str = ""

    @property
    def names_photos(self) -> bool:
        """Whether it names its photos one by one, in an order of its own, wherever they are."""
        return self.kind in ("list", "pattern")

    def absolute(self) -> Source:
        """The same source, independent of the current folder."""
        return replace(self, store=absolute_store(self.store))

    def place(self, photo: PlannedPhoto) -> tuple[Store, str]:
        """The store that holds one of this source's photos, and the photo's name there."""
        path = os.fsdecode(photo.path)
        if self.kind == "folder":
            return self.store, path
        if self.kind == "file":
            return self.store, self.name
        # The names in a list or pattern may be anything: a URI, an absolute or a relative path.
        if path.startswith("file://"):
            return LocalStore(Path("/")), unquote(path.removeprefix("file://")).lstrip("/")
        if "://" in path:
            folder, _, name = path.partition("?")[0].rpartition("/")
            options = path[len(folder) + 1 + len(name) :]  # "?endpoint_override=…" or nothing
            return open_store(folder + options), name
        if os.path.isabs(path):  # noqa: PTH117 (surrogates)
            return LocalStore(Path("/")), path.lstrip("/")
        return self.store, path

    def show(self, photo: PlannedPhoto) -> str:
        """A photo's full location, for display."""
        store, name = self.place(photo)
        return store.show(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def local_path(location: str, what: str) -> Path:
    """The path of a location that must be local.

    Raises:
        WrongCallError: it is the URI of an object store.
    """
    store = open_store(location)
    if store.local is None:
        raise WrongCallError(
            f"expected a local path for {what}, got {location}; copy it here first"
        )
    return store.local


def show_locations(locations: Sequence[str | Path]) -> str:
    """Up to three locations by name, for messages and titles."""
    more = f" and {len(locations) - 3:,} more" if len(locations) > 3 else ""
    return ", ".join(map(str, locations[:3])) + more


def open_sources(locations: Sequence[str | Path]) -> list[Source]:
    """Open the sources given on the command line.

    Raises:
        WrongCallError: one of them does not exist.
        StorageError: a store cannot be opened or does not answer.
    """
    return [_open_source(location) for location in locations]


def _open_source(location: str | Path) -> Source:
    store = open_store(location)
    kind = store.kind()
    if kind == "nothing":  # else a file whose name has braces
        if names := expand_pattern(str(location)):
            _check_names(str(location), names)
            return Source(str(location), "pattern", LocalStore(Path()))
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


def _check_names(pattern: str, names: Sequence[str]) -> None:
    """Refuse a pattern of which a file is missing: nothing would be lost silently, but late.

    Raises:
        WrongCallError: a name is not that of a photo or tar, or there is no such file.
    """
    # One listing per folder: a call per name would take an hour for a million tars in a bucket.
    files: dict[Store, frozenset[str]] = {}
    missing = []
    for name in names:
        folder, file = _parent(open_store(name))
        if posixpath.splitext(file)[1].lower() not in {TAR_SUFFIX, *PHOTO_SUFFIXES}:
            raise WrongCallError(
                f"expected a pattern of tars or photos, found {name} in {pattern}; "
                "pass folders and lists as sources of their own"
            )
        if folder not in files:
            files[folder] = frozenset(_names_in(folder))
        if file not in files[folder]:
            missing.append(name)
    if missing:
        raise WrongCallError(
            f"expected the {len(names):,} files of {pattern}, found {len(names) - len(missing):,}; "
            f"missing: {', '.join(missing[:3])}{', …' if missing[3:] else ''}; "
            "correct the pattern or fetch them"
        )


def _names_in(folder: Store) -> list[str]:
    try:
        return folder.names("")
    except NotADirectoryError:
        return []
