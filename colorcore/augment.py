"""Random flips and crops of a batch, on the device where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


def augment(
    lab: Tensor, *, flip: bool, crop: float | None, generator: torch.Generator | None = None
) -> Tensor:
    """Flip each photo with probability 1/2, and resize a random square crop to the full size.

    lab (B, 3, H, W) CIELAB -> the same shape. ``crop`` in 0..1 is the smallest share of a side
    that a crop keeps (its square is the share of the area); None leaves photos whole. Random
    numbers come from ``generator`` (a CPU one) alone, so that a run can be repeated.
    """
    if not flip and crop is None:
        return lab
    batch = lab.shape[0]
    draws = torch.rand(batch, 4, generator=generator)
    mirror = 1.0 - 2.0 * (draws[:, 0] < 0.5).float() if flip else torch.ones(batch)
    if crop is None:
        flipped = torch.where((mirror < 0).to(lab.device)[:, None, None, None], lab.flip(-1), lab)
        return flipped.contiguous()
    side = crop + (1.0 - crop) * draws[:, 1]
    room = 1.0 - side
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = side * mirror
    theta[:, 1, 1] = side
    theta[:, 0, 2] = room * (2.0 * draws[:, 2] - 1.0)
    theta[:, 1, 2] = room * (2.0 * draws[:, 3] - 1.0)
    grid = F.affine_grid(theta.to(lab.device), list(lab.shape), align_corners=False)
    return F.grid_sample(lab, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
