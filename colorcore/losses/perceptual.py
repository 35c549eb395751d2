"""Perceptual distance: the difference of two pictures in the features of a classifier.

A network trained on a million photos has seen blue skies and green grass, so unusual colours
change its features. The training guide gives the term weight 1.0 with VGG, which it finds better
for colour than AlexNet; the tuning guide 0.5 with AlexNet, because too much of it turns sepia.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from colorcore.blocks.efficientnet_lite import weights_file
from colorcore.blocks.features import LiteFeatures, feature_distance
from colorcore.losses.extractors import NETWORKS, load_extractor
from colorcore.losses.inputs import predicted_rgb, true_rgb
from colorcore.losses.term import LossError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction

LITE: Final = "lite0"
"""The network whose weights are installed with colorcore; those in NETWORKS are downloaded."""
NETS = (*NETWORKS, LITE)


def build(*, net: str = "vgg16", weights: str = "") -> Term:
    """Mean over five layers of the distance between the directions of features.

    Zhang et al. 2018 ("The unreasonable effectiveness of deep features as a perceptual metric"),
    eq. 1, with all channel weights w equal to 1, averaged over photos; the mean over layers, where
    the paper sums. The guides name VGG and AlexNet but neither layers nor formula; the paper's
    learned w (LPIPS) would be one more file to fetch. On a GPU the network runs in bfloat16.

    ========= =================================================== ====================== ======
    net       features                                            pixels are scaled by   range
    ========= =================================================== ====================== ======
    ``vgg16`` relu1_2, relu2_2, relu3_3, relu4_3, relu5_3, at     ImageNet's mean and    0..2
              strides 1, 2, 4, 8, 16, as in the paper             standard deviation
    ``alex``  the ReLUs of all five convolutions, at strides 4,   the same               0..2
              8, 16, 16, 16, as in the paper
    ``lite0`` outputs of stages 1, 2, 3, 5, 7 of                  (x - 127) / 128 for    0..4
              EfficientNet-Lite0, at strides 2, 4, 8, 16, 32      x in 0..255
    ========= =================================================== ====================== ======

    A ReLU's features are never negative, so their directions are at most a right angle apart,
    a squared distance of 2. Those of Lite0 come from linear bottlenecks and can be opposite, a
    squared distance of 4. In training, the tuning guide expects 0.2 to 0.5, of AlexNet. Weights
    found with one network do not transfer to another.

    Args:
        net: ``vgg16``, ``alex`` or ``lite0``.
        weights: path of the network's weights with torchvision's names (.pth, .safetensors); ""
            takes torchvision's own from torch's cache folder, or downloads them. Lite0's are
            installed with colorcore as a Python package, so they have no path.

    Raises:
        ValueError: the network is unknown, or a path is given for ``lite0``.
    """
    if net not in NETS:
        known = ", ".join(map(repr, NETS[:-1]))
        raise ValueError(f"perceptual needs net {known} or {NETS[-1]!r}, got {net!r}")
    if net == LITE and weights:
        raise ValueError(
            f"perceptual reads the weights of net {LITE!r} from their Python package; leave "
            f"weights empty, got {weights!r}"
        )
    return Perceptual(net, weights)


class Perceptual:
    """The term; its network is loaded by :meth:`prepare`, or on first use."""

    def __init__(self, net: str, weights: str) -> None:
        self._net, self._weights = net, weights
        self.extractor: nn.Module | None = None

    def require(self) -> None:
        """Check that weights that are not downloaded are installed.

        Raises:
            LossError: they are not.
        """
        if self._net == LITE:
            try:
                weights_file(LITE)
            except ValueError as error:
                raise _missing(error) from error

    def prepare(self, device: torch.device) -> None:
        """Load the network onto a device.

        Raises:
            LossError: its weights are missing, or belong to another network.
        """
        if self.extractor is None:
            self.extractor = _load(self._net, self._weights)
        self.extractor.to(device)

    def __call__(self, prediction: Prediction, lab: Tensor) -> Tensor:
        """The term, in the predicted picture's precision.

        Raises:
            LossError: see :meth:`prepare`.
        """
        rgb, truth = predicted_rgb(prediction, lab, "perceptual"), true_rgb(lab)
        if self.extractor is None or _weight(self.extractor).device != rgb.device:
            self.prepare(rgb.device)
        assert self.extractor is not None  # noqa: S101 - for the type checker
        kind = _weight(self.extractor).dtype
        with torch.autocast(rgb.device.type, torch.bfloat16, enabled=rgb.is_cuda):
            answers = self.extractor(rgb.to(kind))
            with torch.no_grad():
                targets = self.extractor(truth.to(kind))
        return feature_distance(answers, targets).mean().to(rgb.dtype)


def _load(net: str, weights: str) -> nn.Module:
    if net != LITE:
        return load_extractor(net, weights)
    try:
        return LiteFeatures()
    except ValueError as error:
        raise _missing(error) from error


def _missing(error: ValueError) -> LossError:
    return LossError(f"loss_options.perceptual.net: {error}, or set loss.perceptual=0")


def _weight(network: nn.Module) -> Tensor:
    """A weight of the network: all are of one type, on one device."""
    return next(network.parameters())
