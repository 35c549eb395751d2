"""Where photos come from: walking source folders in an order that never changes.

Photos are told by their suffix (``colorcore.photo.PHOTO_SUFFIXES``, any case), directories
are walked sorted by name, and each directory once, however many links lead to it.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from colorcore.dataset import PlannedPhoto
from colorcore.photo import PHOTO_SUFFIXES
from colorcore.refusal import PhotoRefused, Reason
from pipelines.errors import WrongCallError


def local_path(location: str, what: str) -> Path:
    """The local path of a location on the command line.

    Raises:
        WrongCallError: it is a URI, which this command does not open.
    """
    scheme, separator, rest = location.partition("://")
    if separator and scheme == "file":
        return Path(unquote(rest))
    if separator:
        raise WrongCallError(
            f"expected a local path for {what}, got {location}; copy it here first: "
            "object stores are not supported yet"
        )
    return Path(location)


def check_sources(sources: Sequence[str]) -> list[Path]:
    """The sources as paths.

    Raises:
        WrongCallError: one of them does not exist.
    """
    paths = [local_path(source, "SOURCE") for source in sources]
    for path in paths:
        if not path.exists():
            raise WrongCallError(f"expected a folder of photos or a photo, found nothing at {path}")
    return paths


def list_photos(
    sources: Sequence[Path], ignored: Counter[str], *, skip: Path | None = None
) -> Iterator[PlannedPhoto]:
    """Every photo of the sources, in order; holds one directory's names at a time.

    ``skip`` is a directory that is not entered (the dataset, when it lies inside a source).
    ``ignored`` counts the files that are no photos, by suffix. A directory that cannot be
    listed is yielded as a photo: reading it will refuse it, so that nothing is lost silently.
    A source that is a photo itself has the empty path.
    """
    for root, source in enumerate(sources):
        if source.is_dir():
            visited = {_identity(skip)} if skip is not None else set()
            for path in _walk(os.fsencode(source), visited, ignored):
                yield PlannedPhoto(root, path)
        else:
            yield PlannedPhoto(root, b"")


def read_source(sources: Sequence[Path], photo: PlannedPhoto, max_bytes: int) -> bytes:
    """The bytes of a photo.

    Raises:
        OSError: it is gone or may not be read.
        PhotoRefused: it is larger than ``max_bytes``, or a pipe or device.
    """
    path = os.path.join(os.fsencode(sources[photo.root]), photo.path)  # noqa: PTH118 (bytes)
    path = path.rstrip(b"/")
    mode = os.stat(path).st_mode  # noqa: PTH116 (bytes)
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for ever
        raise PhotoRefused(Reason.UNREADABLE, "expected a file, got a pipe, socket or device")
    with open(path, "rb") as file:  # noqa: PTH123 (bytes)
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise PhotoRefused(Reason.TOO_LARGE, f"{size:,} bytes, expected at most {max_bytes:,}")
        return file.read()


def _walk(top: bytes, visited: set[tuple[int, int]], ignored: Counter[str]) -> Iterator[bytes]:
    waiting = [(b"", True)]
    while waiting:
        path, is_dir = waiting.pop()
        if is_dir:
            try:
                found = _entries(os.path.join(top, path), visited)  # noqa: PTH118 (bytes)
            except OSError:
                yield path
                continue
            for name, is_folder in reversed(found):
                waiting.append((os.path.join(path, name), is_folder))  # noqa: PTH118 (bytes)
            continue
        suffix = os.fsdecode(os.path.splitext(path)[1]).lower()  # noqa: PTH122 (bytes)
        if suffix in PHOTO_SUFFIXES:
            yield path
        else:
            ignored[suffix or "(none)"] += 1


def _entries(folder: bytes, visited: set[tuple[int, int]]) -> list[tuple[bytes, bool]]:
    """(name, is a directory) sorted by name; none when the folder has been visited before."""
    identity = _identity(folder)
    if identity in visited:
        return []
    visited.add(identity)
    with os.scandir(folder) as entries:
        return sorted((entry.name, _is_dir(entry)) for entry in entries)


def _identity(folder: bytes | Path) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116 (bytes)
    return status.st_dev, status.st_ino


def _is_dir(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
