"""Layers that several models share: norm, head, padding to a multiple of the stride."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = 32
"""Groups of GroupNorm (Wu and He 2018, section 4.1: their default)."""
MAX_CHANNELS = 1024
"""Upper limit of a model's width: a larger value is a typing error."""
HEAD_STD = 1e-3
"""Standard deviation of a head's initial weights: a new model predicts its biases, to within about
one ab unit."""


def require_channels(channels: int) -> None:
    """Check a network's option ``channels``.

    Raises:
        ValueError: it is out of range.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"channels must be in 1..{MAX_CHANNELS}, got {channels}")


def require_dropout(dropout: float) -> None:
    """Check a network's option ``dropout``.

    Raises:
        ValueError: it is out of range.
    """
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be in 0..1 (1 excluded), got {dropout}")


def group_norm(width: int) -> nn.GroupNorm:
    """GroupNorm of ``width`` channels, in 32 groups or as many as divide the width."""
    return _GroupNorm(gcd(GROUPS, width), width)


class _GroupNorm(nn.GroupNorm):
    """GroupNorm whose answer has the memory layout of its input.

    On a GPU torch's answers channels first (aten/src/ATen/native/group_norm.cpp, torch 2.13), so
    the next convolution would convert it, and sums with a shortcut would read two layouts.
    """

    def forward(self, x: Tensor) -> Tensor:
        answer = super().forward(x)
        if x.ndim == 4 and not x.is_contiguous():
            answer = answer.contiguous(memory_format=torch.channels_last)
        return answer


def quiet_head(width: int, answers: int) -> nn.Conv2d:
    """A 1×1 convolution whose output starts near 0: weights N(0, 1e-3), biases 0."""
    head = nn.Conv2d(width, answers, 1)
    nn.init.normal_(head.weight, std=HEAD_STD)
    nn.init.zeros_(head.bias)  # type: ignore[arg-type]
    return head


def grow(photos: Tensor, multiple: int) -> Tensor:
    """Pad photos (B, C, H, W) to a multiple of a size by repeating the last row and column.

    Only the bottom and right are padded, so cropping to H, W undoes it.
    """
    if torch.compiler.is_exporting():
        return _grown(photos, multiple)
    bottom, right = (-size % multiple for size in photos.shape[-2:])
    if bottom or right:
        return F.pad(photos, (0, right, 0, bottom), mode="replicate")
    return photos


def _grown(photos: Tensor, multiple: int) -> Tensor:
    """:func:`grow` for a graph that must fit any H and W.

    It cannot branch on a size. Written as ``multiple`` times something, the new sizes tell the
    exporter that they can be halved, so that maps of an encoder and a decoder fit together.
    """
    rows, columns = (
        torch.arange(multiple * ((size + multiple - 1) // multiple), device=photos.device).clamp(
            max=size - 1
        )
        for size in photos.shape[-2:]
    )
    return photos.index_select(2, rows).index_select(3, columns)
