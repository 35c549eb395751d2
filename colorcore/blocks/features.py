"""Features of pictures in a frozen classifier, and the distance between pictures in them.

The perceptual loss term and the perceptual scores of `cc eval` share these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from colorcore.blocks.efficientnet_lite import STRIDE, EfficientNetLite

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-8
"""Added to a feature's squared length, so that its direction has a gradient where it is 0."""


class LiteFeatures(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights as a source of features; it never learns.

    The features are the outputs of stages 1, 2, 3, 5 and 7: maps at strides 2, 4, 8, 16 and 32
    with 16, 24, 40, 112 and 320 channels. They come from linear bottlenecks (Sandler et al. 2018),
    so unlike those of a ReLU they may be negative. Pixels are scaled to (255 x - 127) / 128, as
    the network was trained.

    Args:
        classifier: whether :meth:`pooled` will be called.

    Raises:
        ValueError: the package of the weights is not installed, or holds another file.
    """

    def __init__(self, *, classifier: bool = False) -> None:
        super().__init__()
        self.network = EfficientNetLite("lite0", classifier=classifier)
        self.network.load_imagenet()
        self.requires_grad_(False)
        self.train()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> LiteFeatures:
        """Stay in evaluation mode: batch norm keeps ImageNet's statistics."""
        super().train(False)
        return self

    def forward(self, rgb: Tensor) -> list[Tensor]:
        """Five maps of features, (B, C_i, h_i, w_i), of rgb (B, 3, H, W) sRGB in 0..1, any size.

        A side below 32 pixels is upsampled to 32 (bilinear).
        """
        x = enlarged(rgb, STRIDE).contiguous(memory_format=torch.channels_last)
        return self.network(x)  # type: ignore[no-any-return]

    def pooled(self, maps: Sequence[Tensor]) -> Tensor:
        """The features that ImageNet's classes are read from: maps of :meth:`forward` -> (B, 1280).

        They are means of ReLU6 over the photo, so they are in 0..6. Only with ``classifier``.
        """
        return self.network.pool(maps[-1])


def enlarged(rgb: Tensor, smallest: int) -> Tensor:
    """Pictures (B, C, H, W) whose sides below ``smallest`` pixels are upsampled to it, bilinear."""
    height, width = (max(side, smallest) for side in rgb.shape[-2:])
    if (height, width) == tuple(rgb.shape[-2:]):
        return rgb
    return F.interpolate(rgb, size=(height, width), mode="bilinear", align_corners=False)


def feature_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Distance between the directions of features, per photo.

    Zhang et al. 2018 ("The unreasonable effectiveness of deep features as a perceptual metric"),
    eq. 1, with all channel weights w equal to 1: the features of each pixel are scaled to length
    1, and the squared differences summed over channels and averaged over pixels. The paper sums
    over layers; this is their mean.

    features, others: maps (B, C_i, h_i, w_i) -> (B,) in float32 at least. The squared distance of
    two directions is 2 - 2 cos of their angle: in 0..2 if no feature is negative, else in 0..4.
    """
    distances = [
        (_direction(mine) - _direction(theirs)).square().sum(dim=1).mean(dim=(1, 2))
        for mine, theirs in zip(features, others, strict=True)
    ]
    return torch.stack(distances).mean(dim=0)


def _direction(features: Tensor) -> Tensor:
    """Features of each pixel scaled to length 1: (B, C, h, w), in float32 at least."""
    wide = features if features.dtype == torch.float64 else features.float()
    return wide * (wide.square().sum(dim=1, keepdim=True) + _TINY).rsqrt()
