"""Where the pictures of photos are written: below ``--out``, as the photos lie in their sources."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from colorcore.photos.write import ENCODED_SUFFIXES
from pipelines.sources.source import PlannedPhoto, Source

NAME_BYTES = 200
"""Longer names, which members of tars may have, are cut; file systems allow 255 bytes."""


def versions(target: Path, count: int) -> tuple[Path, ...]:
    """The paths of several versions of a picture: name-1.png, name-2.png …; of one: its own."""
    if count == 1:
        return (target,)
    return tuple(target.with_stem(f"{target.stem}-{number}") for number in range(1, count + 1))


def relative(source: Source, photo: PlannedPhoto) -> Path:
    """Where a photo's picture belongs below OUT: its path in its folder, otherwise its name."""
    path = Path(photo.source)
    inside = source.kind == "folder" or not ("://" in photo.source or path.is_absolute())
    relative = path if inside and ".." not in path.parts else Path(path.name)
    return (
        relative if relative.name.strip(".") else Path("photo")
    )  # a list's row may be "/" or ".."


def _stem(path: Path) -> Path:
    """The path without its suffix, unless only dots would be left."""
    stem = path.with_suffix("")
    return stem if stem.name.strip(".") else path


class Names:
    """Chooses a different path for each picture, also where case does not count in names.

    suffix  of all pictures; None: that of the photo, or .png if no picture can be written so
    """

    def __init__(self, out: Path, suffix: str | None, relative: Iterable[Path]) -> None:
        self._out, self._suffix = out, suffix
        self._alike = Counter(f"{_stem(path)}{self._suffix_for(path)}" for path in relative)
        self._given: set[str] = set()

    def target(self, relative: Path, member: str) -> Path:
        """The picture's path; ``member`` is the photo's name inside the tar ``relative``."""
        suffix = self._suffix_for(Path(member) if member else relative)
        stem = self._own_stem(relative)
        if member:
            stem /= _stem(Path(member)).name
        short = stem.name.encode("utf-8", "surrogateescape")[:NAME_BYTES]
        stem = stem.with_name(short.decode("utf-8", "ignore"))
        name = f"{stem}{suffix}"
        number = 2
        while (folded := unicodedata.normalize("NFC", name).casefold()) in self._given:
            name = f"{stem}-{number}{suffix}"
            number += 1
        self._given.add(folded)
        return self._out / name

    def folder(self, tar: Path) -> Path:
        """The folder of the pictures of a tar."""
        return self._out / self._own_stem(tar)

    def _own_stem(self, relative: Path) -> Path:
        stem = _stem(relative)
        alike = self._alike[f"{stem}{self._suffix_for(relative)}"]
        return stem if alike < 2 else relative

    def _suffix_for(self, photo: Path) -> str:
        if self._suffix is not None:
            return self._suffix
        suffix = photo.suffix.lower()
        return suffix if suffix in ENCODED_SUFFIXES else ".png"
