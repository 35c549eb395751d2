"""Keep what a job writes away from the photos that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from colorcore.storage.local import identity
from colorcore.storage.store import Store
from pipelines.errors import WrongCallError
from pipelines.sources.patterns import expand_pattern
from pipelines.sources.source import Source

_Identity = tuple[int, int]


def refuse_overlap(sources: Sequence[Source], dataset: Store) -> None:
    """Refuse a dataset whose folder is or contains a source: its files could replace photos.

    A dataset inside a source is fine: its folder is new, empty or a dataset, and the listing skips
    it. But no folder of it may be a link to where photos are, or to a folder above or below.

    Raises:
        WrongCallError: with both places.
    """
    for source in sources:
        if dataset.local is None:
            inside = source.store.local is None and _uri(source.store.show(source.name)).startswith(
                _uri(dataset.show())
            )
            target = dataset.show() if inside else None
        else:
            places = list(_local_places(source))
            target = next((found for each in places if (found := _hit(dataset.local, each))), None)
        if target is not None:
            raise WrongCallError(
                f"expected a dataset outside of its sources, found the source {source.location} "
                f"in {target}; choose another folder for the dataset"
            )


def _hit(dataset: Path, place: Path) -> str | None:
    """The folder of the dataset, or its linked subfolder, that could write into a place."""
    above = _with_parents(place)
    if above & _identity(dataset):
        return str(dataset)
    links = [each for each in dataset.iterdir() if each.is_symlink()] if dataset.is_dir() else []
    for link in links:
        if above & _identity(link) or _identity(place) & _with_parents(link):
            return str(link)
    return None


def _uri(location: str) -> str:
    return location.partition("?")[0].rstrip("/") + "/"


def _local_places(source: Source) -> Iterator[Path]:
    """The folder or file of a source; for a pattern, the folders of its files."""
    if source.store.local is None:
        return
    if source.kind != "pattern":
        yield source.store.local / source.name
        return
    names = expand_pattern(source.location) or []
    for folder in sorted({name.rpartition("/")[0] for name in names if "://" not in name}):
        yield source.store.local / folder


def _with_parents(place: Path) -> set[_Identity]:
    """The identities of a path and of all folders above it, links resolved."""
    whole = Path(os.path.realpath(place))
    return {found for each in (whole, *whole.parents) for found in _identity(each)}


def _identity(place: Path) -> set[_Identity]:
    """Device and inode, the same whatever the path and the case; empty if there is nothing."""
    try:
        return {identity(place)}
    except OSError:
        return set()
