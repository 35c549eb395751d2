"""What the HTML report of `cc eval` shows beyond the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from colorcore.color.lab import lab_to_rgb, rgb_to_lab
from colorcore.colorizing.network import NetworkColorizer
from colorcore.comparison.hue_errors import HueErrors
from colorcore.comparison.per_photo import PerPhoto
from colorcore.comparison.reliability import Reliability
from colorcore.comparison.size_stability import PHOTOS, size_differences
from pipelines.evaluation.sides import Answer, ModelSide
from pipelines.pairing.photos import TRUTH, Photo

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

SHOWN = 3
"""Photos of each kind: worst, median, best."""
RANKED_BY = "delta_e2000"
POINTS = 2_000
"""Photos in the scatter plot and in the list of the JSON at most, evenly spread over those kept."""
LISTED = ("psnr", "delta_e2000", "cf", "cf_gap", "auc_balanced")


@dataclass(slots=True)
class Shown:
    """A photo of the gallery.

    rank      "worst", "median" or "best"; "" before the last photo
    score     by which it is ranked
    number    its place among the photos
    pictures  (H, H, 3) uint8 sRGB by label: "truth", "grey", and each side
    """

    name: str
    score: float
    number: int
    large: dict[str, NDArray[np.uint8]]
    scores: dict[str, dict[str, float]]
    rank: str = ""
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


class Details:
    """Gathers a report's details batch by batch.

    Args:
        models, outputs: the sides; the first model ranks the photos.
    """

    def __init__(self, models: Sequence[ModelSide], outputs: Sequence[str], device: str) -> None:
        self._models, self._outputs, self._device = models, outputs, device
        names = [*(model.name for model in models), *outputs]
        self._hues = {name: HueErrors() for name in ("grey", *names)}
        self._reliability = {model.name: Reliability() for model in models if model.has_confidence}
        self._random = Random(0)  # noqa: S311 - a sample, not a secret
        self._seen = 0
        self._worst: list[Shown] = []
        self._best: list[Shown] = []
        self._sample: list[Shown] = []

    def update(
        self,
        photos: Sequence[Photo],
        answers: Mapping[str, Answer],
        lab: Tensor,
        table: PerPhoto,
        values: NDArray[np.float32],
    ) -> None:
        """Add a batch: its photos, what each side answers, its true LAB, and all its scores.

        values (B, sides, columns), as ``table`` names them.
        """
        for name, hues in self._hues.items():
            hues.update(answers[name].lab, lab)
        for name, reliability in self._reliability.items():
            if (confidence := answers[name].confidence) is not None:
                reliability.update(confidence, answers[name].lab, lab)
        first = table.sides.index(self._models[0].name)
        column = table.columns.index(RANKED_BY)
        for photo, row in zip(photos, values, strict=True):
            scores = {
                side: {name: float(row[i, table.columns.index(name)]) for name in LISTED}
                for i, side in enumerate(table.sides)
            }
            self._consider(photo, float(row[first, column]), scores)

    def _consider(self, photo: Photo, score: float, scores: dict[str, dict[str, float]]) -> None:
        """Keep the photo if it is among the worst, the best, or the random sample."""
        number, self._seen = self._seen, self._seen + 1
        place = number if number < PHOTOS else self._random.randrange(self._seen)
        is_worst = len(self._worst) < SHOWN or score > self._worst[-1].score
        is_best = len(self._best) < SHOWN or score < self._best[-1].score
        if not (is_worst or is_best or place < PHOTOS):
            return
        shown = Shown(photo.name, score, number, photo.large(), scores)
        if is_worst:
            self._worst = sorted([*self._worst, shown], key=lambda s: -s.score)[:SHOWN]
        if is_best:
            self._best = sorted([*self._best, shown], key=lambda s: s.score)[:SHOWN]
        if place < len(self._sample):
            self._sample[place] = shown
        elif place < PHOTOS:
            self._sample.append(shown)

    def facts(self, table: PerPhoto) -> dict[str, Any]:
        """Error by hue, reliability, size stability, and the scores of each photo."""
        return {
            "hues": {name: hues.compute() for name, hues in self._hues.items()},
            "reliability": {name: each.compute() for name, each in self._reliability.items()},
            "size_stability": {
                "photos": len(self._sample),
                "sides": {model.name: self._stability(model) for model in self._models},
            },
            "photos": _listed(table),
        }

    def _stability(self, model: ModelSide) -> dict[str, float]:
        """Mean ab difference by factor of the model's size."""
        found = [
            size_differences(
                model.network,
                shown.large[TRUTH],
                model.checkpoint.size,
                model.decoding,
                device=self._device,
            )
            for shown in self._sample
        ]
        return {
            f"{factor:g}": float(np.mean([each[factor] for each in found])) for factor in found[0]
        }

    def gallery(self, median: float) -> list[Shown]:
        """The worst, median and best photos with their pictures; none is shown twice.

        ``median`` is that of all scores; the photos of the random sample nearest to it are shown.
        """
        each = min(SHOWN, -(-self._seen // 3))
        worst = self._worst[:each]
        taken = {shown.number for shown in worst}
        best = [shown for shown in self._best if shown.number not in taken][:each]
        taken |= {shown.number for shown in best}
        rest = [shown for shown in self._sample if shown.number not in taken]
        middle = sorted(rest, key=lambda s: abs(s.score - median))[:each]
        ranked = {"worst": worst, "median": middle, "best": best}
        for rank, chosen in ranked.items():
            for shown in chosen:
                shown.rank, shown.pictures = rank, self._pictures(shown.large)
        return [shown for chosen in ranked.values() for shown in chosen]

    def _pictures(self, large: dict[str, NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
        """Truth, grey and each side, as `cc colorize` writes them."""
        truth = large[TRUTH]
        pictures = {"truth": truth, "grey": _grey(truth)}
        for model in self._models:
            colorizer = NetworkColorizer(
                model.network, model.checkpoint.size, model.decoding, self._device
            )
            pictures[model.name] = colorizer.colorize(truth)
        return {**pictures, **{name: large[name] for name in self._outputs if name in large}}


def _grey(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The lightness of a picture (H, W, 3) uint8 sRGB, without its colour."""
    lab = rgb_to_lab(torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 255.0)
    lab[:, 1:] = 0.0
    grey: NDArray[np.uint8] = lab_to_rgb(lab)[0].permute(1, 2, 0).mul(255.0).round().byte().numpy()
    return grey


def _listed(table: PerPhoto) -> list[dict[str, Any]]:
    """Photos with the scores of each side, at most ``POINTS``."""
    values, step = table.table(), max(1, -(-len(table) // POINTS))
    columns = [table.columns.index(name) for name in LISTED]
    true = table.columns.index("cf_true")
    return [
        {
            "name": table.names[row],
            "cf_true": float(values[row, 0, true]),
            "sides": {
                side: {
                    name: float(values[row, i, column])
                    for name, column in zip(LISTED, columns, strict=True)
                }
                for i, side in enumerate(table.sides)
            },
        }
        for row in range(0, len(table), step)
    ]
