"""Focal loss on colour bins (Lin et al. 2017, "Focal loss for dense object detection").

It weights by difficulty rather than rarity: pixels that the model is already sure of, mostly grey
ones, stop counting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colorcore.losses.bins import BinsTerm

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.color.palette import Palette
    from colorcore.losses.term import Term

_CERTAIN = 1e-6
"""Lower limit of 1 − p: for γ below 1 its power has an infinite slope at 0."""


def build(*, gamma: float = 2.0, rebalance: float = 0.0, palette: Palette | None = None) -> Term:
    """Mean over photos and pixels of v · −Σ_q Z_q (1 − p_q)^γ log p_q.

    Lin et al. 2017, eq. 5, with the true class's indicator replaced by the soft encoding Z of
    ``bins_ce``: if one bin has all of a pixel, the two are equal. γ = 2 worked best for them;
    the bins guide states the formula without γ. Their α_t is v, which is 1 by
    default: the guide uses the focal loss instead of weights by rarity. γ = 0 is ``bins_ce``.

    Args:
        gamma: γ, 0 or more; the larger, the less confident pixels count.
        rebalance: 0..1, from no weights to the palette's.
        palette: of the dataset.

    Raises:
        ValueError: an option is out of range.
    """
    if not gamma >= 0:
        raise ValueError(f"bins_focal needs gamma >= 0, got {gamma}")

    def focal(log_p: Tensor, target: Tensor) -> Tensor:
        doubt = (-log_p.expm1()).clamp(min=_CERTAIN) ** gamma
        return -(target * doubt * log_p).sum(dim=1)

    return BinsTerm("bins_focal", palette, rebalance, focal)
