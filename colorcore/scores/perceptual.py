"""Scores in the features of EfficientNet-Lite0: what a network that knows objects sees.

They are named after their network, because neither is comparable with published figures: KID and
FID are computed with Inception-v3, LPIPS with VGG16 or AlexNet and learned weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from colorcore.blocks.features import LiteFeatures, enlarged, feature_distance
from colorcore.color.lab import lab_to_rgb
from colorcore.scores.kid import Reservoir, kernel_distance

if TYPE_CHECKING:
    from torch import Tensor

KID = "kid_lite0"
KID_ERROR = "kid_lite0_error"
DISTANCE = "perceptual_lite0"
KID_UNIT = 1e-3
"""Published figures of KID are given in this unit; so are :data:`KID` and :data:`KID_ERROR`."""
LIMIT = 5_000
"""Photos whose features are kept for KID; of more photos, a random sample of this size."""
MODEL = "model"
SMALLEST = 224
"""Side in pixels to which smaller photos are upsampled for KID.

The network was trained at this size, and its pooled features grow on smaller ones: at 64 px, KID
and its error would be more than fifty times as large.
"""
_AT_A_TIME = {"cpu": 4}
"""Photos per pass of the network: on a CPU, more take longer per photo. Elsewhere, a batch."""


class PerceptualScores:
    """KID and the mean perceptual distance of models and of the baselines, batch by batch.

    ``kid_lite0`` is :func:`kernel_distance` of the 1280 pooled features, in 10⁻³, with photos below
    224 px upsampled; ``kid_lite0_error`` is its standard error. ``perceptual_lite0`` is the mean
    over photos of :func:`feature_distance`, 0..4, at their own size: the value of the loss term
    ``perceptual`` with net ``lite0``. Both are 0 for the truth, and depend on the photos' size.

    Memory: 5 kB per photo and row, and once more for the truth, for at most ``limit`` photos:
    100 MB for 5,000 photos, a model and two baselines.

    Args:
        baselines: name -> function of true LAB (B, 3, H, W) that returns a prediction.
        device: where the network runs.
        limit: photos whose features are kept.
        sides: names of what is compared besides, whose answers :meth:`add` receives.

    Raises:
        ValueError: the package of the network's weights is not installed, or holds another file.
    """

    def __init__(
        self,
        baselines: Mapping[str, Callable[[Tensor], Tensor]],
        *,
        device: torch.device | str = "cpu",
        limit: int = LIMIT,
        sides: Sequence[str] = (MODEL,),
    ) -> None:
        self._network = LiteFeatures(classifier=True).to(device)
        self._baselines = dict(baselines)
        self._names = (*self._baselines, *sides)
        self._distances = dict.fromkeys(self._names, 0.0)
        self._photos = 0
        # An item is (1 + names, 1280): the features of one photo's truth, then of each answer.
        self._kept = Reservoir(limit)

    @torch.no_grad()
    def update(self, lab_pred: Tensor, lab_true: Tensor, rgb: Tensor | None = None) -> None:
        """Add a batch of one model, "model"; ``rgb`` is not used. Else as :meth:`add`."""
        del rgb
        self.add({MODEL: lab_pred}, lab_true)

    @torch.no_grad()
    def add(self, answers: Mapping[str, Tensor], lab_true: Tensor) -> None:
        """Add a batch: what each of ``sides`` answers, and the truth.

        All are (B, 3, H, W) CIELAB float on the network's device; as for all scores, colours
        outside sRGB are clipped.
        """
        some = _AT_A_TIME.get(lab_true.device.type, len(lab_true))
        with torch.autocast(lab_true.device.type, enabled=False):
            for start in range(0, len(lab_true), some):
                part = slice(start, start + some)
                given = {name: lab[part].float() for name, lab in answers.items()}
                self._add(given, lab_true[part].float())

    def _add(self, given: Mapping[str, Tensor], lab_true: Tensor) -> None:
        answers = {name: answer(lab_true) for name, answer in self._baselines.items()}
        answers.update((name, given[name]) for name in self._names if name not in answers)
        true_maps, true_pooled = self._features(lab_true)
        pooled = [true_pooled]
        for name, answer in answers.items():
            maps, features = self._features(answer)
            self._distances[name] += float(feature_distance(maps, true_maps).double().sum())
            pooled.append(features)
        self._photos += len(lab_true)
        for features in torch.stack(pooled, dim=1).cpu():
            self._kept.add(features.clone())  # a view would keep the whole batch alive

    def _features(self, lab: Tensor) -> tuple[list[Tensor], Tensor]:
        """The maps of photos at their own size, and their pooled features (B, 1280)."""
        rgb = lab_to_rgb(lab)
        maps: list[Tensor] = self._network(rgb)
        large = enlarged(rgb, SMALLEST)
        return maps, self._network.pooled(maps if large is rgb else self._network(large))

    def compute(self) -> dict[str, dict[str, float]]:
        """The scores by name: of each baseline, and of each side.

        A KID or an error that so few photos do not have is left out.

        Raises:
            ValueError: no photo was added.
        """
        if not self._photos:
            raise ValueError("nothing to evaluate: no photo was added")
        truth, *answers = torch.stack(self._kept.items, dim=1)
        scores = {}
        for name, features in zip(self._names, answers, strict=True):
            kid = kernel_distance(features, truth)
            found = {KID: kid.value / KID_UNIT, KID_ERROR: kid.error / KID_UNIT}
            if len(features) < 3:
                found = {key: value for key, value in found.items() if not math.isnan(value)}
            scores[name] = {**found, DISTANCE: self._distances[name] / self._photos}
        return scores
