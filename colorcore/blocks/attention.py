"""Two kinds of attention: gates on skip connections, and self-attention over a feature map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

REDUCTION = 16
"""Channels of a map per channel of its self-attention's queries and keys; the guide's value."""


class AttentionGate(nn.Module):
    """A gate that weights each position of a skip connection by what the decoder has found.

    Oktay et al. 2018 ("Attention U-Net"), eq. 1 and 2, with a map of weights in 0..1 that all
    channels share::

        weight = sigmoid(psi · relu(W_skip · skip + W_gate · gate + b_gate) + b_psi)

    The paper adds on the gate's coarse grid and upsamples the weight. Here the gate's projection
    is upsampled (bilinearly), so the weight is as fine as the skip and can follow an edge.
    With S skip and G gate channels and S/2 in between (rounded down, at least 1), it has
    (S + G + 2)·S/2 + 1 parameters.

    Args:
        skip: channels of the skip connection.
        gate: channels of the decoder's coarser map.
    """

    def __init__(self, skip: int, gate: int) -> None:
        super().__init__()
        between = max(1, skip // 2)
        self.of_skip = nn.Conv2d(skip, between, 1, bias=False)
        self.of_gate = nn.Conv2d(gate, between, 1)
        self.psi = nn.Conv2d(between, 1, 1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """Skip (B, S, H, W) and gate (B, G, h, w) -> the weighted skip (B, S, H, W)."""
        coarse = F.interpolate(
            self.of_gate(gate), size=skip.shape[-2:], mode="bilinear", align_corners=False
        )
        weight: Tensor = self.psi(F.relu(self.of_skip(skip) + coarse)).sigmoid()
        return skip * weight


class SelfAttention(nn.Module):
    """Self-attention over all positions of a map: x + gamma · attention(x).

    Zhang et al. 2019 ("Self-Attention GAN"), eq. 1 to 3. gamma is 0 at first, so the layer starts
    as the identity. Queries and keys have 1/16 of the channels (at least one); values keep them
    all, which makes the paper's last convolution (W_v) part of the values'. Scores are divided by
    the root of the queries' width (Vaswani et al. 2017, §3.2.1), or the softmax would saturate.
    With C channels it has C² + 2·C²/16 + 1 parameters.

    Args:
        channels: channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(1, channels // REDUCTION)
        self.query = nn.Conv2d(channels, narrow, 1, bias=False)
        self.key = nn.Conv2d(channels, narrow, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); the cost grows with (H·W)²."""
        query, key, value = (
            layer(x).flatten(2).transpose(1, 2)[:, None]
            for layer in (self.query, self.key, self.value)
        )
        # One head: (B, 1, H·W, C), the only shape that torch can export.
        seen = F.scaled_dot_product_attention(query, key, value)[:, 0]
        answer: Tensor = x + self.gamma * seen.transpose(1, 2).unflatten(2, x.shape[-2:])
        return answer
