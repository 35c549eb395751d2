"""Predicted bins compared with photos: the part that cross-entropy and focal loss share.

A pixel's true colour is encoded as a mixture of its 5 nearest bins. Both losses need only the
predicted probabilities of these 5, so the dense target (B, Q, h, w), 60 times as large, is never
built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch.autograd.function import once_differentiable

from colorcore.color.bins import SoftEncoder
from colorcore.losses.inputs import size_of, stored_ab, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.color.palette import Palette
    from colorcore.models.prediction import Prediction

PerPixel: TypeAlias = Callable[["Tensor", "Tensor"], "Tensor"]
"""log_p and target, both (B, K, h, w), of the pixels' K nearest bins -> loss (B, h, w)."""

_encoders: WeakKeyDictionary[Palette, SoftEncoder] = WeakKeyDictionary()
"""Tables of each palette, built once for all terms."""


class BinsTerm:
    """A loss on the bins of each pixel, each pixel weighted by its true colour's rarity.

    Logits may be smaller than the photo; the true ab is then the mean over each pixel's area.
    With the palette's weights w and the most likely true bin q*, a pixel's weight is
    v = 1 + rebalance · (w[q*] − 1): Zhang et al. 2016, eq. 3, for ``rebalance`` 1, and no
    weights for 0; its mean under the priors is always 1. The term is the mean over photos and
    pixels. It is not divided by the sum of the weights, so the mean over two halves is that of
    the batch.

    Args:
        name: of the term, for error messages.
        palette: of the dataset, or None if only the options are checked.
        rebalance: 0..1.
        per_pixel: the loss per pixel.

    Raises:
        ValueError: rebalance is out of range.
    """

    def __init__(
        self, name: str, palette: Palette | None, rebalance: float, per_pixel: PerPixel
    ) -> None:
        if not 0 <= rebalance <= 1:
            raise ValueError(f"{name} needs rebalance in 0..1, got {rebalance}")
        self._name, self._palette, self._rebalance = name, palette, rebalance
        self._per_pixel = per_pixel
        self._weights: Tensor | None = None

    def prepare(self, device: torch.device) -> None:
        """Build the palette's tables, and move the weights to the device.

        Raises:
            ValueError: there is no palette.
        """
        palette = self._known_palette()
        if palette not in _encoders:
            _encoders[palette] = SoftEncoder(palette.centroids)
        weights = torch.from_numpy(palette.weights).to(device)
        self._weights = 1.0 + self._rebalance * (weights - 1.0)

    def __call__(self, prediction: Prediction, lab: Tensor) -> Tensor:
        """The term; prediction with logits (B, Q, h, w), lab (B, 3, H, W) -> scalar.

        Raises:
            ValueError: the prediction has no logits, or another number of bins than the palette.
        """
        logits = tensor(prediction, "logits", self._name)
        palette = self._known_palette()
        if logits.shape[1] != len(palette):
            raise ValueError(
                f"loss term '{self._name}' has a palette of {len(palette)} bins, "
                f"but the model predicts {logits.shape[1]}"
            )
        if self._weights is None or self._weights.device != logits.device:
            self.prepare(logits.device)
        assert self._weights is not None  # noqa: S101 - for the type checker
        ab_u8 = stored_ab(lab, size_of(logits))
        indices, target = _encoders[palette].encode(ab_u8)
        loss = self._per_pixel(log_probability(logits, indices), target.to(logits))
        return (self._weights.to(logits)[indices[:, 0]] * loss).mean()

    def _known_palette(self) -> Palette:
        if self._palette is None:
            raise ValueError(f"loss term '{self._name}' needs the dataset's palette")
        return self._palette


def log_probability(logits: Tensor, indices: Tensor) -> Tensor:
    """Log softmax of some bins: logits (B, Q, h, w), indices (B, K, h, w) -> (B, K, h, w).

    At most 0: rounding could put it slightly above, where 1 − p would be negative.
    """
    found: Tensor = _LogProbability.apply(logits, indices)  # type: ignore[no-untyped-call]
    return found


class _LogProbability(torch.autograd.Function):
    """z_k − log Σ_q exp z_q, whose gradient is δ_qk − p_q.

    Autograd would build one gradient (B, Q, h, w) for the gather and one for the sum, and add
    them; a single one takes half the time and half the memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, indices: Tensor) -> Tensor:
        total = logits.logsumexp(1, keepdim=True)
        ctx.save_for_backward(logits, total, indices)
        return (logits.gather(1, indices) - total).clamp_(max=0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, total, indices = ctx.saved_tensors
        whole = (logits - total).exp_().mul_(-gradient.sum(1, keepdim=True))
        return whole.scatter_add_(1, indices, gradient), None
