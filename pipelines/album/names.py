"""Where the pictures of photos are written: below ``--out``, as the photos lie in their sources."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from colorcore.photos.write import ENCODED_SUFFIXES
from pipelines.sources.source import PlannedPhoto, Source

LACKING = frozenset({".bmp", ".avif"})
"""Suffixes of formats in which some photos would lose transparency or bits: these become PNG."""
NAME_BYTES = 200
"""Longer names, which members of tars may have, are cut; file systems allow 255 bytes."""


def versions(target: Path, count: int) -> tuple[Path, ...]:
    """The paths of several versions of a picture: name-1.png, name-2.png …; of one: its own."""
    if count == 1:
        return (target,)
    return tuple(target.with_stem(f"{target.stem}-{number}") for number in range(1, count + 1))


def files_of(target: Path) -> tuple[Path, ...]:
    """The names that a picture's file may have: its own, or that of the PNG that loses nothing."""
    if target.suffix.lower() in LACKING:
        return target, target.with_suffix(".png")
    return (target,)


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


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


class Names:
    """Chooses a different path for each picture, also where case does not count in names.

    suffix  of all pictures; None: that of the photo, or .png if no picture can be written so
    """

    def __init__(self, out: Path, suffix: str | None, relative: Iterable[Path]) -> None:
        self._out, self._suffix = out, suffix
        self._alike = Counter(map(self._plain, relative))
        self._given: set[str] = set()

    def target(self, relative: Path, member: str) -> Path:
        """The picture's path; ``member`` is the photo's name inside the tar ``relative``."""
        suffix = self._suffix_for(Path(member) if member else relative)
        stem = self._own_stem(relative)
        if member:
            stem /= _stem(Path(member)).name
        short = stem.name.encode("utf-8", "surrogateescape")[:NAME_BYTES]
        stem = stem.with_name(short.decode("utf-8", "ignore"))
        name, number = f"{stem}{suffix}", 2
        while self._given.intersection(map(_folded, map(str, files_of(Path(name))))):
            name = f"{stem}-{number}{suffix}"
            number += 1
        self._given.update(map(_folded, map(str, files_of(Path(name)))))
        return self._out / name

    def folder(self, tar: Path) -> Path:
        """The folder of the pictures of a tar."""
        return self._out / self._own_stem(tar)

    def is_given(self, target: Path) -> bool:
        """Whether a picture was given this path, in whatever case."""
        return _folded(str(target.relative_to(self._out))) in self._given

    def of_tars(self, tars: Iterable[Path]) -> dict[str, Names]:
        """Names that give the members of tars the same paths in another process.

        Call it when all photos that are files have theirs. Tars whose pictures go into the same
        folder share their names, so they must be read by one process, in this order.
        """
        parts: dict[str, Names] = {}
        for tar in tars:
            names = parts.setdefault(self.key(tar), self.empty())
            names._alike[self._plain(tar)] = self._alike[self._plain(tar)]
        for name in self._given:
            if (found := parts.get(name.rpartition(os.sep)[0])) is not None:
                found._given.add(name)
        return parts

    def empty(self) -> Names:
        """Names for the same folder, of which none is given."""
        return Names(self._out, self._suffix, ())

    def key(self, tar: Path) -> str:
        """The same for tars whose pictures go into the same folder."""
        return _folded(str(self._own_stem(tar)))

    def _own_stem(self, relative: Path) -> Path:
        return _stem(relative) if self._alike[self._plain(relative)] < 2 else relative

    def _plain(self, relative: Path) -> str:
        """The picture's name if no other one has it."""
        return f"{_stem(relative)}{self._suffix_for(relative)}"

    def _suffix_for(self, photo: Path) -> str:
        if self._suffix is not None:
            return self._suffix
        suffix = photo.suffix.lower()
        return suffix if suffix in ENCODED_SUFFIXES else ".png"
