"""L1 on ab: the loss of the UNet guide.

The mean absolute error is smallest at the median of the plausible colours, channel by channel:
less washed-out than MSE's mean where one colour is more likely than all others, and robust to a
few outliers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from colorcore.color.lab import normalize_ab

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction


def build() -> Term:
    """Mean |error| of ab_norm over photos, pixels and both channels (ab units divided by 128)."""

    def ab_l1(prediction: Prediction, lab: Tensor) -> Tensor:
        return F.l1_loss(normalize_ab(prediction["ab"]), normalize_ab(lab[:, 1:]))

    return ab_l1
