"""The photos of an experiment: a dataset that trains and selects, and photos held out from both."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colorcore.color.fit_palette import fit_palette
from colorcore.color.palette import mean_ab
from colorcore.dataset.layout import ShardSettings, read_histogram, read_info
from colorcore.dataset.loader import val_batches
from colorcore.dataset.samples import Samples
from colorcore.training.state import FitData

VAL_PERCENT = 15
BATCH = 32


@dataclass(frozen=True, slots=True)
class Photos:
    """The dataset that trains and selects, and stored LAB of photos that do neither."""

    size: int
    dataset: Path
    test: Path | None

    def fit_data(self, bins: int = 313) -> FitData:
        histogram = read_histogram(self.dataset)
        fingerprint = read_info(self.dataset).fingerprint or ""
        a, b = mean_ab(histogram)
        return FitData(
            train=Samples(self.dataset, "train"),
            val=Samples(self.dataset, "val"),
            palette=fit_palette(histogram, bins=bins, dataset=fingerprint),
            mean_ab=(float(a), float(b)),
            fingerprint=fingerprint,
        )

    def held_out(self) -> dict[str, list[Tensor]]:
        """Batches of stored LAB by name: ``val`` chose the checkpoint, ``test`` nothing."""
        sets = {"val": list(val_batches(Samples(self.dataset, "val"), BATCH))}
        if self.test is not None:
            sets["test"] = list(torch.from_numpy(np.load(self.test)).split(BATCH))
        return sets


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of :func:`prepare`; an experiment adds its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--photos", type=Path, required=True, help="photos to train on")
    parser.add_argument("--test", type=Path, help="photos of another source, which choose nothing")
    parser.add_argument("--size", type=int, default=128, help="side of the samples in pixels")
    parser.add_argument("--out", type=Path, required=True, help="folder for all output")
    return parser


def prepare(photos: Path, test: Path | None, size: int, out: Path) -> Photos:
    """Shard the photos once; read the test photos once, the whole folder, no colour filter."""
    from colorcore.dataset.sample import lab_of
    from colorcore.photos.refusal import PhotoLimits, PhotoRefused
    from pipelines.sharding.job import shard
    from pipelines.sources.reading import photos_of
    from pipelines.sources.source import open_sources

    dataset, stored = out / f"dataset-{size}", out / f"test-{size}.npy"
    settings = ShardSettings(size=size, val_percent=VAL_PERCENT)
    report = shard([str(photos.resolve())], str(dataset), settings)
    print(f"{report.photos} photos: kept {report.kept}, refused {report.refused}", flush=True)
    if test is None:
        return Photos(size, dataset, None)
    if not stored.exists():
        limits, rows = PhotoLimits(), []
        for photo in photos_of(open_sources([test]), limits.max_bytes, Counter()):
            try:
                rows.append(lab_of(photo.data(), size, limits))
            except PhotoRefused as refusal:
                print(f"test photo refused: {refusal}", flush=True)
        np.save(stored, np.stack(rows))
    return Photos(size, dataset, stored)
