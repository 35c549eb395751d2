"""The classifying colorizer: a distribution over the palette's colours for each pixel.

Zhang et al. 2016 ("Colorful image colorization") classify because the mean of plausible colours
is brown. The bins guide adds a ResNet-34 encoder, self-attention, a prediction of the whole
photo's colours that steers the decoder, attention gates, and two more heads: a residual that
smooths the steps between bins, and a confidence.

::

    L ─ ResNet-34 ─┬─ /4 ────────────────────────── gate ─┐
                   ├─ /8 ───────────── gate ─┐            │
                   ├─ /16 ── gate ─┐         │            │      ┌─ logits
                   └─ /32 ─ attend ┴─ stage ─┴── stage ───┴─ stage ─ residual
                                └─ histograms ─ FiLM ──┴───────┘ └─ confidence

Colours are predicted at a quarter of the photo's resolution, as in Zhang et al.: the eye takes
detail from lightness, which the photo keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from colorcore.blocks.attention import AttentionGate, SelfAttention
from colorcore.blocks.layers import group_norm, grow, require_channels, require_dropout
from colorcore.blocks.resnet34 import STRIDE, WIDTHS, ResNet34
from colorcore.models.bin_model import BinModel, require_bins
from colorcore.models.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor

HISTOGRAM_BINS = 64
"""Bins of the histograms of a and of b: each is 4 ab units wide, the first starts at -128."""
_HIDDEN = 512
"""Width between pooled map and histograms, as in the guide."""


class ResNetUNet(BinModel):
    """UNet with a ResNet-34 encoder from lightness to bin logits, residual and confidence.

    The encoder has 21,278,400 parameters. The whole model, with 313 bins, has

    ======== ============
    channels parameters
    ======== ============
    48       27,704,224
    64       31,654,080
    96       42,631,936
    128      57,713,984
    ======== ============

    A new model predicts grey until :meth:`use_palette` gives it the palette's colours.

    Args:
        channels: decoder width; maps at 1/16, 1/8 and 1/4 have 4, 4 and 2 times as many.
        bins: Q, the palette's number of colours.
        encoder_weights: path of a state dict of torchvision's ResNet-34 (.pth or .safetensors)
            for :meth:`load_pretrained`; "" for none. The file is needed only when a training
            starts.
        dropout: probability of zeroing a whole feature map of the bottleneck in training.

    Raises:
        ValueError: an option is out of range.
    """

    shrink = 4

    def __init__(
        self,
        *,
        channels: int = 64,
        bins: int = 313,
        encoder_weights: str = "",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_channels(channels)
        require_bins(bins)
        require_dropout(dropout)
        self.encoder_weights = encoder_weights
        *skips, deepest = WIDTHS
        self.encoder = ResNet34()
        self.attention = SelfAttention(deepest)
        self.dropout = nn.Dropout2d(dropout)
        self.colors = GlobalColors(deepest)
        widths = (4 * channels, 4 * channels, 2 * channels)
        self.decoder = nn.ModuleList(
            _Stage(before, skip, width)
            for before, skip, width in zip(
                (deepest, *widths), reversed(skips), widths, strict=False
            )
        )
        self.norm = group_norm(widths[-1])
        self.add_heads(widths[-1], bins)

    @property
    def encoder_lr(self) -> float:
        """The encoder's learning rate as a factor, unless the recipe sets one."""
        return 1.0

    def encoder_parts(self) -> list[nn.Module]:
        """The encoder's parts, from the photo on: the stem, and four layers."""
        encoder = self.encoder
        layers = [encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4]
        return [nn.ModuleList([encoder.conv1, encoder.bn1]), *layers]

    def blocks_to_compile(self) -> list[nn.Module]:
        """The encoder's 16 blocks, of 7 shapes, and the decoder's stages."""
        layers = self.encoder_parts()[1:]
        return [block for layer in layers for block in layer.children()] + list(self.decoder)

    @torch.no_grad()
    def load_pretrained(self) -> None:
        """Read ``encoder_weights`` into the encoder, if the option names a file.

        Raises:
            ValueError: the file cannot be read or does not hold a ResNet-34; the message tells why.
        """
        if self.encoder_weights:
            self.encoder.load_torchvision(self.encoder_weights)

    def forward(self, L_norm: Tensor) -> Prediction:
        """Colours for lightness.

        L_norm (B, 1, H, W) in -1..1, any H and W from 1 ->

        - logits (B, Q, h, w), residual (B, 2, h, w) in -10..10 ab units and confidence
          (B, 1, h, w) in 0..1, h and w being a quarter of H and W, rounded up
        - histograms (B, 2, 64), of a and of b, each summing to 1
        - ab (B, 2, H, W), as computed by :meth:`decode`

        All are float32. Sizes that are not multiples of 32 are padded by repeating the last row
        and column, and cropped back.
        """
        height, width = L_norm.shape[-2:]
        *skips, x = self.encoder(grow(L_norm, STRIDE))
        x = self.dropout(self.attention(x))
        histograms = self.colors(x)
        # As densities relative to a flat histogram, less 1: a softmax over 64 bins is tiny.
        condition = histograms.flatten(1) * HISTOGRAM_BINS - 1.0
        for stage in self.decoder:
            x = stage(x, skips.pop(), condition)
        x = F.relu(self.norm(x))
        return {**self.answers(x, (height, width)), "histograms": histograms}


class GlobalColors(nn.Module):
    """Predicts the histograms of a and of b of the whole photo.

    The guide's "global colour head": mean over the map, 512 hidden units, ReLU, two softmaxes.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, _HIDDEN)
        self.answer = nn.Linear(_HIDDEN, 2 * HISTOGRAM_BINS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 2, 64) float32, each row of 64 summing to 1."""
        scores = self.answer(F.relu(self.hidden(x.mean(dim=(2, 3))))).float()
        shares: Tensor = scores.unflatten(1, (2, HISTOGRAM_BINS)).softmax(dim=-1)
        return shares


class FiLM(nn.Module):
    """Scale and shift of whole feature maps by a condition: (1 + gamma) · x + beta.

    Perez et al. 2018 ("FiLM"), eq. 1 and 2, with a linear layer for f and h; as in
    the paper, gamma is predicted as a difference from 1. Both start at 0, so the layer starts as
    the identity.
    """

    def __init__(self, condition: int, channels: int) -> None:
        super().__init__()
        self.scale_shift = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.scale_shift.weight)
        nn.init.zeros_(self.scale_shift.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """X (B, C, H, W) and condition (B, K) -> (B, C, H, W)."""
        gamma, beta = self.scale_shift(condition)[:, :, None, None].chunk(2, dim=1)
        steered: Tensor = (1.0 + gamma) * x + beta
        return steered


class ResidualBlock(nn.Module):
    """Two convolutions with group norm, the second gated (GLU), and a shortcut.

    ::

        x' = relu(norm(conv3x3(x)));  u, v = halves of norm(conv3x3(x'))
        answer = shortcut(x) + u · sigmoid(v)

    The gated linear unit follows Dauphin et al. 2017, eq. 1. The shortcut is a 1x1 convolution
    where the width changes.
    """

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, padding=1, bias=False)
        self.first_norm = group_norm(width)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.second_norm = group_norm(2 * width)
        self.shortcut: nn.Module = nn.Identity()
        if before != width:
            self.shortcut = nn.Conv2d(before, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, width, H, W)."""
        changed = F.relu(self.first_norm(self.first(x)))
        gated = F.glu(self.second_norm(self.second(changed)), dim=1)
        answer: Tensor = self.shortcut(x) + gated
        return answer


class _Stage(nn.Module):
    """A decoder stage: upsample by 2, join with the gated skip, modulate by the condition."""

    def __init__(self, before: int, skip: int, width: int) -> None:
        super().__init__()
        self.gate = AttentionGate(skip, before)
        self.up = nn.Conv2d(before, width, 1)
        self.join = ResidualBlock(skip + width, width)
        self.film = FiLM(2 * HISTOGRAM_BINS, width)
        self.refine = ResidualBlock(width, width)

    def forward(self, x: Tensor, skip: Tensor, condition: Tensor) -> Tensor:
        """(B, before, h, w), (B, skip, 2h, 2w) and (B, 128) -> (B, width, 2h, 2w)."""
        # The 1x1 convolution commutes with the upsampling, and is cheaper before it.
        larger = F.interpolate(self.up(x), scale_factor=2, mode="bilinear", align_corners=False)
        x = self.join(torch.cat([self.gate(skip, x), larger], dim=1))
        answer: Tensor = self.refine(self.film(x, condition))
        return answer
