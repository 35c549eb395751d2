"""Saturation-weighted MSE on ab: the whole loss of the guide "the simple truth".

Plain MSE is smallest at the mean of all plausible colours, and most pixels of most photos are
nearly grey, so it teaches sepia. Weighting an error by the saturation of the *true* colour makes
the few vivid pixels count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from colorcore.color.lab import normalize_ab

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction


def build(*, grey: float = 0.5, saturated: float = 1.5, chroma_full: float = 40.0) -> Term:
    """MSE of ab_norm with pixel weights from ``grey`` to ``saturated`` by true chroma.

    The weight rises linearly from ``grey`` at chroma 0 to ``saturated`` at ``chroma_full`` and
    stays there. The guide gives only the two weights; the ramp and its end at
    40 ab units (skin and a pale sky lie near 25, a red car near 75) are ours.

    The term is the mean of weight · squared error over photos, pixels and both channels. It is
    *not* divided by the sum of the weights: that would undo the lower weights of a dull photo, and
    make the loss of a batch depend on how it is split into micro-batches or over ranks.

    Args:
        grey: weight of a neutral pixel, 0 or more.
        saturated: weight of a saturated pixel, 0 or more.
        chroma_full: chroma in ab units, above 0, at which a pixel counts as saturated.

    Raises:
        ValueError: an option is out of range.
    """
    if not (grey >= 0 and saturated >= 0 and chroma_full > 0):
        raise ValueError(
            "weighted_mse needs grey >= 0, saturated >= 0 and chroma_full > 0, "
            f"got {grey}, {saturated} and {chroma_full}"
        )

    def weighted_mse(prediction: Prediction, lab: Tensor) -> Tensor:
        ab = lab[:, 1:]
        chroma = torch.linalg.vector_norm(ab, dim=1, keepdim=True)
        weight = grey + (saturated - grey) * (chroma / chroma_full).clamp(max=1.0)
        error = normalize_ab(prediction["ab"]) - normalize_ab(ab)
        return torch.mean(weight * error.square())

    return weighted_mse
