"""L1 on the lightness of an RGB head: the luminance term of the tuning guide.

A model that predicts ab keeps the photo's own L and has nothing to learn here. A model that
predicts RGB must get brightness right as well; the guide weights that ten times less (0.3) than
colour (3.0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colorcore.color.lab import L_MAX, rgb_to_lab
from colorcore.losses.inputs import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction


def build() -> Term:
    """Mean |error| of L/100, over photos and pixels, of the L of the predicted sRGB.

    The tuning guide gives no formula, only a range of 0.05 to 0.15 in training. That is 5 to 15
    units of L, so we take it for an L1 of L/100.
    """

    def luminance(prediction: Prediction, lab: Tensor) -> Tensor:
        L = rgb_to_lab(tensor(prediction, "rgb", "luminance"))[:, :1]
        return (L - lab[:, :1]).abs().mean() / L_MAX

    return luminance
