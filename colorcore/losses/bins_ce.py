"""Rebalanced cross-entropy on colour bins (Zhang, Isola and Efros 2016).

With a distribution over bins a model can predict "red or blue"; rebalancing makes it predict rare,
vivid colours too, which would otherwise be lost among the many nearly grey pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colorcore.losses.bins import BinsTerm

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.color.palette import Palette
    from colorcore.losses.term import Term


def build(*, rebalance: float = 1.0, palette: Palette | None = None) -> Term:
    """Mean over photos and pixels of v(Z) · −Σ_q Z_q log p_q (Zhang et al. 2016, eq. 2, a mean).

    p is the softmax of the logits, Z the soft encoding of the true ab (5 nearest bins, σ = 5;
    their section 2.2), v the palette's weight of the most likely true bin (eq. 3 and 4, λ = 0.5;
    the bins guide states the same weight and λ). Its minimum is the entropy of Z, not 0.

    Args:
        rebalance: 0..1, from plain cross-entropy to the palette's weights.
        palette: of the dataset.

    Raises:
        ValueError: rebalance is out of range.
    """
    return BinsTerm("bins_ce", palette, rebalance, cross_entropy)


def cross_entropy(log_p: Tensor, target: Tensor) -> Tensor:
    """−Σ_k target_k · log p_k: (B, K, h, w) twice -> (B, h, w)."""
    return -(target * log_p).sum(dim=1)
