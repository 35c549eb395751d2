"""Calibration of the confidence map: the probability that the colour is right.

The bins guide asks for a map that shows where the model is unsure, but not how to train it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from colorcore.losses.inputs import area_mean, size_of, tensor, true_ab

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction

EDGE = 1e-4
"""Confidence is mapped to EDGE .. 1 − EDGE, so that a wrong certainty costs 9.2, not infinity."""


def build(*, within: float = 10.0) -> Term:
    """Binary cross-entropy of the confidence c and y, whether the colour is right.

    y is 1 where the distance of predicted and true ab, both at the confidence's size, is at most
    ``within`` ab units, otherwise 0. The mean over photos and pixels of −y log c − (1 − y)
    log(1 − c), with c mapped from 0..1 to EDGE .. 1 − EDGE, is smallest where c is the
    probability of being right. The colour gets no gradient, or the loss could be lowered by
    being surely wrong.

    Args:
        within: ab units, above 0; the default, ours, is a step of the grid of Zhang et al.
            (2016, section 2.2): the next bin counts as right, the one after it does not.

    Raises:
        ValueError: within is not above 0.
    """
    if not within > 0:
        raise ValueError(f"confidence needs within > 0, got {within}")

    def confidence(prediction: Prediction, lab: Tensor) -> Tensor:
        c = tensor(prediction, "confidence", "confidence")
        ab = tensor(prediction, "ab", "confidence").detach()
        truth, ab = true_ab(lab, size_of(c)), area_mean(ab, size_of(c))
        right = torch.linalg.vector_norm(ab - truth, dim=1, keepdim=True) <= within
        c = EDGE + (1.0 - 2.0 * EDGE) * c
        return -torch.where(right, c, 1.0 - c).log().mean()

    return confidence
