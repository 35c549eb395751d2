"""MSE of chroma: the saturation term of the tuning guide.

It measures how vivid a colour is, whatever its hue: the largest error of a grey or sepia
prediction. A wrong hue of the right vividness costs nothing here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colorcore.color.lab import normalize_ab
from colorcore.losses.inputs import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction

ROUNDING = 1.0
"""ab units: chroma is √(a² + b² + 1²), so that its gradient exists at neutral (and is 0 there).

A difference of 1 is barely visible, and a chroma of 6, still grey, changes by 0.08.
"""


def build() -> Term:
    """Mean squared error of chroma, over photos and pixels, in units of 128 ab units.

    The tuning guide defines it as "MSE between colour saturation in LAB space", with values of
    0.01 to 0.1 in training; a grey prediction of photos of chroma 20 has 0.02 here. At exactly
    neutral the gradient is 0, because no hue is better than another: this term makes colours
    more vivid but cannot create them, so combine it with a term that knows hues.
    """

    def saturation(prediction: Prediction, lab: Tensor) -> Tensor:
        chroma = _chroma(tensor(prediction, "ab", "saturation"))
        return normalize_ab(chroma - _chroma(lab[:, 1:])).square().mean()

    return saturation


def _chroma(ab: Tensor) -> Tensor:
    """Smoothed chroma: ab (B, 2, H, W) -> (B, H, W), ab units, from :data:`ROUNDING` up."""
    return (ab.square().sum(dim=1) + ROUNDING**2).sqrt()
