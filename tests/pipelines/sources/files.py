"""Helpers: make folders of tiny files, list them and read them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from colorcore.photos.refusal import PhotoRefused, Reason
from colorcore.storage.local import LocalStore
from pipelines.sources.listing import list_photos
from pipelines.sources.reading import read_photos
from pipelines.sources.source import PlannedPhoto, open_sources

BIG = 10**9


def make(top: Path, *names: str | bytes) -> Path:
    """Create files of one byte each."""
    for name in names:
        path = top / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return top


def listed(*sources: Path, skip: Path | None = None) -> list[tuple[int, bytes]]:
    skipped = None if skip is None else LocalStore(skip)
    found = list_photos(open_sources(sources), Counter(), skip=skipped)
    return [(photo.root, photo.path) for photo in found]


def names(*sources: Path, skip: Path | None = None) -> list[str]:
    return [os.fsdecode(path) for _, path in listed(*sources, skip=skip)]


def content(top: Path, photo: bytes | PlannedPhoto, max_bytes: int = BIG) -> bytes | PhotoRefused:
    """The content of one photo of one source."""
    planned = PlannedPhoto(0, photo) if isinstance(photo, bytes) else photo
    (read,) = read_photos(open_sources([top]), [planned], max_bytes)
    assert (read.root, read.source) == (planned.root, planned.source)
    return read.content


def refusal(top: Path, photo: bytes | PlannedPhoto, max_bytes: int = BIG) -> tuple[Reason, str]:
    found = content(top, photo, max_bytes)
    assert isinstance(found, PhotoRefused)
    return found.reason, found.detail
