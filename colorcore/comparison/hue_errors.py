"""How wrong a colorizer is for each hue of the photos."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from colorcore.color.colorfulness import GREY_CHROMA
from colorcore.scores.metrics import delta_e2000

if TYPE_CHECKING:
    from torch import Tensor

SECTOR = 30
"""Degrees of hue per sector: sector i is from 30·i up to, not including, 30·(i + 1)."""
SECTORS = 360 // SECTOR
HUES = (
    "rose", "red", "orange", "yellow", "lime", "green",
    "teal", "cyan", "sky", "blue", "violet", "magenta",
)  # fmt: skip
"""What the sectors of CIELAB's hue look like."""
NEUTRAL = "neutral"
NAMES = (*(f"{SECTOR * i}-{SECTOR * (i + 1)}" for i in range(SECTORS)), NEUTRAL)


class HueErrors:
    """Mean ΔE2000 over the pixels of each hue of the truth, added up batch by batch.

    A pixel is neutral if its true chroma is at most ``GREY_CHROMA`` (6 ab units), which sensor and
    JPEG noise reach, so that its hue says nothing.
    """

    def __init__(self) -> None:
        self._pixels = torch.zeros(len(NAMES), dtype=torch.float64)
        self._errors = torch.zeros(len(NAMES), dtype=torch.float64)

    @torch.no_grad()
    def update(self, lab_pred: Tensor, lab_true: Tensor) -> None:
        """Add a batch: LAB (B, 3, H, W) float."""
        a, b = lab_true[:, 1].float(), lab_true[:, 2].float()
        hue = torch.rad2deg(torch.atan2(b, a)) % 360.0
        sector = (hue / SECTOR).long().clamp(max=SECTORS - 1)
        sector[torch.hypot(a, b) <= GREY_CHROMA] = SECTORS
        error = delta_e2000(lab_pred.float(), lab_true.float()).flatten().cpu().double()
        flat = sector.flatten().cpu()
        self._pixels += torch.bincount(flat, minlength=len(NAMES))
        self._errors += torch.bincount(flat, error, minlength=len(NAMES))

    def compute(self) -> dict[str, dict[str, float | None]]:
        """By sector: its ``share`` of the pixels, 0..1, and ``delta_e2000``; None if it has none.

        Sectors are named by their ends in degrees, such as "30-60", the last one "neutral".
        """
        pixels, errors = self._pixels.tolist(), self._errors.tolist()
        total = max(sum(pixels), 1.0)
        return {
            name: {"share": count / total, "delta_e2000": error / count if count else None}
            for name, count, error in zip(NAMES, pixels, errors, strict=True)
        }
