"""The photos that an export is calibrated, checked and scored on: never the same for two of them.

Of a dataset the training samples calibrate and the validation samples score; of other photos every
second one does either.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from colorcore.color.lab import decode_lab, encode_lab
from colorcore.dataset.layout import read_info
from colorcore.dataset.loader import val_batches
from colorcore.dataset.samples import Samples
from colorcore.photos.square import square
from pipelines.errors import JobError, WrongCallError
from pipelines.pairing.photos import PhotoFiles, is_dataset
from pipelines.sources.source import open_sources

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Lab = NDArray[np.float32]
    """(3, S, S) CIELAB."""

PHOTOS = 32
"""Photos of each kind by default."""


@dataclass(frozen=True, slots=True)
class ExportPhotos:
    """Photos as squares of the model's size.

    about        where they are from
    calibration  those that the scales of int8 come from; none of the installed photographs
    scored       those that are compared and scored
    """

    about: str
    calibration: list[Lab]
    scored: list[Lab]

    def lightness(self) -> NDArray[np.float32]:
        """L (B, 1, S, S) of the scored ones."""
        return np.stack([lab[:1] for lab in self.scored])


def photos_for(data: str | None, size: int, count: int = PHOTOS) -> ExportPhotos:
    """At most ``count`` photos of each kind from a dataset, or from photos; None: installed ones.

    Raises:
        WrongCallError: ``data`` is missing, or its samples are smaller than the model's.
        JobError: it holds no readable photos that are large enough.
        DatasetError, StorageError: the dataset is damaged, or its store does not answer.
    """
    if data is None:
        return ExportPhotos("2 photographs that scikit-learn installs", [], _installed(size))
    if is_dataset(data):
        found = read_info(data).settings.size
        if found < size:
            raise WrongCallError(
                f"expected samples of at least {size} px, on which the model was trained, found "
                f"{found} px in {data}; shard the photos with --size {size}"
            )
        calibration, scored = (_samples(data, split, size, count) for split in ("train", "val"))
        about = f"{len(scored)} validation photos of {data}"
        return ExportPhotos(about, calibration, scored)
    photos = PhotoFiles(open_sources([data]), [])
    read = [decode_lab(torch.from_numpy(each.lab_u8)).numpy() for each in
            islice(photos.photos(size), 2 * count)]  # fmt: skip
    if len(read) < 2:
        raise JobError(
            f"expected at least two readable photos of {size} px in {data}, found {len(read)} "
            f"({photos.tally.describe()})"
        )
    return ExportPhotos(f"{len(read[1::2])} photos in {data}", read[::2], read[1::2])


def _samples(dataset: str, split: str, size: int, count: int) -> list[Lab]:
    """Samples of a split, spread evenly over it."""
    samples = Samples(dataset, split)
    stride = -(-len(samples) // count)
    found: list[Any] = []
    for lab_u8 in val_batches(samples, 32, world=stride):
        lab = decode_lab(lab_u8)
        if lab.shape[-1] != size:
            lab = F.interpolate(lab, size=(size, size), mode="bilinear", antialias=True)
        found += list(lab.numpy())
    return found[:count]


def _installed(size: int) -> list[Lab]:
    from sklearn.datasets import load_sample_image

    names = ("china.jpg", "flower.jpg")
    squares = [square(load_sample_image(name), size) for name in names]
    return [decode_lab(torch.from_numpy(encode_lab(each))).numpy() for each in squares]
