"""Preview kept and refused photos, of a dataset or of a sample of photos before sharding.

Both give the same :class:`Preview`: counts, classes of colourfulness and a contact sheet.
"""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.dataset.layout import (
    CF_CLASSES,
    CF_STEP,
    DatasetInfo,
    ShardSettings,
    done_units,
    index_name,
    read_table,
    rejected_name,
)
from colorcore.dataset.unit import SampleMaker, SourcePhoto
from colorcore.drawing.contact_sheet import Section, Tile, draw_contact_sheet
from colorcore.photos.refusal import DAMAGED, PhotoRefused
from colorcore.photos.thumbnail import VISIBLE, thumbnail, thumbnail_of_refused
from colorcore.storage.location import open_store
from colorcore.storage.store import Store
from pipelines.errors import JobError
from pipelines.sources.listing import is_tar, list_photos
from pipelines.sources.lists import check_lists
from pipelines.sources.reading import read_photos
from pipelines.sources.source import (
    PlannedPhoto,
    Source,
    Tally,
    describe,
    no_photos_in,
    open_sources,
    show_locations,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT_SHOWN = 48
"""Kept photos on a contact sheet."""
REFUSED_SHOWN = 24
"""Refused photos per reason on a contact sheet."""
UNITS_SAMPLED = 100
"""Random units of a dataset from which refused photos are drawn."""
REMOTE_SHARDS = 2
"""Random shards of a remote dataset from which kept photos are drawn; each is fetched whole."""
TAR_PHOTOS = 200
"""Photos from the start of a tar that a sample may take: reading further costs the whole tar."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `cc shard` does with a photo: ``reason`` is None if it keeps it.

    colorfulness  CF of a kept photo
    """

    reason: str | None
    colorfulness: float
    tile: Tile


@dataclass(slots=True)
class Preview:
    """Kept and refused photos, in numbers and pictures.

    colorfulness  kept photos per class of colourfulness (0 to 5, 5 to 10, …; the last is open)
    ignored       files that are not photos, by suffix
    """

    photos: int = 0
    kept: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    colorfulness: list[int] = field(default_factory=lambda: [0] * CF_CLASSES)
    ignored: Counter[str] = field(default_factory=Counter)
    kept_tiles: list[Tile] = field(default_factory=list)
    refused_tiles: dict[str, list[Tile]] = field(default_factory=lambda: defaultdict(list))

    def add(self, verdict: Verdict) -> None:
        """Count a photo, and show it if there is room."""
        room = self.has_room(verdict.reason)
        self.photos += 1
        if verdict.reason is not None:
            self.refused[verdict.reason] += 1
            tiles = self.refused_tiles[verdict.reason]
        else:
            self.kept += 1
            self.colorfulness[min(int(verdict.colorfulness // CF_STEP), CF_CLASSES - 1)] += 1
            tiles = self.kept_tiles
        if room:
            tiles.append(verdict.tile)

    def why_none_is_readable(self) -> str:
        """If no photo could be read, the error that says so; otherwise nothing."""
        damaged = {reason: self.refused[reason] for reason in DAMAGED if self.refused[reason]}
        if not self.photos or sum(damaged.values()) < self.photos:
            return ""
        found = describe(Counter(damaged))
        return f"expected photos, could read none of {self.photos:,}: {found}; check the sources"

    def has_room(self, reason: str | None) -> bool:
        """Whether the contact sheet has room for one more photo like this."""
        if reason is None:
            return len(self.kept_tiles) < KEPT_SHOWN
        return len(self.refused_tiles[reason]) < REFUSED_SHOWN

    def sheet(self, title: str) -> NDArray[np.uint8]:
        """The contact sheet: kept photos, then refused ones, the most frequent reason first."""
        sections = [Section(f"kept: {self._share(self.kept)}", self.kept_tiles)]
        for reason, count in self.refused.most_common():
            words = f"refused, {reason}: {self._share(count)}"
            sections.append(Section(words, self.refused_tiles[reason]))
        return draw_contact_sheet(title, sections)

    def _share(self, count: int) -> str:
        photos = "photo" if count == 1 else "photos"
        return f"{count:,} {photos} ({count / max(1, self.photos):.1%})"


# -- a dataset ---------------------------------------------------------------------------------


def preview_dataset(dataset: Store, info: DatasetInfo, *, seed: int = 0) -> Preview:
    """Counts and random photos of a finished dataset; reads a bounded number of files.

    Raises:
        DatasetError: a file is missing or damaged.
        StorageError: the store does not answer.
    """
    counts = info.counts or {}
    preview = Preview(
        photos=counts.get("photos", 0),
        kept=counts.get("train", 0) + counts.get("val", 0),
        refused=Counter(info.refused or {}),
        colorfulness=list(info.colorfulness or [0] * CF_CLASSES),
    )
    rng = np.random.default_rng(seed)
    units = done_units(dataset)
    # Random units, not the first ones: photos are listed in order, so the first units hold the
    # photos of a few folders.
    for unit in rng.permutation(units)[:UNITS_SAMPLED].tolist():
        columns = ["source", "reason", "detail", "thumbnail"]
        for row in read_table(dataset, rejected_name(unit), columns, unit=unit).to_pylist():
            if row["thumbnail"] or row["reason"] not in VISIBLE:
                tile = Tile(row["thumbnail"], _name(row["source"]), row["detail"])
                preview.refused_tiles[row["reason"]].append(tile)
    for reason, tiles in preview.refused_tiles.items():
        chosen = rng.permutation(len(tiles))[:REFUSED_SHOWN]
        preview.refused_tiles[reason] = [tiles[i] for i in chosen]
    if preview.kept:
        preview.kept_tiles = list(_kept_tiles(dataset, rng))
    return preview


def _kept_tiles(dataset: Store, rng: np.random.Generator) -> Iterator[Tile]:
    from colorcore.color.lab import decode_lab, lab_to_rgb
    from colorcore.dataset.samples import Samples

    split = "train" if (np.asarray(_splits(dataset)) == "train").any() else "val"
    samples = Samples(dataset, split)
    positions = np.arange(len(samples))
    if dataset.local is None:
        shards = samples.shards_of(positions)
        positions = positions[np.isin(shards, rng.permutation(np.unique(shards))[:REMOTE_SHARDS])]
    # Sorted, so that each shard is opened once.
    chosen = np.sort(rng.permutation(positions)[:KEPT_SHOWN])
    pictures = lab_to_rgb(decode_lab(samples.read(chosen))).mul(255).round()
    rows: dict[str, Any] = {}
    keys = samples.keys(chosen)
    for unit in sorted({int(key.partition("-")[0]) for key in keys}):
        table = read_table(dataset, index_name(unit), ["key", "source", "colorfulness"])
        rows |= {row["key"]: row for row in table.to_pylist()}
    for key, picture in zip(keys, pictures.permute(0, 2, 3, 1).numpy(), strict=True):
        row = rows[key]
        yield Tile(picture.astype(np.uint8), _name(row["source"]), f"CF {row['colorfulness']:.1f}")


def _splits(dataset: Store) -> list[str]:
    splits: list[str] = read_table(dataset, "shards.parquet", ["split"])["split"].to_pylist()
    return splits


# -- photos before sharding --------------------------------------------------------------------


def dry_run(
    sources: Sequence[str | Path],
    settings: ShardSettings,
    count: int,
    *,
    dataset: str | Path | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] = lambda _done, _total, _note: None,
) -> Preview:
    """Try ``count`` random photos as `cc shard` would, without writing anything.

    All sources are listed, to give each photo the same chance; from a tar only the first
    ``TAR_PHOTOS`` can be chosen. Copies are found within the sample only.

    Raises:
        WrongCallError: a source is missing, or no file of a list exists.
        JobError: there are no photos.
        StorageError: a store does not answer.
    """
    import cv2

    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    preview = Preview()
    opened = open_sources(sources)
    check_lists(opened)
    skip = open_store(dataset) if dataset is not None else None
    tallies = [Tally() for _ in opened]
    listed = list_photos(opened, preview.ignored, skip=skip, tallies=tallies)
    chosen = _chosen(listed, count, rng, on_progress)
    # One maker for all: it refuses a photo that was seen before, as the job does per unit.
    maker = SampleMaker(settings)
    for photo in _photos(opened, chosen, count, settings.max_bytes, preview.ignored, tallies):
        preview.add(judge(photo, maker, settings, preview.has_room))
        on_progress(preview.photos, count, "")
    if empty := no_photos_in(opened, tallies):
        raise JobError("; ".join([*empty[:3], "check the sources"]))
    if not preview.photos:
        raise JobError(
            f"expected photos, found none in the {len(chosen):,} files chosen from "
            f"{show_locations(sources)}: skipped {describe(preview.ignored)}; choose more photos"
        )
    return preview


def _chosen(
    photos: Iterator[PlannedPhoto],
    count: int,
    rng: np.random.Generator,
    on_progress: Callable[[int, int, str], None],
) -> list[PlannedPhoto]:
    """``count`` random photos in random order, in one pass (Vitter 1985, algorithm R)."""
    kept: list[PlannedPhoto] = []
    for number, photo in enumerate(photos):
        if number < count:
            kept.append(photo)
        elif (place := int(rng.integers(number + 1))) < count:
            kept[place] = photo
        if number % 1000 == 0:
            on_progress(0, count, f"{number:,} photos listed")
    return [kept[place] for place in rng.permutation(len(kept))]


def _photos(
    sources: Sequence[Source],
    chosen: Sequence[PlannedPhoto],
    count: int,
    max_bytes: int,
    ignored: Counter[str],
    tallies: Sequence[Tally],
) -> Iterator[SourcePhoto]:
    """The chosen photos; photos in the chosen tars make up the number that is left, tar by tar."""
    tars = [photo for photo in chosen if is_tar(photo)]
    files = [photo for photo in chosen if not is_tar(photo)]
    yield from read_photos(sources, files, max_bytes, ignored, tallies=tallies)
    # A tar counts as one photo when it is chosen, because its members are unknown until it is read.
    missing = count - len(files)
    for number, tar in enumerate(tars):
        share = min(TAR_PHOTOS, -(-missing // (len(tars) - number)))
        read = read_photos(sources, [tar], max_bytes, ignored, tallies=tallies)
        for photo in islice(read, share):
            missing -= 1
            yield photo
        if missing <= 0:
            return


def judge(
    photo: SourcePhoto,
    maker: SampleMaker,
    settings: ShardSettings,
    shown: Callable[[str | None], bool],
) -> Verdict:
    """Whether `cc shard` keeps a photo; with a thumbnail if one with such a reason is ``shown``."""
    name = _name(photo.source)
    picture: bytes | None = None
    try:
        sample = maker.make(photo)
    except PhotoRefused as refusal:
        reason = refusal.reason
        if shown(reason.value):
            picture = thumbnail_of_refused(photo.content, reason, settings.limits)
        return Verdict(reason.value, 0.0, Tile(picture, name, refusal.detail))
    if shown(None):
        picture = thumbnail(photo.data(), settings.limits)
    return Verdict(None, sample.colorfulness, Tile(picture, name, f"CF {sample.colorfulness:.1f}"))


def _name(source: str) -> str:
    return posixpath.basename(source)
