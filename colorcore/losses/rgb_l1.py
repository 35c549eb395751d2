"""L1 on sRGB: the picture as a whole, brightness and colour together.

The training guide gives it the lowest weight of its four terms (0.5): a brightness error is
larger than a colour error in RGB, and a model that mostly minimizes it turns sepia.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colorcore.losses.inputs import predicted_rgb, true_rgb

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction


def build() -> Term:
    """Mean |error| of sRGB in 0..1 over photos, pixels and the three channels.

    The predicted picture is ``rgb`` if the model has an RGB head, otherwise the predicted ab with
    the true L, clipped to sRGB with a gradient that passes through the clipping. The guide gives
    the weight of its RGB term but no formula; we take it for an L1.
    """

    def rgb_l1(prediction: Prediction, lab: Tensor) -> Tensor:
        return (predicted_rgb(prediction, lab, "rgb_l1") - true_rgb(lab)).abs().mean()

    return rgb_l1
