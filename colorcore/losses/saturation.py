"""MSE of chroma: the saturation term of the tuning guide.

How vivid, whatever the hue: it is what a grey or sepia answer gets wrong most, and a wrong hue
of the right vividness costs nothing here.
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
"""ab units: chroma is √(a² + b² + 1²), so that it has a gradient at neutral, which is 0.

A difference of 1 is about the least that is seen, and chroma 6, still grey, moves by 0.08.
"""


def build() -> Term:
    """Mean squared error of chroma, over photos and pixels, in units of 128 ab units.

    "MSE between colour saturation in LAB space" says the tuning guide, with values of 0.01 to
    0.1 in training; a grey answer to photos of chroma 20 has 0.02 here. At an exactly neutral
    answer the gradient is 0, because no hue is better than another: this term makes colours
    more vivid but cannot start them, so it stands beside one that knows hues.
    """

    def saturation(prediction: Prediction, lab: Tensor) -> Tensor:
        chroma = _chroma(tensor(prediction, "ab", "saturation"))
        return normalize_ab(chroma - _chroma(lab[:, 1:])).square().mean()

    return saturation


def _chroma(ab: Tensor) -> Tensor:
    """Rounded chroma: ab (B, 2, H, W) -> (B, H, W), ab units, from :data:`ROUNDING` up."""
    return (ab.square().sum(dim=1) + ROUNDING**2).sqrt()
