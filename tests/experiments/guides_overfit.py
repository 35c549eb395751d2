"""Whether each recipe can overfit eight photos, and how exactly bins can represent colours."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from colorcore.color.bins import SoftEncoder, decode_ab
from colorcore.color.fit_palette import fit_palette
from colorcore.color.lab import AB_OFFSET, decode_lab, lab_to_rgb
from colorcore.dataset.layout import read_histogram
from colorcore.dataset.samples import Samples
from colorcore.losses.inputs import area_mean, stored_ab
from colorcore.models.resnet_unet import ResNetUNet
from colorcore.recipes.recipe import Recipe, load_recipe
from colorcore.scores.metrics import psnr
from colorcore.training.events import Observer, ValidationEvent
from colorcore.training.fit import fit
from tests.experiments.photos import Photos

PHOTOS = 8
STEPS_AN_EPOCH = 50
EPOCHS = 16
ENOUGH_DB = 30.5
PEAK_LR = {"unet": 1e-2, "resnet-unet": 1e-3}


class _Enough(Observer):
    """Ends a training that has learned its photos."""

    class Reached(Exception):  # noqa: N818 - no error
        pass

    def __init__(self) -> None:
        self.psnr, self.steps = 0.0, 0

    def on_validation(self, event: ValidationEvent) -> None:
        self.psnr, self.steps = event.scores["psnr"], event.step
        if self.psnr > ENOUGH_DB:
            raise self.Reached


class _Again:
    """Eight samples, again and again: what training asks of ``Samples``."""

    def __init__(self, samples: Samples, times: int) -> None:
        self._lab_u8 = samples.read(np.arange(PHOTOS))
        self.size, self.cache = samples.size, None
        self.shard_counts = np.array([PHOTOS * times])
        self.shards = ["train/000000-000.tar"]

    def __len__(self) -> int:
        return int(self.shard_counts[0])

    def read(self, positions: NDArray[np.int64]) -> Tensor:
        return self._lab_u8[torch.from_numpy(positions % PHOTOS)]

    def keys(self, positions: NDArray[np.int64]) -> list[str]:
        return [str(position % PHOTOS) for position in positions]


def recipe_for(name: str) -> Recipe:
    """The recipe without what keeps a model from learning by heart, and one cycle of its own."""
    own = load_recipe(name)
    overrides = [
        "model.channels=16",
        "model.dropout=0",
        f"data.batch={PHOTOS}",
        "data.flip=false",
        "data.crop=none",
        f"optim.lr={PEAK_LR[own.model.name]!r}",
        "optim.schedule=onecycle",
        "optim.warmup_epochs=none",
        "optim.warmup=0.3",
        f"train.epochs={EPOCHS}",
        "train.precision=bf16",
        "train.ema=0.9",
    ]
    if own.discriminator is not None:
        overrides.append("discriminator.channels=16")
    if "perceptual" in own.loss:
        overrides.append("loss.perceptual=0")
    return load_recipe(name, overrides)


def overfit(name: str, photos: Photos) -> tuple[float, int]:
    """PSNR in dB of eight photos that were trained on, and after how many steps on all of them.

    It ends at ``ENOUGH_DB``, or after 800 steps.
    """
    torch.set_num_threads(1)
    data, watch = photos.fit_data(), _Enough()
    again: Any = _Again(data.train, STEPS_AN_EPOCH)
    once: Any = _Again(data.train, 1)
    few = replace(data, train=again, val=once)
    with tempfile.TemporaryDirectory() as folder, suppress(_Enough.Reached):
        fit(recipe_for(name), few, Path(folder), observers=[watch])
    return watch.psnr, watch.steps


def ceilings(photos: Photos) -> dict[str, float]:
    """PSNR in dB of the same photos' own colours, said as bins at a quarter of the resolution.

    ``bins`` decodes the truth's soft encoding at the default temperature; ``quarter`` is what a
    perfect residual would make of it.
    """
    data = photos.fit_data()
    lab_u8 = data.train.read(np.arange(PHOTOS))
    lab = decode_lab(lab_u8)
    size = (photos.size // ResNetUNet.shrink, photos.size // ResNetUNet.shrink)
    indices, shares = SoftEncoder(data.palette.centroids).encode(stored_ab(lab, size))
    Z = torch.zeros(PHOTOS, len(data.palette), *size).scatter_(1, indices, shares)
    said = decode_ab((Z + 1e-12).log(), torch.from_numpy(data.palette.centroids))
    return {
        "bins": _psnr(lab, said),
        "quarter": _psnr(lab, area_mean(lab[:, 1:], size)),
    }


def _psnr(lab: Tensor, ab: Tensor) -> float:
    ab = F.interpolate(ab, scale_factor=ResNetUNet.shrink, mode="bilinear", align_corners=False)
    answer = lab_to_rgb(torch.cat([lab[:, :1], ab], dim=1))
    return float(psnr(answer, lab_to_rgb(lab)).mean())


def palettes(photos: Photos) -> Iterator[tuple[str, float]]:
    """Root mean square distance, ab units, of held-out colours from their bin, by palette."""
    histogram = read_histogram(photos.dataset)
    lab_u8 = photos.held_out().popitem()[1]
    ab = torch.cat([batch[:, 1:].permute(0, 2, 3, 1).reshape(-1, 2) for batch in lab_u8])
    points = ab.float() - AB_OFFSET
    for name, palette in {
        "313 k-means": fit_palette(histogram),
        "313 k-means, power 0.5": fit_palette(histogram, power=0.5),
        "313 grid": fit_palette(histogram, method="grid"),
    }.items():
        centroids = torch.from_numpy(palette.centroids)
        nearest = [torch.cdist(some, centroids).amin(dim=1) for some in points.split(8192)]
        yield name, float(torch.cat(nearest).square().mean().sqrt())
