"""The discriminator: tells real colours from predicted ones, patch by patch and at three scales.

It is not a colorizer, so it is not in ``MODELS``. Isola et al. 2017 ("pix2pix") judge patches of
70 x 70 pixels, which show texture and edges; Wang et al. 2018 ("pix2pixHD") add the same network
on smaller copies of the photo, whose patches show objects and scenes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from colorcore.blocks.layers import require_channels
from colorcore.color.lab import normalize_ab, normalize_L

if TYPE_CHECKING:
    from torch import Tensor

SCALES = 3
"""Copies of the photo that are judged: 1, 1/2 and 1/4 (Wang et al. 2018, §3.2)."""
FEATURE_LAYERS = (3, 5, 7)
"""Layers, counted from 0, whose outputs feature matching compares.

Activations count as layers, so these are the outputs of C128, C256 and C512.
"""
_SLOPE = 0.2
"""Slope of the leaky ReLUs (Isola et al. 2017, §6.1.2)."""


class PatchDiscriminator(nn.Module):
    """A discriminator of 70 x 70 patches: C64-C128-C256-C512 and one score per patch.

    Isola et al. 2017, §6.1.2: 4x4 convolutions, the first three with stride 2, leaky ReLUs of
    slope 0.2. Like theirs it is conditional: it sees the grey photo, as L, together with ab.

    Each convolution is spectrally normalized (Miyato et al. 2018), which keeps the network smooth
    and its gradients useful. There is no other norm: instance norm would rescale what spectral
    norm bounds, remove the photo's mean colour and contrast, which tell washed-out colours from
    real ones, and make each patch's score depend on the whole photo.

    Layers: 0 C64, 1 leaky ReLU, 2 C128, 3 leaky ReLU, 4 C256, 5 leaky ReLU, 6 C512, 7 leaky
    ReLU, 8 the score. With 64 channels it has 2,764,737 parameters.

    Args:
        channels: width of the first layer; the next ones are 2, 4 and 8 times as wide.

    Raises:
        ValueError: channels is out of range.
    """

    def __init__(self, *, channels: int = 64) -> None:
        super().__init__()
        require_channels(channels)
        layers: list[nn.Module] = []
        before = 3
        for width, stride in ((1, 2), (2, 2), (4, 2), (8, 1)):
            layers += [_conv(before, width * channels, stride), nn.LeakyReLU(_SLOPE)]
            before = width * channels
        self.layers = nn.Sequential(*layers, _conv(before, 1, 1))

    def forward(self, lab: Tensor, *, features: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Scores of the patches; above 0 is real.

        lab (B, 3, H, W) CIELAB (it is normalized here: L_norm and ab_norm), H and W from 8 ->
        logits (B, 1, H/8 + 2, W/8 + 2) float32 for multiples of 8, and the outputs of
        :data:`FEATURE_LAYERS`, float32: with 64 channels (B, 128, H/4, W/4),
        (B, 256, H/8, W/8) and (B, 512, H/8 + 1, W/8 + 1). Without ``features`` that list is empty.
        """
        x = torch.cat([normalize_L(lab[:, :1]), normalize_ab(lab[:, 1:])], dim=1)
        kept = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if features and number in FEATURE_LAYERS:
                kept.append(x.float())
        return x.float(), kept


class MultiScaleDiscriminator(nn.Module):
    """One discriminator per scale, each with its own weights: full size, half and quarter.

    The copies are made by average pooling, 3x3 with stride 2, as in pix2pixHD. With 64 channels
    and three scales it has 8,294,211 parameters.

    Args:
        channels: width of each discriminator's first layer.
        scales: number of discriminators.

    Raises:
        ValueError: channels or scales is out of range.
    """

    def __init__(self, *, channels: int = 64, scales: int = SCALES) -> None:
        super().__init__()
        if scales < 1:
            raise ValueError(f"scales must be at least 1, got {scales}")
        self.judges = nn.ModuleList(PatchDiscriminator(channels=channels) for _ in range(scales))

    def forward(
        self, lab: Tensor, *, features: bool = False
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The outputs of each discriminator, the finest scale first.

        lab (B, 3, H, W) CIELAB, H and W from 8 · 2**(scales - 1), 32 with three -> for each scale
        the logits, and for each scale the features, both as in :class:`PatchDiscriminator`.
        """
        logits, kept = [], []
        for number, judge in enumerate(self.judges):
            if number:
                lab = F.avg_pool2d(lab, 3, stride=2, padding=1, count_include_pad=False)
            scores, answers = judge(lab, features=features)
            logits.append(scores)
            kept.append(answers)
        return logits, kept


def _conv(before: int, width: int, stride: int) -> nn.Module:
    """A 4x4 convolution with spectral norm: halves the map, or with stride 1 adds a row to it.

    The paper's padding of 1 removes a row instead, which would leave nothing of the smallest copy
    of a small photo. With 2, as in pix2pixHD, border patches see a little more padding.
    """
    conv = nn.Conv2d(before, width, 4, stride=stride, padding=1 if stride == 2 else 2)
    normalized: nn.Module = spectral_norm(conv)
    return normalized
