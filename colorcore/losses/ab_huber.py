"""Huber on ab, also called smooth L1: the colour term of the training guide.

It is quadratic below β, where an error is barely visible, and linear above, where MSE would let
outliers pull the prediction to the mean of all plausible colours: brown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from colorcore.color.lab import normalize_ab
from colorcore.losses.inputs import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction


def build(*, beta: float = 0.1) -> Term:
    """Mean over photos, pixels and both channels of d²/2β where d < β, and of d − β/2 elsewhere.

    d is |error| of ab_norm (ab units divided by 128), and the training guide's β of 0.1, which
    it applies to normalized ab, is 12.8 ab units. Its tuning table also tries 0.2. This is
    Girshick 2015 ("Fast R-CNN"), eq. 3, for β = 1: Huber's function divided by β, so that the
    linear part has slope 1 at any β.

    Args:
        beta: where the two parts meet, above 0, in ab_norm units.

    Raises:
        ValueError: beta is not above 0.
    """
    if not beta > 0:
        raise ValueError(f"ab_huber needs beta > 0, got {beta}")

    def ab_huber(prediction: Prediction, lab: Tensor) -> Tensor:
        ab = normalize_ab(tensor(prediction, "ab", "ab_huber"))
        return F.smooth_l1_loss(ab, normalize_ab(lab[:, 1:]).to(ab), beta=beta)

    return ab_huber
