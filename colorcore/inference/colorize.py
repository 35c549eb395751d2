"""Colorize one photo at its own resolution.

The network sees a small copy. Its ab is upsampled and combined with the photo's own lightness, so
details stay as sharp as they were. Colours that sRGB cannot show at that lightness lose chroma,
never lightness. The photo is converted strip by strip, so memory is little more than the photo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from colorcore.color.lab import fit_gamut, lab_to_rgb, rgb_to_lab
from colorcore.inference.predict import OWN, predict_lab

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from colorcore.models.decoding import Decoding

STRIP_PIXELS = 1 << 20
"""Pixels per strip (about 100 MB of intermediate results)."""
MAX_ASPECT = 16
"""Longer photos get a smaller copy: one of 1 x 20,000 pixels would fill the memory."""


def colorize(
    model: nn.Module,
    rgb: NDArray[np.uint8],
    *,
    size: int,
    device: torch.device | str = "cpu",
    decoding: Decoding = OWN,
) -> NDArray[np.uint8]:
    """The photo with predicted colours.

    rgb (H, W, 3) uint8 sRGB, grey or not: only its lightness is used. ``size`` is the shorter
    side, in pixels, of the copy that the network sees (that of its training samples); the copy of
    a photo longer than 16:1 has no more pixels than one of 16:1.
    Returns (H, W, 3) uint8 sRGB whose L differs from the photo's only by rounding to 8 bits.
    """
    height, width = rgb.shape[:2]
    ab = _predict_ab(model, rgb, size, device, decoding)
    out = np.empty_like(rgb)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = slice(top, min(top + rows, height))
        lab = rgb_to_lab(_tensor(rgb[strip]).to(device))
        lab[:, 1:] = torch.from_numpy(_rows_of(ab, strip, height)).to(device)
        colored = lab_to_rgb(fit_gamut(lab))[0].permute(1, 2, 0)
        out[strip] = (colored * 255.0).round().byte().cpu().numpy()
    return out


def _predict_ab(
    model: nn.Module,
    rgb: NDArray[np.uint8],
    size: int,
    device: torch.device | str,
    decoding: Decoding = OWN,
) -> NDArray[np.float32]:
    """Predicted ab of a small copy, upsampled to the photo's width: (2, h, W) ab units."""
    import cv2

    height, width = rgb.shape[:2]
    scale = size * min(1.0 / min(height, width), (MAX_ASPECT / (height * width)) ** 0.5)
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrinking = scale < 1.0
    how = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    copy = np.asarray(cv2.resize(rgb, small, interpolation=how), np.uint8)
    lab = predict_lab(model, rgb_to_lab(_tensor(copy).to(device)), decoding)
    predicted = lab[0, 1:].cpu().numpy()
    return np.stack(
        [
            cv2.resize(plane, (width, small[1]), interpolation=cv2.INTER_LINEAR)
            for plane in predicted
        ]
    )


def _rows_of(ab: NDArray[np.float32], strip: slice, height: int) -> NDArray[np.float32]:
    """Rows of a strip of the photo, interpolated linearly between the rows of ab (2, h, W)."""
    small = ab.shape[1]
    where = (np.arange(strip.start, strip.stop) + 0.5) * small / height - 0.5
    where = where.clip(0, small - 1)
    above = np.floor(where).astype(int)
    below = np.minimum(above + 1, small - 1)
    share = (where - above).astype(np.float32)[None, :, None]
    rows: NDArray[np.float32] = ab[:, above] * (1 - share) + ab[:, below] * share
    return rows


def _tensor(rgb: NDArray[np.uint8]) -> torch.Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float() / 255.0
