"""Several sides at the same colourfulness, each with the chroma that it takes there.

:mod:`colorcore.inference.equal_colorfulness` reads one model's front. Here, sides are scored once
more, at the settings that were read, so every photo has its score and the differences between sides
get intervals. Anyone's pictures take part: their a and b are scaled as a model's are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from colorcore.color.colorfulness import colorfulness
from colorcore.color.lab import lab_to_rgb
from colorcore.decoding import Decoding
from colorcore.inference.equal_colorfulness import JUDGE, Reading, read_at
from colorcore.models.decoding import scaled
from colorcore.scores.metrics import auc, stored_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

PHOTOS = 500
"""Photos used at most, a random sample of all: 50 kB each at 128 px, 200 kB at 256 px."""
CHROMAS = tuple(2.0 ** (step / 4) for step in range(-4, 9))
"""Chroma scales between which the wanted one is interpolated: 0.5 to 4, a fourth root of 2 apart.

The CF that results is within 1% of the wanted one, also where many colours leave sRGB.
"""


class ChromaCurves:
    """Mean CF over chroma scales, for one temperature of a side or for a choice of them.

    Of several temperatures, the one with the best balanced AuC at the wanted CF counts.

    Args:
        balance: (256, 256), the palette weight of each stored (a, b) cell.
        temperatures: those of the batches of :meth:`update`; [None] for a side without any.
    """

    def __init__(self, balance: Tensor, temperatures: Sequence[float | None]) -> None:
        self._balance = balance.float()
        self._settings = [Decoding(t, c) for t in temperatures for c in CHROMAS]
        self._is_choice = len(temperatures) > 1
        self._sums = torch.zeros(len(self._settings), 2, dtype=torch.float64)
        self._photos = 0

    @torch.no_grad()
    def update(self, answers: Sequence[Tensor], lab_true: Tensor) -> None:
        """Add a batch: an answer (B, 3, H, W) LAB at chroma ×1 for each temperature."""
        self._balance = self._balance.to(lab_true.device)
        weights = self._balance[stored_cells(lab_true[:, 1:])]
        rows = []
        for lab in answers:
            for chroma in CHROMAS:
                turned = with_chroma(lab, chroma)
                cf = colorfulness(lab_to_rgb(turned) * 255.0).sum()
                # AuC takes longer than all the rest, and is only there to choose a temperature.
                judged = (
                    auc(turned[:, 1:], lab_true[:, 1:], weights).sum()
                    if self._is_choice
                    else torch.zeros_like(cf)
                )
                rows.append(torch.stack([cf, judged]))
        self._sums += torch.stack(rows).cpu().double()
        self._photos += len(lab_true)

    def read(self, target: float) -> Reading | None:
        """The setting at which the mean CF is ``target``; None where it never is."""
        means = (self._sums / max(self._photos, 1)).tolist()
        front = {
            setting: {"cf": cf, JUDGE: judged}
            for setting, (cf, judged) in zip(self._settings, means, strict=True)
        }
        return read_at(front, target)


def with_chroma(lab: Tensor, chroma: float) -> Tensor:
    """LAB (B, 3, H, W) with its a and b scaled, and the same L."""
    return torch.cat([lab[:, :1], scaled(lab[:, 1:], chroma)], dim=1)
