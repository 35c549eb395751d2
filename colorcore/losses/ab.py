"""L1 on a and b, each with its own weight: the chrominance term of the tuning guide.

With too much red and green and too little blue and yellow, raise ``b``; in the opposite case,
raise ``a``. The guide offers this as its advanced option.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colorcore.color.lab import normalize_ab
from colorcore.losses.inputs import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction


def build(*, a: float = 1.0, b: float = 1.0) -> Term:
    """(a · mean |error of a| + b · mean |error of b|) / 2, of ab_norm (ab units divided by 128).

    With both weights 1, as in the tuning guide, this is ``ab_l1``. The guide gives no formula,
    only a range of 0.1 to 0.3 in training. A grey prediction of ImageNet photos has an L1 of
    about 0.1 and an MSE of about 0.02, so we take it for an L1.

    Args:
        a: weight of the green-red channel, 0 or more.
        b: weight of the blue-yellow channel, 0 or more; not both 0.

    Raises:
        ValueError: a weight is negative, or both are 0.
    """
    if not (a >= 0 and b >= 0 and a + b > 0):
        raise ValueError(f"ab needs weights a and b of 0 or more, not both 0, got {a} and {b}")

    def chrominance(prediction: Prediction, lab: Tensor) -> Tensor:
        error = normalize_ab(tensor(prediction, "ab", "ab") - lab[:, 1:]).abs()
        return (a * error[:, 0].mean() + b * error[:, 1].mean()) / 2.0

    return chrominance
