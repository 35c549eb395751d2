"""Random flips, crops and light changes of a batch, on its device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from colorcore.color.lab import lab_to_rgb, rgb_to_lab
from colorcore.transfer import to_device

if TYPE_CHECKING:
    from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in a grey value (ITU-R BT.601)."""


def augment(
    lab: Tensor,
    *,
    flip: bool,
    crop: float | None,
    jitter: float = 0.0,
    gamma: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Flip each photo with probability 1/2, resize a random square crop, change its light.

    lab (B, 3, H, W) CIELAB -> the same shape.

    Args:
        lab: the photos.
        flip: whether photos are flipped.
        crop: smallest share of a side that a crop keeps, in 0..1 (its square is the share of the
            area); None leaves photos whole.
        jitter: largest change of the factors of :func:`jitter_light` from 1.
        gamma: largest change of the exponent of :func:`bend_lightness`; it is drawn between
            1/(1 + gamma) and 1 + gamma, evenly on a log scale.
        generator: the only source of random numbers (on the CPU), so a run can be repeated.
    """
    if flip or crop is not None:
        lab = _flip_and_crop(lab, flip, crop, generator)
    if jitter:
        draws = torch.rand(len(lab), 3, generator=generator)
        factors = 1.0 + jitter * (2.0 * draws - 1.0)
        lab = rgb_to_lab(jitter_light(lab_to_rgb(lab), to_device(factors, lab.device)))
    if gamma:
        draws = 2.0 * torch.rand(len(lab), generator=generator) - 1.0
        lab = bend_lightness(lab, (1.0 + gamma) ** to_device(draws, lab.device))
    return lab


def bend_lightness(lab: Tensor, exponents: Tensor) -> Tensor:
    """Bend the tone curve of each photo: L becomes 100 · (L/100)^exponent, a and b stay.

    lab (B, 3, H, W) CIELAB, exponents (B,) above 0 -> the same shape. Black and white stay; below
    1 what is between gets lighter, above 1 darker, as in a fainter or a denser print.
    """
    L, ab = lab[:, :1], lab[:, 1:]
    bent = 100.0 * (L / 100.0).clamp(min=0.0) ** exponents[:, None, None, None]
    return torch.cat([bent, ab], dim=1)


def jitter_light(rgb: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, then contrast, then saturation of each photo.

    rgb (B, 3, H, W) sRGB in 0..1; factors (B, 3) of the three, 1 changes nothing -> the same
    shape, in 0..1. Each is a clipped blend: f · photo + (1 − f) · other, where other is black,
    the mean grey of the photo, and the photo in grey (Howard 2013, "Some improvements on deep
    convolutional neural network based image classification", section 2.2, as in torchvision and
    kornia). Hues stay, because a photo with other hues would be a wrong target.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    rgb = _blend(rgb, torch.zeros_like(rgb), brightness)
    rgb = _blend(rgb, _grey(rgb).mean((1, 2, 3), keepdim=True), contrast)
    return _blend(rgb, _grey(rgb), saturation)


def _grey(rgb: Tensor) -> Tensor:
    red, green, blue = rgb.split(1, dim=1)
    grey: Tensor = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue  # no transfer of weights
    return grey


def _blend(rgb: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return (share * rgb + (1.0 - share) * other).clamp(0.0, 1.0)


def _flip_and_crop(
    lab: Tensor, flip: bool, crop: float | None, generator: torch.Generator | None
) -> Tensor:
    batch = lab.shape[0]
    draws = torch.rand(batch, 4, generator=generator)
    mirror = 1.0 - 2.0 * (draws[:, 0] < 0.5).float() if flip else torch.ones(batch)
    if crop is None:
        turned = to_device(mirror < 0, lab.device)[:, None, None, None]
        flipped = torch.where(turned, lab.flip(-1), lab)
        return flipped.contiguous()
    side = crop + (1.0 - crop) * draws[:, 1]
    room = 1.0 - side
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = side * mirror
    theta[:, 1, 1] = side
    theta[:, 0, 2] = room * (2.0 * draws[:, 2] - 1.0)
    theta[:, 1, 2] = room * (2.0 * draws[:, 3] - 1.0)
    grid = F.affine_grid(to_device(theta, lab.device), list(lab.shape), align_corners=False)
    return F.grid_sample(lab, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
