"""Perceptual distance: the difference of two pictures in the features of a classifier.

A network trained on a million photos has seen blue skies and green grass, so unusual colours
change its features. The training guide gives the term weight 1.0 with VGG, which it finds better
for colour than AlexNet; the tuning guide 0.5 with AlexNet, because too much of it turns sepia.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from colorcore.losses.extractors import NETWORKS, Extractor, load_extractor
from colorcore.losses.inputs import predicted_rgb, true_rgb

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction

_TINY = 1e-8
"""Added to a feature's squared length, so that its direction has a gradient where it is 0."""


def build(*, net: str = "vgg16", weights: str = "") -> Term:
    """Mean over five layers of the distance between the directions of features, 0..2.

    Zhang et al. 2018 ("The unreasonable effectiveness of deep features as a perceptual metric"),
    eq. 1, with all channel weights w equal: features of each pixel are scaled to length 1, the
    squared differences summed over channels and averaged over pixels and photos. The paper sums
    over layers; the mean is within 0..2, because features are never negative, and within the
    tuning guide's 0.2 to 0.5 in training. The guides name the networks but neither layers nor
    formula; the paper's learned w (LPIPS) would be one more file to fetch. On a GPU the network
    runs in bfloat16.

    Args:
        net: ``vgg16`` or ``alex``.
        weights: path of the network's weights with torchvision's names (.pth, .safetensors); ""
            takes torchvision's own from torch's cache folder, or downloads them.

    Raises:
        ValueError: the network is unknown.
    """
    if net not in NETWORKS:
        raise ValueError(f"perceptual needs net {' or '.join(map(repr, NETWORKS))}, got {net!r}")
    return Perceptual(net, weights)


class Perceptual:
    """The term; its network is loaded by :meth:`prepare`, or on first use."""

    def __init__(self, net: str, weights: str) -> None:
        self._net, self._weights = net, weights
        self.extractor: Extractor | None = None

    def prepare(self, device: torch.device) -> None:
        """Load the network onto a device.

        Raises:
            LossError: its weights are missing, or belong to another network.
        """
        if self.extractor is None:
            self.extractor = load_extractor(self._net, self._weights)
        self.extractor.to(device)

    def __call__(self, prediction: Prediction, lab: Tensor) -> Tensor:
        """The term, in the predicted picture's precision.

        Raises:
            LossError: see :meth:`prepare`.
        """
        rgb, truth = predicted_rgb(prediction, lab, "perceptual"), true_rgb(lab)
        if self.extractor is None or self.extractor.mean.device != rgb.device:
            self.prepare(rgb.device)
        assert self.extractor is not None  # noqa: S101 - for the type checker
        kind = self.extractor.mean.dtype
        with torch.autocast(rgb.device.type, torch.bfloat16, enabled=rgb.is_cuda):
            answers = self.extractor(rgb.to(kind))
            with torch.no_grad():
                targets = self.extractor(truth.to(kind))
        distances = [
            (_direction(answer) - _direction(target)).square().sum(dim=1).mean()
            for answer, target in zip(answers, targets, strict=True)
        ]
        return torch.stack(distances).mean().to(rgb.dtype)


def _direction(features: Tensor) -> Tensor:
    """Features of each pixel scaled to length 1: (B, C, h, w), in float32 at least."""
    wide = features if features.dtype == torch.float64 else features.float()
    return wide * (wide.square().sum(dim=1, keepdim=True) + _TINY).rsqrt()
