"""The UNet colorizer: the plain, strong baseline of the guides.

Ronneberger et al. 2015 ("U-Net"), as the UNet guide uses it: an encoder that halves the photo
``depth`` times to learn *what* is there, a decoder that upsamples it again, and at each scale a
skip connection that shows *where*, so that colours stop at edges. Unlike the paper's, its
convolutions are padded (output size = input size) and normalized.

Regression makes it predict the mean of all plausible colours: low errors, muted colours. That is
why the classification models exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from colorcore.blocks.attention import AttentionGate
from colorcore.blocks.layers import group_norm, grow, quiet_head, require_channels, require_dropout
from colorcore.color.lab import denormalize_ab, rgb_to_lab
from colorcore.models.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor

Norm = Literal["batch", "group"]
Head = Literal["ab", "rgb"]
Lightness = Literal["centered", "unit"]

MAX_DEPTH = 7
"""Upper limit of ``depth``: 256 pixels become 2, and the bottleneck is 128 times as wide."""


class UNet(nn.Module):
    """UNet from lightness to ab.

    The widths are ``channels`` · 1, 2, 4 … 2**depth, the last in the bottleneck. At depth 4
    that is 7574·channels² + 210·channels + 2 parameters, with either norm. An RGB head adds
    channels + 1, and for even channels attention gates add 127.5·channels² + 15·channels + 4:

    ======== ============ ============ ============== ============
    channels parameters   RGB head     attention      both
    ======== ============ ============ ============== ============
    64       31,036,546   31,036,611   31,559,750     31,559,815
    96       69,822,146   69,822,243   70,998,630     70,998,727
    128      124,119,298  124,119,427  126,210,182    126,210,311
    ======== ============ ============ ============== ============

    Args:
        channels: width of the first level.
        depth: how often the photo is halved. The receptive field is a square of about 12 · 2**depth
            pixels (188 to 204 at depth 4).
        norm: "batch" or "group". Group norm gives the same result for any batch size, in training
            and evaluation; it has 32 groups, or as many as divide the width.
        dropout: probability of zeroing a whole feature map of the bottleneck in training.
        attention: attention gates on the skip connections, each driven by the decoder's map below.
        head: "ab", or "rgb": sRGB from which ab is computed. A colorized photo keeps its own L,
            so the L of the predicted RGB matters only to losses.
        lightness: input of the first convolution: "centered" is L_norm, "unit" is 0..1. Zero
            padding is middle grey in one and black in the other; networks trained elsewhere often
            use the latter.

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
        attention: bool = False,
        head: Head = "ab",
        lightness: Lightness = "centered",
    ) -> None:
        super().__init__()
        require_channels(channels)
        if not 1 <= depth <= MAX_DEPTH:
            raise ValueError(f"depth must be in 1..{MAX_DEPTH}, got {depth}")
        if norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got '{norm}'")
        if head not in get_args(Head):
            raise ValueError(f"head must be one of {', '.join(get_args(Head))}, got '{head}'")
        if lightness not in get_args(Lightness):
            known = ", ".join(get_args(Lightness))
            raise ValueError(f"lightness must be one of {known}, got '{lightness}'")
        require_dropout(dropout)
        self.unit = lightness == "unit"
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
        self.gates = nn.ModuleList(
            AttentionGate(width, 2 * width) for width in reversed(widths) if attention
        )
        self.head = quiet_head(channels, 2 if head == "ab" else 3)

    def forward(self, L_norm: Tensor) -> Prediction:
        """Colours for lightness.

        L_norm (B, 1, H, W) in -1..1, any H and W from 1 -> ab (B, 2, H, W) float32, -128..128,
        and with an RGB head rgb (B, 3, H, W) float32, sRGB in 0..1, from which ab is computed.
        Sizes that cannot be halved ``depth`` times are padded by repeating the last row and
        column, and cropped back. (Batch norm cannot train on a single value per channel: in
        training, a batch of one photo must be larger than 2**depth pixels.)
        """
        height, width = L_norm.shape[-2:]
        x = grow((L_norm + 1) / 2 if self.unit else L_norm, 2 ** len(self.encoder))
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.dropout(self.bottleneck(x))
        if self.gates:
            for gate, up, block in zip(self.gates, self.up, self.decoder, strict=True):
                x = block(torch.cat([gate(skips.pop(), x), up(x)], dim=1))
        else:
            for up, block in zip(self.up, self.decoder, strict=True):
                x = block(torch.cat([skips.pop(), up(x)], dim=1))
        # float32 from here on, under autocast too, so losses and metrics see no rounding.
        answer = self.head(x).float()[..., :height, :width]
        if answer.shape[1] == 2:
            return {"ab": denormalize_ab(answer.tanh())}
        rgb = answer.sigmoid()
        with torch.autocast(rgb.device.type, enabled=False):
            return {"ab": rgb_to_lab(rgb)[:, 1:], "rgb": rgb}


def _double_conv(before: int, width: int, norm: Norm) -> nn.Sequential:
    """Twice (3x3 convolution, norm, ReLU): (B, before, H, W) -> (B, width, H, W)."""
    layers: list[nn.Module] = []
    for channels in (before, width):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width) if norm == "batch" else group_norm(width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
