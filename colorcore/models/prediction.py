"""What a colorizer answers: the one type between models, losses, metrics and inference.

A model gets normalized lightness and returns a :class:`Prediction`. Every model fills ``ab``,
so whatever only needs colours (metrics, colorizing a photo, most loss terms) works with any of
them; a loss term that needs more names the key and so the models that it goes with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Required, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


class Prediction(TypedDict, total=False):
    """The tensors that a model returns for a batch of photos.

    ab  (B, 2, H, W) float32, CIELAB units within -128..128, for the photo's own L
    """

    ab: Required[Tensor]
