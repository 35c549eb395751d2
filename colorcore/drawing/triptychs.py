"""Grey | predicted | truth, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from colorcore.color.lab import lab_to_rgb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor


GAP = 4
"""Pixels between the photos of a triptych."""


def triptychs(lab_pred: Tensor, lab_true: Tensor) -> NDArray[np.uint8]:
    """One row per photo: grey | predicted | truth.

    lab_pred, lab_true (B, 3, H, W) CIELAB -> (H', W', 3) uint8 sRGB. Grey is the L of the truth
    without its colour. Colours outside sRGB are clipped, as a viewer would.

    Raises:
        ValueError: the shapes differ, or there is no photo.
    """
    return rows_of_photos([lab_pred], lab_true)


def rows_of_photos(answers: Sequence[Tensor], lab_true: Tensor) -> NDArray[np.uint8]:
    """One row per photo: grey | each answer | truth; else as :func:`triptychs`.

    answers are of the truth's shape, (B, 3, H, W) CIELAB.

    Raises:
        ValueError: the shapes differ, or there is no photo.
    """
    import torch

    wrong = next((lab for lab in answers if lab.shape != lab_true.shape), lab_true)
    if wrong is not lab_true or lab_true.ndim != 4 or lab_true.shape[1] != 3:
        raise ValueError(
            "expected predicted and true lab (B, 3, H, W) of one shape, got "
            f"{tuple(wrong.shape)} and {tuple(lab_true.shape)}"
        )
    if not len(lab_true):
        raise ValueError("expected one or more photos, got 0")
    with torch.no_grad():
        truth = lab_true.detach().float().cpu()
        neutral = torch.cat([truth[:, :1], torch.zeros_like(truth[:, 1:])], dim=1)
        columns = [
            _rgb_to_uint8(lab_to_rgb(lab))
            for lab in (neutral, *(lab.detach().float().cpu() for lab in answers), truth)
        ]
    rows = [_joined(photos, axis=1) for photos in zip(*columns, strict=True)]
    return _joined(rows, axis=0)


def _rgb_to_uint8(rgb: Tensor) -> NDArray[np.uint8]:
    """SRGB (B, 3, H, W) in 0..1 -> (B, H, W, 3) uint8, rounded."""
    return np.asarray(rgb.mul(255).round().permute(0, 2, 3, 1).cpu().numpy(), np.uint8)


def _joined(parts: Sequence[NDArray[np.uint8]], *, axis: int) -> NDArray[np.uint8]:
    """Pictures (H, W, 3) side by side (axis 1) or stacked (axis 0), with white gaps."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    pieces = [piece for part in parts for piece in (gap, part)][1:]
    return np.concatenate(pieces, axis=axis)
