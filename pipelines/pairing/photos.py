"""The photos that `cc eval` scores, batch by batch, with the outputs of every other tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from colorcore.color.lab import decode_lab, encode_lab, lab_to_rgb
from colorcore.dataset.layout import index_name, read_info, read_table
from colorcore.dataset.loader import val_batches
from colorcore.dataset.samples import Samples
from colorcore.photos.read import read_photo
from colorcore.photos.refusal import PhotoLimits, PhotoRefused
from colorcore.photos.square import square
from colorcore.storage.location import open_store
from pipelines.errors import WrongCallError
from pipelines.sources.listing import is_tar, list_photos
from pipelines.sources.lists import check_lists
from pipelines.sources.reading import READ_TOGETHER, photos_of, read_photos, refused_tar
from pipelines.sources.source import Source, describe

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from colorcore.dataset.unit import SourcePhoto
    from pipelines.pairing.outputs import OutputFolder

BATCH = 32
LARGE = 512
"""Pixels per side of the squares that a report shows."""
TRUTH = ""
"""Key of the photo itself among the squares of :attr:`Photo.large`."""
LIMITS = PhotoLimits()


@dataclass(slots=True)
class Photo:
    """One photo to be scored.

    name     its path within its source
    lab_u8   (3, S, S) uint8, stored LAB of its centre square
    outputs  the same of each folder's output, by side
    large    makes squares (H, H, 3) uint8 sRGB of up to 512 px of the photo (``TRUTH``) and of each
             output; only few photos are shown, so only those are decoded again
    """

    name: str
    lab_u8: NDArray[np.uint8]
    outputs: dict[str, NDArray[np.uint8]]
    large: Callable[[], dict[str, NDArray[np.uint8]]]


@dataclass(slots=True)
class ReadTally:
    """What could not be read: see ``EvalReport``; ``excluded`` photos lack a side's output."""

    refused: Counter[str] = field(default_factory=Counter)
    damaged: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    excluded: int = 0

    def describe(self) -> str:
        """What there was instead of photos."""
        found = [f"refused: {count} {reason}" for reason, count in self.refused.items()]
        found += [f"{tar}: {detail}" for tar, detail in list(self.damaged.items())[:1]]
        found += [f"skipped: {describe(self.skipped)}"] if self.skipped else []
        found += [f"without an output of every side: {self.excluded}"] if self.excluded else []
        return "; ".join(found) or "no files"


class PhotoSet(Protocol):
    """Photos that can be read once, in order."""

    tally: ReadTally

    def photos(self, size: int) -> Iterator[Photo]:
        """The photos that every side has, as squares of ``size`` pixels."""


class PhotoFiles:
    """Photos in folders, lists and tars. Without a folder of outputs they are never listed at once.

    Raises:
        WrongCallError: there are folders of outputs, and a tar among the sources.
    """

    def __init__(self, sources: Sequence[Source], against: Sequence[OutputFolder]) -> None:
        self.tally = ReadTally()
        self._sources, self._against = sources, against
        if against:
            check_lists(sources)
            self._planned = list(list_photos(sources, self.tally.skipped))
            if tar := next(filter(is_tar, self._planned), None):
                raise WrongCallError(
                    f"expected photos in folders for --against, got the tar {tar.source}; "
                    "unpack it, so that outputs can be matched by name"
                )
            names = [_name_of(sources[photo.root], photo.source) for photo in self._planned]
            for folder in against:
                folder.match(names)

    def photos(self, size: int) -> Iterator[Photo]:
        """The readable photos; no photo is too pale."""
        for photo in self._read():
            name = _name_of(self._sources[photo.root], photo.source)
            try:
                decoded = read_photo(photo.data(), limits=LIMITS, min_size=size)
            except PhotoRefused as refusal:
                if (tar := refused_tar(self._sources, photo)) is not None:
                    self.tally.damaged[tar] = refusal.detail
                else:
                    self.tally.refused[refusal.reason.value] += 1
                continue
            lab_u8, shape = encode_lab(square(decoded.rgb, size)), (decoded.width, decoded.height)
            if (outputs := _outputs(name, self._against, shape, size)) is None:
                self.tally.excluded += 1
                continue
            yield Photo(name, lab_u8, outputs, partial(self._large, photo.data(), name, shape))

    def _large(
        self, data: bytes, name: str, shape: tuple[int, int]
    ) -> dict[str, NDArray[np.uint8]]:
        rgb = read_photo(data, limits=LIMITS, min_size=LARGE).rgb
        return _large(name, rgb, self._against, shape)

    def _read(self) -> Iterator[SourcePhoto]:
        if not self._against:
            yield from photos_of(self._sources, LIMITS.max_bytes, self.tally.skipped)
            return
        known = set.intersection(*(set(folder.matches.outputs) for folder in self._against))
        planned = [p for p in self._planned if _name_of(self._sources[p.root], p.source) in known]
        self.tally.excluded = len(self._planned) - len(planned)
        rest = iter(planned)
        while some := list(islice(rest, READ_TOGETHER)):
            yield from read_photos(self._sources, some, LIMITS.max_bytes, self.tally.skipped)


class DatasetPhotos:
    """The validation samples of a dataset, downsampled if they are larger than ``size``."""

    def __init__(self, dataset: str, against: Sequence[OutputFolder]) -> None:
        self.tally = ReadTally()
        self._against, self._dataset = against, dataset
        self._samples = Samples(dataset, "val")
        self.size = read_info(dataset).settings.size
        keys = self._samples.keys(np.arange(len(self._samples))) if against else []
        self._origins = _origins(dataset, keys)
        for folder in against:
            folder.match([name for name, _ in self._origins.values()])

    def photos(self, size: int) -> Iterator[Photo]:
        """The samples in the order of the dataset."""
        first = 0
        for stored in val_batches(self._samples, BATCH):
            keys = self._samples.keys(np.arange(first, first + len(stored)))
            for key, whole, lab_u8 in zip(keys, stored, _reduced(stored, size), strict=True):
                name, shape = self._origins.get(key, (key, (1, 1)))
                if (outputs := _outputs(name, self._against, shape, size)) is None:
                    self.tally.excluded += 1
                    continue
                yield Photo(name, lab_u8.numpy(), outputs, partial(self._large, whole, name, shape))
            first += len(stored)

    def _large(
        self, lab_u8: Tensor, name: str, shape: tuple[int, int]
    ) -> dict[str, NDArray[np.uint8]]:
        rgb = lab_to_rgb(decode_lab(lab_u8[None]))[0].mul(255).round().byte()
        return _large(name, rgb.permute(1, 2, 0).contiguous().numpy(), self._against, shape)


def in_batches(photos: Iterable[Photo]) -> Iterator[list[Photo]]:
    """Lists of up to ``BATCH`` photos."""
    rest = iter(photos)
    while batch := list(islice(rest, BATCH)):
        yield batch


def stacked(photos: Sequence[Photo], side: str = TRUTH) -> Tensor:
    """Stored LAB (B, 3, S, S) uint8 of photos, or of a folder's outputs of them."""
    return torch.from_numpy(
        np.stack([photo.lab_u8 if side == TRUTH else photo.outputs[side] for photo in photos])
    )


def is_dataset(place: str) -> bool:
    """Whether a place holds a dataset."""
    return open_store(place).exists("dataset.json")


def _outputs(
    name: str, against: Sequence[OutputFolder], shape: tuple[int, int], size: int
) -> dict[str, NDArray[np.uint8]] | None:
    """Stored LAB (3, size, size) of every folder's output of a photo; None if one has none."""
    found = {}
    for folder in against:
        if (rgb := folder.read(name, shape, size)) is None:
            return None
        found[folder.name] = encode_lab(square(rgb, size))
    return found


def _large(
    name: str, rgb: NDArray[np.uint8], against: Sequence[OutputFolder], shape: tuple[int, int]
) -> dict[str, NDArray[np.uint8]]:
    """See :attr:`Photo.large`."""
    side = min(LARGE, *rgb.shape[:2])
    outputs = {folder.name: folder.read(name, shape, LARGE) for folder in against}
    return {
        TRUTH: square(rgb, side),
        **{key: square(found, side) for key, found in outputs.items() if found is not None},
    }


def _name_of(source: Source, path: str) -> str:
    """A photo's path within its folder; its bare name where a list has its URI or absolute path."""
    if source.kind == "folder" or not ("://" in path or path.startswith("/")):
        return path
    return path.partition("?")[0].rpartition("/")[2] or path


def _origins(dataset: str, keys: Sequence[str]) -> dict[str, tuple[str, tuple[int, int]]]:
    """The source path, and width and height, of each sample by its key."""
    store, known = open_store(dataset), dict[str, tuple[str, tuple[int, int]]]()
    for unit in sorted({int(key.partition("-")[0]) for key in keys}):
        columns = ["key", "source", "width", "height"]
        rows = read_table(store, index_name(unit), columns, unit=unit).to_pydict()
        for key, source, width, height in zip(*(rows[name] for name in columns), strict=True):
            known[key] = (source, (width, height))
    return {key: known[key] for key in keys}


def _reduced(stored: Tensor, size: int) -> Tensor:
    """Stored LAB (B, 3, H, W) uint8, downsampled to ``size`` if it is larger."""
    if stored.shape[-1] == size:
        return stored
    small = F.interpolate(stored.float(), size=(size, size), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)
