"""What models that predict the palette's bins share: three heads, and how they become colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from colorcore.blocks.layers import quiet_head
from colorcore.color.bins import CELLS, TEMPERATURE, decode_ab
from colorcore.color.lab import AB_NORM
from colorcore.models.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.color.palette import Palette

RESIDUAL = 10.0
"""Largest residual of a and of b, ab units: one step of the grid of Zhang et al. (2016, §2.2).

It can move a colour within its bin and towards the next one, but not to another hue.
"""


def require_bins(bins: int) -> None:
    """Check the option ``bins`` of a model.

    Raises:
        ValueError: it is out of range.
    """
    if not 2 <= bins <= CELLS**2:
        raise ValueError(f"bins must be in 2..{CELLS**2}, got {bins}")


class BinModel(nn.Module):
    """A model that predicts bins; its constructor calls :meth:`add_heads`.

    Attributes:
        shrink: factor by which logits, residual and confidence are smaller than the photo.
        centroids: (Q, 2) ab units, 0 until :meth:`use_palette`.
    """

    shrink: int
    centroids: Tensor

    def add_heads(self, width: int, bins: int) -> None:
        """Add the heads on a map of ``width`` channels."""
        self.bins, self.residual, self.confidence = (
            quiet_head(width, answers) for answers in (bins, 2, 1)
        )
        self.register_buffer("centroids", torch.zeros(bins, 2))

    @torch.no_grad()
    def use_palette(self, palette: Palette) -> None:
        """Use the palette's centroids, and start from its priors.

        The logits' bias becomes log(priors), so a new model predicts for each pixel how often the
        colours occur (Lin et al. 2017, "Focal loss", §3.3). That is near grey, and the first
        steps need not be spent on learning it.

        Raises:
            ValueError: the palette has another number of bins than the model.
        """
        if len(palette) != len(self.centroids):
            raise ValueError(
                f"expected a palette of {len(self.centroids)} bins (model.bins), got one "
                f"of {len(palette)}; set model.bins={len(palette)} or make another palette"
            )
        self.centroids.copy_(torch.from_numpy(palette.centroids))
        self.bins.bias.copy_(torch.from_numpy(palette.priors).log())  # type: ignore[union-attr]

    def answers(self, x: Tensor, size: tuple[int, int]) -> Prediction:
        """What the heads say of a map: (B, width, h, w) -> the prediction for photos of ``size``.

        Its maps are cropped to the photo's size divided by ``shrink``, rounded up.
        """
        # Not -(-side // shrink): in an exported graph, division rounds towards zero.
        height, width = ((side + self.shrink - 1) // self.shrink for side in size)
        logits, residual, confidence = (
            head(x).float()[..., :height, :width]
            for head in (self.bins, self.residual, self.confidence)
        )
        residual, confidence = RESIDUAL * residual.tanh(), confidence.sigmoid()
        return {
            "ab": self.decode(logits, residual, confidence, size=size),
            "logits": logits,
            "residual": residual,
            "confidence": confidence,
        }

    def decode(
        self,
        logits: Tensor,
        residual: Tensor,
        confidence: Tensor,
        *,
        size: tuple[int, int] | None = None,
        temperature: float = TEMPERATURE,
    ) -> Tensor:
        """The colours of a prediction; the temperature may be chosen after training.

        ::

            ab = clamp(upsample(annealed mean(logits, T) + confidence · residual), -128, 128)

        with the annealed mean of Zhang et al. 2016, eq. 5, over the palette's centroids: T = 1 is
        the mean, near 0 it is the most likely bin; theirs is 0.38. The residual corrects what is
        lost to bins, so it is scaled by the confidence in the bin; it is at most 10 ab units.

        logits (B, Q, h, w), residual (B, 2, h, w) ab units, confidence (B, 1, h, w) 0..1 ->
        ab (B, 2, H, W) ab units, ``shrink`` times as large, cropped to ``size`` (H, W) where that
        is given.

        Raises:
            ValueError: the temperature is not above 0.
        """
        ab = decode_ab(logits, self.centroids, temperature=temperature) + confidence * residual
        ab = F.interpolate(ab, scale_factor=self.shrink, mode="bilinear", align_corners=False)
        height, width = size if size is not None else ab.shape[-2:]
        return ab[..., :height, :width].clamp(-AB_NORM, AB_NORM)
