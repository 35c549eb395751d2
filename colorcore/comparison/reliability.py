"""Whether a bin model's confidence means what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

NEAR = 10.0
"""ab units within which a colour counts as right: one step of the grid of Zhang et al. 2016."""
TENTHS = 10


class Reliability:
    """The share of pixels whose colour is right, per tenth of confidence; added up by batches.

    A reliability diagram (Murphy and Winkler 1977; for networks Guo et al. 2017, "On calibration of
    modern neural networks"): a calibrated confidence of 0.7 is right for 70% of its pixels.
    """

    def __init__(self) -> None:
        self._pixels = torch.zeros(TENTHS, dtype=torch.float64)
        self._right = torch.zeros(TENTHS, dtype=torch.float64)

    @torch.no_grad()
    def update(self, confidence: Tensor, lab_pred: Tensor, lab_true: Tensor) -> None:
        """Add a batch: confidence (B, 1, h, w) 0..1, LAB (B, 3, H, W) float.

        A smaller map of confidence is enlarged bilinearly, as a model enlarges its colours.
        """
        size = (lab_true.shape[-2], lab_true.shape[-1])
        if confidence.shape[-2:] != lab_true.shape[-2:]:
            confidence = F.interpolate(confidence.float(), size, mode="bilinear")
        tenth = (confidence[:, 0] * TENTHS).long().clamp(0, TENTHS - 1).flatten().cpu()
        error = torch.linalg.vector_norm(lab_pred[:, 1:] - lab_true[:, 1:], dim=1)
        right = (error <= NEAR).flatten().cpu().double()
        self._pixels += torch.bincount(tenth, minlength=TENTHS)
        self._right += torch.bincount(tenth, right, minlength=TENTHS)

    def compute(self) -> list[dict[str, float | None]]:
        """A row per tenth: ``from`` and ``to``, ``share`` of the pixels, share of ``right`` ones.

        ``right`` is None where no pixel has such a confidence.
        """
        pixels, right = self._pixels.tolist(), self._right.tolist()
        total = max(sum(pixels), 1.0)
        return [
            {
                "from": i / TENTHS,
                "to": (i + 1) / TENTHS,
                "share": count / total,
                "right": hits / count if count else None,
            }
            for i, (count, hits) in enumerate(zip(pixels, right, strict=True))
        ]
