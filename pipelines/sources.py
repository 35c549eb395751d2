"""Where photos come from: walking source folders in an order that never changes.

Photos are told by their suffix (``colorcore.photo.PHOTO_SUFFIXES``, any case), directories
are walked sorted by name, and each directory once, however many links lead to it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from colorcore.dataset import PlannedPhoto
from colorcore.photo import PHOTO_SUFFIXES, PhotoRefused, Reason
from pipelines.errors import WrongCallError


def local_path(location: str, what: str) -> Path:
    """The local path of a location on the command line.

    Raises:
        WrongCallError: it is a URI, which this command does not open.
    """
    scheme, separator, rest = location.partition("://")
    if separator and scheme == "file":
        return Path(rest)
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
            for path in _walk(os.fsencode(source), b"", visited, ignored):
                yield PlannedPhoto(root, path)
        else:
            yield PlannedPhoto(root, b"")


def read_source(sources: Sequence[Path], photo: PlannedPhoto, max_bytes: int) -> bytes:
    """The bytes of a photo.

    Raises:
        OSError: it is gone or may not be read.
        PhotoRefused: it is larger than ``max_bytes``.
    """
    path = os.path.join(os.fsencode(sources[photo.root]), photo.path)  # noqa: PTH118 (bytes)
    with open(path.rstrip(b"/"), "rb") as file:  # noqa: PTH123 (bytes)
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise PhotoRefused(Reason.TOO_LARGE, f"{size:,} bytes, expected at most {max_bytes:,}")
        return file.read()


def _walk(
    top: bytes, below: bytes, visited: set[tuple[int, int]], ignored: Counter[str]
) -> Iterator[bytes]:
    folder = os.path.join(top, below)  # noqa: PTH118 (bytes)
    try:
        identity = _identity(folder)
        if identity in visited:
            return
        visited.add(identity)
        with os.scandir(folder) as entries:
            found = sorted((entry.name, _is_dir(entry)) for entry in entries)
    except OSError:
        yield below
        return
    for name, is_dir in found:
        path = os.path.join(below, name)  # noqa: PTH118 (bytes)
        if is_dir:
            yield from _walk(top, path, visited, ignored)
            continue
        suffix = os.fsdecode(os.path.splitext(name)[1]).lower()  # noqa: PTH122 (bytes)
        if suffix in PHOTO_SUFFIXES:
            yield path
        else:
            ignored[suffix or "(none)"] += 1


def _identity(folder: bytes | Path) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116 (bytes)
    return status.st_dev, status.st_ino


def _is_dir(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
