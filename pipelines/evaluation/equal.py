"""Several sides at equal colourfulness, on a sample of the photos that is kept in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch

from colorcore.color.colorfulness import colorfulness
from colorcore.color.lab import decode_lab, lab_to_rgb
from colorcore.comparison.equal_chroma import PHOTOS, ChromaCurves, with_chroma
from colorcore.comparison.per_photo import PerPhoto
from colorcore.decoding import Decoding
from colorcore.inference.decoding_search import TEMPERATURES
from colorcore.inference.equal_colorfulness import SHARES
from colorcore.inference.evaluate import evaluation_for
from colorcore.scores.metrics import PER_PHOTO
from pipelines.evaluation.report import EqualScores
from pipelines.evaluation.sides import ModelSide
from pipelines.pairing.photos import BATCH, Photo, stacked

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from colorcore.color.palette import Palette


class KeptPhotos:
    """A uniform random sample of at most ``PHOTOS`` photos (Algorithm R, Vitter 1985)."""

    def __init__(self, limit: int = PHOTOS) -> None:
        self._limit, self._seen = limit, 0
        self._random = Random(0)  # noqa: S311 - a sample, not a secret
        self.photos: list[Photo] = []

    def add(self, photos: Sequence[Photo]) -> None:
        """Take the next photos, perhaps in place of earlier ones."""
        for photo in photos:
            self._seen += 1
            if len(self.photos) < self._limit:
                self.photos.append(_slim(photo))
            elif (place := self._random.randrange(self._seen)) < self._limit:
                self.photos[place] = _slim(photo)

    def batches(self) -> Iterator[list[Photo]]:
        """Batches of what is kept."""
        for start in range(0, len(self.photos), BATCH):
            yield self.photos[start : start + BATCH]


def _slim(photo: Photo) -> Photo:
    """The photo without its file's bytes."""
    return Photo(photo.name, photo.lab_u8.copy(), photo.outputs, dict)


class EqualScorer:
    """Scores models and outputs where their mean CF is the same.

    Args:
        models: models by name.
        outputs: names of the folders of outputs.
        palette: that balances AuC.
        device: where photos are scored.
        search: choose among a grid of temperatures at each share, instead of each model's own one.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSide],
        outputs: Sequence[str],
        palette: Palette,
        device: str,
        *,
        search: bool,
    ) -> None:
        self._models, self._palette, self._device = models, palette, device
        self._sides = (*models, *outputs)
        self._temperatures: dict[str, Sequence[float | None]] = {
            name: [None] for name in self._sides
        }
        for name, side in models.items():
            if side.predicts_bins:
                own = side.decoding.temperature
                self._temperatures[name] = TEMPERATURES if search else [own]

    def score(self, kept: KeptPhotos) -> list[EqualScores]:
        """The scores at each of ``SHARES`` of the kept photos' mean CF."""
        balance = torch.from_numpy(self._palette.balance())
        curves = {
            name: ChromaCurves(balance, temperatures)
            for name, temperatures in self._temperatures.items()
        }
        true = 0.0
        for photos in kept.batches():
            lab = decode_lab(stacked(photos).to(self._device))
            true += float(colorfulness(lab_to_rgb(lab) * 255.0).double().sum())
            for name, curve in curves.items():
                curve.update(self._plain(name, photos, lab, self._temperatures[name]), lab)
        true /= max(len(kept.photos), 1)
        readings = {
            share: {name: curve.read(share * true) for name, curve in curves.items()}
            for share in SHARES
        }
        return self._scored(
            kept,
            {
                share: {
                    name: reading.decoding if reading else None for name, reading in found.items()
                }
                for share, found in readings.items()
            },
        )

    def _scored(
        self, kept: KeptPhotos, decodings: Mapping[float, dict[str, Decoding | None]]
    ) -> list[EqualScores]:
        """Score the kept photos with the decodings of each share; a network runs once per batch."""
        there = {
            share: {name: each for name, each in found.items() if each is not None}
            for share, found in decodings.items()
        }
        evaluations = {
            share: {name: evaluation_for(self._palette) for name in found}
            for share, found in there.items()
        }
        tables = {share: PerPhoto(list(found), columns=PER_PHOTO) for share, found in there.items()}
        for photos in kept.batches():
            lab = decode_lab(stacked(photos).to(self._device))
            rows: dict[float, list[NDArray[np.float32]]] = {share: [] for share in there}
            for name in self._sides:
                wanted = {share: found[name] for share, found in there.items() if name in found}
                temperatures = list(dict.fromkeys(each.temperature for each in wanted.values()))
                made = self._plain(name, photos, lab, temperatures) if wanted else []
                plain = dict(zip(temperatures, made, strict=True))
                for share, decoding in wanted.items():
                    answer = with_chroma(plain[decoding.temperature], decoding.chroma)
                    rows[share].append(evaluations[share][name].update(answer, lab).numpy())
            for share, found in rows.items():
                if found:
                    tables[share].add([photo.name for photo in photos], np.stack(found, axis=1))
        return [
            EqualScores(
                share,
                len(kept.photos),
                decodings[share],
                {name: evaluation.compute() for name, evaluation in evaluations[share].items()},
                *tables[share].compare(),
            )
            for share in there
        ]

    def _plain(
        self, name: str, photos: Sequence[Photo], lab: Tensor, temperatures: Sequence[float | None]
    ) -> list[Tensor]:
        """What a side answers at chroma ×1, for each temperature."""
        if name not in self._models:
            return [decode_lab(stacked(photos, name).to(self._device))]
        side = self._models[name]
        prediction = side.predict(lab)
        return [side.decoded(lab, prediction, Decoding(each)) for each in temperatures]
