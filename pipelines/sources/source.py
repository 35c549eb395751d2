"""Where photos come from: folders, lists and tars, here or in an object store.

A source is a folder (walked in an order that never changes), a photo, a list of photos (text,
CSV or Parquet, in the list's own order) or a WebDataset tar of photos, such as img2dataset
writes. In folders, photos and tars are told by their suffix
(``colorcore.photos.read.PHOTO_SUFFIXES``
and ``.tar``, any case). Each directory is walked once, however many links lead to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

from colorcore.storage.local import LocalStore
from colorcore.storage.location import absolute_store, open_store
from colorcore.storage.store import Store
from pipelines.errors import WrongCallError

if TYPE_CHECKING:
    pass
LIST_SUFFIXES = (".txt", ".csv", ".parquet")
TAR_SUFFIX = ".tar"


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


@dataclass(frozen=True, slots=True)
class PlannedPhoto:
    """One photo of a unit's slice: which source it is in, and its path there, in bytes."""

    root: int
    path: bytes

    @property
    def source(self) -> str:
        """The path for people: bytes that are no UTF-8 are shown as backslash escapes."""
        return self.path.decode("utf-8", "backslashreplace")
