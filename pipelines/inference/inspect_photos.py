"""`cc inspect` of photos before they are sharded: what is in folders, tars and patterns of tars."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from colorcore.checkpoints.checkpoint import RECORD
from colorcore.dataset.layout import ShardSettings
from colorcore.dataset.unit import SampleMaker, SourcePhoto
from colorcore.photos.read import PHOTO_SUFFIXES, photo_header
from colorcore.photos.refusal import PhotoRefused
from colorcore.photos.write import DRAWN, save_picture
from colorcore.storage.location import open_store
from pipelines.errors import JobError
from pipelines.inference.outputs import check_drawing, drawing
from pipelines.sharding.preview import Preview, Verdict, judge
from pipelines.sources.listing import is_tar, list_photos
from pipelines.sources.patterns import expand_pattern
from pipelines.sources.reading import photos_of, refused_tar
from pipelines.sources.source import (
    LIST_SUFFIXES,
    TAR_SUFFIX,
    PlannedPhoto,
    describe,
    open_sources,
    show_locations,
)

SIDES = (64, 256, 512, 1024, 2048)
"""Bounds of the classes of shorter sides: 64 is the least that `cc shard` takes, 256 its size."""
PICTURES = 200
"""Judged photos whose thumbnail is kept if `cc shard` keeps them: enough for a contact sheet."""
_MODELS = (".pth.tar", ".pt.tar")
"""Names under which PyTorch users keep checkpoints, in spite of the suffix."""


@dataclass(slots=True)
class PhotosFacts:
    """Photos in numbers.

    formats     photos by format, which the content decides
    sides       photos by shorter side in pixels
    bytes       sum of the photos' files
    others      files that are not photos, by kind (mostly the suffix), in folders and tars
    damaged     damaged tars, each with what is wrong
    unreadable  photos whose header cannot be read
    preview     what `cc shard` would keep and refuse of a random sample
    failed      drawings that could not be written, and why
    """

    photos: int = 0
    bytes: int = 0
    tars: int = 0
    unreadable: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    sides: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    damaged: dict[str, str] = field(default_factory=dict)
    preview: Preview = field(default_factory=Preview)
    picture: Path | None = None
    failed: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """Photos that `cc shard` would keep, projected from the sample."""
        return round(self.photos * self.preview.kept / max(1, self.preview.photos))


def inspect_photos(
    locations: Sequence[str],
    *,
    settings: ShardSettings | None = None,
    sample: int = 1000,
    picture: Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda _photos: None,
) -> PhotosFacts:
    """Read all photos of some sources; judge ``sample`` random ones as `cc shard` would.

    Headers are read of all photos, pixels only of the sample. Memory does not grow with the number
    of photos. ``picture`` receives a contact sheet of the sample. It may be an earlier one; any
    other file is replaced only with ``overwrite``, and a photo never. Copies are found within it.

    Raises:
        WrongCallError: a source is missing, no file of a list exists, or ``picture`` is another
            file.
        JobError: a source holds no photos.
        StorageError: a store does not answer.
    """
    import cv2

    check_drawing(picture, "--picture", locations, overwrite=overwrite)
    cv2.setNumThreads(1)
    settings = settings or ShardSettings()
    sources, facts = open_sources(locations), PhotosFacts()
    chosen = _Sample(sample, settings, seed)

    def listed(paths: Sequence[PlannedPhoto]) -> None:
        facts.tars += sum(map(is_tar, paths))

    for photo in photos_of(sources, settings.max_bytes, facts.others, listed):
        if (tar := refused_tar(sources, photo)) is not None:
            facts.damaged[tar] = photo.content.detail  # type: ignore[union-attr]
            continue
        _count(facts, photo)
        chosen.offer(photo)
        on_progress(facts.photos)
    if not facts.photos:
        found = [f"{tar}: {detail}" for tar, detail in list(facts.damaged.items())[:1]]
        found += [f"skipped {describe(facts.others)}"] if facts.others else []
        raise JobError(
            f"expected photos in {show_locations(locations)}, found "
            f"{'; '.join(found) or 'nothing'}; check the sources"
        )
    facts.preview = chosen.preview()
    if picture is not None:
        title = f"{facts.preview.photos:,} random photos of {show_locations(locations)}"
        with drawing(picture, facts.failed):
            save_picture(picture, facts.preview.sheet(title), software=DRAWN)
        facts.picture = picture
    return facts


def are_photos(location: str) -> bool:
    """Whether a location names photos: a photo, tar, list, pattern, or a folder with such files."""
    store = open_store(location)
    kind = store.kind()
    if kind == "folder":
        others = ("dataset.json", *(f"{place}{RECORD}" for place in ("", "best/", "last/")))
        if any(store.exists(name) for name in others):
            return False
        return next(list_photos(open_sources([location]), Counter()), None) is not None
    if kind == "nothing" and expand_pattern(location) is not None:
        return True
    name = location.partition("?")[0].lower() if "://" in location else location.lower()
    accepted = (TAR_SUFFIX, *LIST_SUFFIXES, *PHOTO_SUFFIXES)
    return name.endswith(accepted) and not name.endswith(_MODELS)


def _count(facts: PhotosFacts, photo: SourcePhoto) -> None:
    facts.photos += 1
    try:
        data = photo.data()
        facts.bytes += len(data)
        kind, width, height = photo_header(data)
    except PhotoRefused:
        facts.unreadable += 1
        return
    facts.formats[kind] += 1
    facts.sides[side_class(min(width, height))] += 1


def side_class(side: int) -> str:
    """The class of a shorter side: "below 64", "64 to 255", …, "from 2048"."""
    place = int(np.searchsorted(SIDES, side, side="right"))
    return side_classes()[place]


def side_classes() -> list[str]:
    """All classes, in order."""
    between = [f"{low} to {high - 1}" for low, high in pairwise(SIDES)]
    return [f"below {SIDES[0]}", *between, f"from {SIDES[-1]}"]


class _Sample:
    """A random sample of photos, judged in one pass (Vitter 1985, algorithm R).

    A photo is judged when it enters the sample, so only verdicts are held. ``n`` of ``m`` photos
    cost n · (1 + ln(m / n)) judgements.
    """

    def __init__(self, count: int, settings: ShardSettings, seed: int) -> None:
        self._count, self._settings = count, settings
        self._rng = np.random.default_rng(seed)
        self._maker = SampleMaker(settings)
        self._verdicts: list[Verdict] = []
        self._offered = 0

    def offer(self, photo: SourcePhoto) -> None:
        place = self._offered
        self._offered += 1
        if place >= self._count:
            place = int(self._rng.integers(self._offered))
            if place >= self._count:
                return
        # Any place of the sample is as random as any other.
        verdict = judge(
            photo, self._maker, self._settings, lambda reason: bool(reason) or place < PICTURES
        )
        self._verdicts[place : place + 1] = [verdict]

    def preview(self) -> Preview:
        preview = Preview()
        for verdict in self._verdicts:
            preview.add(verdict)
        return preview
