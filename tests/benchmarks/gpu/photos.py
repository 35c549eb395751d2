"""A dataset for the suite: shards and a palette, made from a folder of photos or made up."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.color.fit_palette import fit_palette
from colorcore.color.palette import mean_ab
from colorcore.dataset.layout import DatasetInfo, ShardSettings, read_histogram, write_info
from colorcore.dataset.merge import find_copies, summarise, write_finished
from colorcore.dataset.samples import Samples
from colorcore.dataset.unit import SourcePhoto, publish_unit, write_unit
from colorcore.storage.local import LocalStore
from colorcore.training.state import FitData

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
PHOTOS = 960
"""Photos that are read or made up: 13 steps of 64 and a validation split, after refusals."""
VAL_PERCENT = 9.0
"""Share of the validation split: about the 76 of 892 photos of the first runs on a GPU."""


def folder_photos(folder: Path, most: int = PHOTOS) -> Iterator[SourcePhoto]:
    """The first photos below a folder, by name."""
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ENDINGS)
    for path, _ in zip(found, range(most), strict=False):
        yield SourcePhoto(0, str(path.relative_to(folder)), path.read_bytes())


def made_up_photos(count: int = PHOTOS, *, side: int = 256) -> Iterator[SourcePhoto]:
    """Colourful noise, smooth at two scales: enough to measure speed, and nothing to learn."""
    import cv2

    random = np.random.default_rng(0)
    for number in range(count):
        coarse, fine = (random.integers(0, 256, (n, n, 3), np.uint8) for n in (4, 32))
        large = [cv2.resize(each, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.float32)
                 for each in (coarse, fine)]  # fmt: skip
        photo = np.clip(0.75 * large[0] + 0.25 * large[1], 0, 255).astype(np.uint8)
        content = cv2.imencode(".png", photo)[1].tobytes()
        yield SourcePhoto(0, f"{number:04d}.png", content)


def write_dataset(photos: Iterator[SourcePhoto], folder: Path, *, size: int) -> DatasetInfo:
    """Shard the photos into one unit; returns what ``dataset.json`` says."""
    folder.mkdir(parents=True)
    settings = ShardSettings(size=size, val_percent=VAL_PERCENT, photos_per_unit=PHOTOS)
    info, store = DatasetInfo(settings=settings, sources=("the suite",)), LocalStore(folder)
    write_info(store, info)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        write_unit(Path(scratch), 0, photos, settings)
        publish_unit(Path(scratch), store, 0)
    total, hashes = summarise(store, [0])
    return write_finished(store, info, total, find_copies(hashes))


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is trained on: steps per epoch, photos per validation, colours of the palette."""

    steps: int
    val: int
    bins: int


class Repeated:
    """A split with another number of samples: some again, or some left out.

    So an epoch has the same number of steps for every batch size and every folder of photos.
    """

    def __init__(self, samples: Samples, count: int) -> None:
        self._samples, self._count = samples, count
        self.size, self.cache = samples.size, None
        self.shards, self.shard_counts = ["repeated"], np.array([count])

    def __len__(self) -> int:
        return self._count

    def read(self, positions: NDArray[np.int64]) -> Tensor:
        return self._samples.read(positions % len(self._samples))

    def keys(self, positions: NDArray[np.int64]) -> list[str]:
        return self._samples.keys(positions % len(self._samples))


def open_data(folder: Path, batch: int, sizes: Sizes) -> FitData:
    """The dataset with ``sizes.steps`` steps per epoch, and a grid of colours as its palette.

    The grid needs no k-means, and so no scikit-learn.
    """
    store = LocalStore(folder)
    histogram = read_histogram(store)
    train: Any = Repeated(Samples(store, "train"), sizes.steps * batch)
    val: Any = Repeated(Samples(store, "val"), sizes.val)
    mean = mean_ab(histogram)
    palette = fit_palette(histogram, bins=sizes.bins, method="grid", dataset="0123456789abcdef")
    return FitData(train, val, palette, (float(mean[0]), float(mean[1])), "0123456789abcdef")
