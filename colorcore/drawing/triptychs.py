"""Grey | predicted | truth, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from colorcore.color.lab import lab_to_rgb
from colorcore.drawing.style import INK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor


GAP = 4
"""Pixels between the photos of a triptych."""


def triptychs(
    lab_pred: Tensor,
    lab_true: Tensor,
    *,
    labels: Sequence[str] | None = None,
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """Photos side by side, a row each: grey | predicted | truth.

    lab_pred, lab_true (B, 3, H, W) CIELAB -> (H', W', 3) uint8 sRGB. Grey is the truth's L alone.
    Colours that sRGB lacks are clipped, as a viewer would.

    Args:
        lab_pred: what a model answered.
        lab_true: the photos.
        labels: a caption for each row, drawn below it.
        scale: size of a photo in the picture, 1 pixel for pixel.

    Raises:
        ValueError: the shapes differ, there is no photo, or labels or scale do not fit.
    """
    import torch

    if lab_pred.shape != lab_true.shape or lab_true.ndim != 4 or lab_true.shape[1] != 3:
        raise ValueError(
            "expected predicted and true lab (B, 3, H, W) of one shape, got "
            f"{tuple(lab_pred.shape)} and {tuple(lab_true.shape)}"
        )
    count = len(lab_true)
    if not count or (labels is not None and len(labels) != count):
        have = None if labels is None else len(labels)
        raise ValueError(f"expected one or more photos and a label each, got {count} and {have}")
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    with torch.no_grad():
        truth = lab_true.detach().float().cpu()
        neutral = torch.cat([truth[:, :1], torch.zeros_like(truth[:, 1:])], dim=1)
        columns = [
            _resized(_to_uint8(lab), scale)
            for lab in (neutral, lab_pred.detach().float().cpu(), truth)
        ]
    rows = []
    for index, photos in enumerate(zip(*columns, strict=True)):
        row = _joined(photos, axis=1)
        rows.append(row if labels is None else _captioned(row, labels[index]))
    return _joined(rows, axis=0)


def _to_uint8(lab: Tensor) -> NDArray[np.uint8]:
    """CIELAB (B, 3, H, W) -> sRGB (B, H, W, 3) uint8, rounded."""
    return _rgb_to_uint8(lab_to_rgb(lab))


def _rgb_to_uint8(rgb: Tensor) -> NDArray[np.uint8]:
    """SRGB (B, 3, H, W) in 0..1 -> (B, H, W, 3) uint8, rounded."""
    return np.asarray(rgb.mul(255).round().permute(0, 2, 3, 1).cpu().numpy(), np.uint8)


def _resized(photos: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    from PIL import Image

    if scale == 1.0:
        return photos
    height, width = photos.shape[1:3]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = [Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS) for photo in photos]
    return np.stack([np.asarray(image) for image in resized])


def _joined(parts: Sequence[NDArray[np.uint8]], *, axis: int) -> NDArray[np.uint8]:
    """Pictures (H, W, 3) beside (axis 1) or below (axis 0) each other, white gaps between."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    pieces = [piece for part in parts for piece in (gap, part)][1:]
    return np.concatenate(pieces, axis=axis)


def _captioned(row: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """A row of photos with a line of text below, cut off where the row ends."""
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (row.shape[1], 18), "white")
    font = ImageFont.load_default(12)
    ImageDraw.Draw(strip).text((2, 2), text, fill=INK, font=font)
    return np.concatenate([row, np.asarray(strip)])
