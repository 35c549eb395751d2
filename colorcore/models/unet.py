"""The UNet colorizer: the plain, strong baseline of the guides.

Ronneberger et al. 2015 ("U-Net"), as the UNet guide uses it: an encoder that halves the photo
``depth`` times to learn *what* is there, a decoder that doubles it back, and at each scale a
skip connection that says *where*, so that colours stop at edges. Unlike the paper's, its
convolutions are padded (output size = input size) and normalized.

Regression makes it answer the mean of all plausible colours: low errors, muted colours. The
classification models exist because of that.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from colorcore.lab import denormalize_ab
from colorcore.models.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor

Norm = Literal["batch", "group"]

_GROUPS = 32
"""Groups of GroupNorm (Wu and He 2018, section 4.1: their default)."""
_HEAD_STD = 1e-3
"""Spread of the head's first weights: first answers within about one ab unit of grey."""


class UNet(nn.Module):
    """UNet from lightness to ab.

    The widths are ``channels`` · 1, 2, 4 … 2**depth, the last in the bottleneck. At depth 4
    that is 7574·channels² + 210·channels + 2 parameters, with either norm:

    ======== ============
    channels parameters
    ======== ============
    64       31,036,546
    96       69,822,146
    128      124,119,298
    ======== ============

    Args:
        channels: width of the first level.
        depth: how often the photo is halved. An answer sees a square of about 12 · 2**depth
            pixels across (188 to 204 at depth 4).
        norm: "batch", or "group": the same for any batch size and in training and evaluation.
            32 groups, or as many as divide the width.
        dropout: probability of zeroing a whole feature map of the bottleneck in training.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        depth: int = 4,
        norm: Norm = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if channels < 1 or depth < 1:
            raise ValueError(f"channels and depth must be at least 1, got {channels} and {depth}")
        if norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got '{norm}'")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in 0..1 (1 excluded), got {dropout}")
        *widths, deepest = [channels * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(
            _double_conv(before, width, norm)
            for before, width in zip([1, *widths], widths, strict=False)
        )
        self.bottleneck = _double_conv(widths[-1], deepest, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths)
        )
        self.decoder = nn.ModuleList(
            _double_conv(2 * width, width, norm) for width in reversed(widths)
        )
        self.head = nn.Conv2d(channels, 2, 1)
        nn.init.normal_(self.head.weight, std=_HEAD_STD)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, L_norm: Tensor) -> Prediction:
        """Colours for lightness.

        L_norm (B, 1, H, W) in -1..1, any H and W from 1 -> ab (B, 2, H, W) float32, -128..128.
        Sizes that do not halve ``depth`` times are padded by repeating the last row and column
        and cropped back. (Batch norm cannot train on a single value per channel: in training
        one photo must be larger than 2**depth pixels, or not come alone.)
        """
        height, width = L_norm.shape[-2:]
        x = self._pad(L_norm)
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.dropout(self.bottleneck(x))
        for up, block in zip(self.up, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), up(x)], dim=1))
        # float32 from here on, also under autocast: losses and metrics see no rounding of ours.
        ab_norm = torch.tanh(self.head(x).float())
        return {"ab": denormalize_ab(ab_norm)[..., :height, :width]}

    def _pad(self, L_norm: Tensor) -> Tensor:
        """L_norm grown at the bottom and right to multiples of 2**depth."""
        multiple = 2 ** len(self.encoder)
        bottom, right = (-size % multiple for size in L_norm.shape[-2:])
        if bottom or right:
            return F.pad(L_norm, (0, right, 0, bottom), mode="replicate")
        return L_norm


def _double_conv(before: int, width: int, norm: Norm) -> nn.Sequential:
    """Twice (3x3 convolution, norm, ReLU): (B, before, H, W) -> (B, width, H, W)."""
    layers: list[nn.Module] = []
    for channels in (before, width):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(gcd(_GROUPS, width), width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
