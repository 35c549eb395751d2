"""The global colour head compared with the photo's own histograms of a and of b.

The head predicts which colours the photo has before the decoder paints it. The bins guide gives
its 64 bins per channel and its softmax, but no loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from colorcore.color.lab import AB_NORM
from colorcore.losses.inputs import tensor

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction


def build() -> Term:
    """Earth mover's distance to the true histograms, in ab_norm units, mean over photos, a and b.

    For histograms on a line it is Σ_k |CDF(k) − CDF_true(k)| · bin width (Rubner, Tomasi and
    Guibas 2000, "The earth mover's distance"; the closed form in one dimension). With KL,
    predicting a neighbouring blue would cost as much as predicting red, and a bin that the
    softmax rounds to 0 would cost infinity. 0.1 means that colours are 12.8 ab units off on
    average.

    Raises:
        ValueError: the histograms do not have the shape (B, 2, N).
    """

    def histogram(prediction: Prediction, lab: Tensor) -> Tensor:
        shares = tensor(prediction, "histograms", "histogram")
        if shares.ndim != 3 or shares.shape[:2] != (len(lab), 2):
            raise ValueError(
                f"loss term 'histogram' expects histograms ({len(lab)}, 2, bins), "
                f"got {tuple(shares.shape)}"
            )
        bins = shares.shape[2]
        ahead = (shares - histograms(lab, bins).to(shares)).cumsum(dim=2)
        # Both end at 1; a difference there is rounding.
        return ahead[..., :-1].abs().sum(dim=2).mean() * (2.0 / bins)

    return histogram


@torch.no_grad()
def histograms(lab: Tensor, bins: int) -> Tensor:
    """Histograms of a and of b over −128..128: lab (B, 3, H, W) -> shares (B, 2, bins), sum 1.

    A pixel between the centres of two bins is shared between them linearly, so the histogram has
    the photo's mean, and a tiny change of colour moves no pixel across a border. Colours beyond
    the outermost centres count for these.
    """
    width = 2.0 * AB_NORM / bins
    pixels = lab[:, 1:].flatten(2)
    place = ((pixels + AB_NORM) / width - 0.5).clamp(0.0, bins - 1.0)
    lower = place.floor().clamp(max=bins - 2.0)
    upper_share = place - lower
    index = lower.long()
    counts = torch.zeros(*pixels.shape[:2], bins, dtype=pixels.dtype, device=pixels.device)
    counts.scatter_add_(2, index, 1.0 - upper_share)
    counts.scatter_add_(2, index + 1, upper_share)
    return counts / pixels.shape[2]
