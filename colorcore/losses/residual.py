"""What bins leave over: the residual head against the error of the decoded bins.

Bins alone paint in patches; the residual is a small step from the decoded colour to the true
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

    c is the confidence, where the prediction has one, and else 1: a residual is added to the
    decoded ab as far as the bins are sure. decoded is the predicted ab less c · residual, all at
    the residual's size, so the term holds for whatever temperature the model decodes at. decoded
    and c get no gradient. Through decoded it would be an L1 on ab for the whole network, and pull
    the bins to the middle of the plausible colours, which is what bins are there to avoid; and
    with c as a factor, pixels whose bins are wrong and unsure do not pull the residual there
    either. The bins guide gives no formula.
    """

    def residual(prediction: Prediction, lab: Tensor) -> Tensor:
        step = tensor(prediction, "residual", "residual")
        if "confidence" in prediction:
            step = tensor(prediction, "confidence", "residual").detach() * step
        ab = tensor(prediction, "ab", "residual").detach()
        truth, ab = true_ab(lab, size_of(step)), area_mean(ab, size_of(step))
        # ab is decoded + step; only the step shall have a gradient.
        return normalize_ab(ab - truth + (step - step.detach())).abs().mean()

    return residual
