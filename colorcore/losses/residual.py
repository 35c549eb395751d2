"""The residual head compared with the error that decoded bins leave.

Bins alone give patchy colours; the residual is a small step from the decoded colour to the true
one (the bins guide's "continuous nudge").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colorcore.color.lab import normalize_ab
from colorcore.losses.inputs import area_mean, size_of, tensor, true_ab

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction


def build() -> Term:
    """Mean |decoded + c · residual − true ab| in ab_norm units; only the residual learns from it.

    c is the confidence, or 1 if the prediction has none: the residual is added to the decoded ab
    in proportion to it. decoded is the predicted ab minus c · residual, all at the residual's
    size, so the term works at any temperature. decoded and c get no gradient. Through decoded,
    this would be an L1 on ab for the whole network, and pull the bins to the middle of the
    plausible colours, which bins are meant to avoid. The factor c keeps pixels whose bins are
    wrong and unsure from pulling the residual there. The bins guide gives no formula.
    """

    def residual(prediction: Prediction, lab: Tensor) -> Tensor:
        step = tensor(prediction, "residual", "residual")
        if "confidence" in prediction:
            step = tensor(prediction, "confidence", "residual").detach() * step
        ab = tensor(prediction, "ab", "residual").detach()
        truth, ab = true_ab(lab, size_of(step)), area_mean(ab, size_of(step))
        # ab is decoded + step; only step gets a gradient.
        return normalize_ab(ab - truth + (step - step.detach())).abs().mean()

    return residual
