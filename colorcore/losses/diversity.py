"""Colour diversity: the training guide's term against mode collapse.

A model that paints every pixel the same brown has no variance in ab, which this term penalizes.
The guide's formula alone is unbounded: wilder colours are always better, which it warns about
("should stabilize, not go to −∞"). Here nothing is gained beyond the photos' own variance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from colorcore.color.lab import normalize_ab
from colorcore.losses.inputs import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction

FLOOR = 1e-6
"""Added to the variance, as in the training guide: one colour for all costs −log 1e-6 = 13.8."""


def build(*, limit: float = 1.0) -> Term:
    """−log(min(v, limit · v_true) + 1e-6), with v the variance of ab_norm.

    v is the variance over the pixels of a photo, then the mean over photos and both channels,
    as in the training guide (which leaves the units open; we take ab_norm, ab units divided by
    128). v_true is that of the true photos of the batch. While predictions vary less than the
    photos, this is exactly the guide's formula; beyond that its gradient is 0, as for photos
    without colour. v is at most about 1, so the term is never much below 0; for photos with a
    standard deviation of 15 ab units it ends at 4.3.

    The guide's batches of 8 to 16 matter: the logarithm is of a mean over the batch, so a batch
    is not the mean of its parts.

    Args:
        limit: share of the photos' own variance beyond which more is no better; above 0.

    Raises:
        ValueError: limit is not above 0.
    """
    if not limit > 0:
        raise ValueError(f"diversity needs limit > 0, got {limit}")

    def diversity(prediction: Prediction, lab: Tensor) -> Tensor:
        variance = _variance(tensor(prediction, "ab", "diversity"))
        enough = limit * _variance(lab[:, 1:])
        return -torch.log(torch.minimum(variance, enough.to(variance)) + FLOOR)

    return diversity


def _variance(ab: Tensor) -> Tensor:
    """Mean variance of ab_norm within a photo: ab (B, 2, H, W) -> scalar.

    Unbiased, as in torch and the guide; for a single pixel it is 0.
    """
    pixels = normalize_ab(ab).flatten(2)
    return pixels.var(dim=2, correction=min(1, pixels.shape[2] - 1)).mean()
