"""Mixup: blends of photos, or of what an encoder says of them, with the same blends of targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def blend_next(x: Tensor, shares: Tensor) -> Tensor:
    """Blend each item of a batch with the next one, and the last one with the first.

    x (B, C, H, W), shares (B,) of the next item in 0..1 -> the same shape: mixup of Zhang et al.
    2018 ("mixup: beyond empirical risk minimization", eq. 1), and of feature maps that of Verma et
    al. 2019 ("Manifold mixup", eq. 1).
    """
    return torch.lerp(x, x.roll(-1, dims=0), shares.to(x.dtype)[:, None, None, None])
