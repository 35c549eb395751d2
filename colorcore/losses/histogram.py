"""The global colour head against the photo's own histograms of a and of b.

The head states which colours the photo has before the decoder paints it; the bins guide
gives its 64 bins a channel and its softmax, and no loss.
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
    Guibas 2000, "The earth mover's distance"; the closed form in one dimension). KL would have
    sky blue next to sky blue cost what sky blue next to red does, and is infinite for a bin that
    the softmax rounds to 0. 0.1 means that colours lie 12.8 ab units off on average.

    Raises:
        ValueError: the histograms are not those of as many photos, (B, 2, N).
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
        # Both end at 1; what is left there is rounding.
        return ahead[..., :-1].abs().sum(dim=2).mean() * (2.0 / bins)

    return histogram


@torch.no_grad()
def histograms(lab: Tensor, bins: int) -> Tensor:
    """Histograms of a and of b over −128..128: lab (B, 3, H, W) -> shares (B, 2, bins), sum 1.

    A pixel between the middles of two bins counts for both, in proportion to how near it is:
    the histogram's mean is the photo's, and a hair's breadth of colour moves no pixel over a
    border. Colours beyond the outermost middles count for these.
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
