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
    """The tensors that a model returns for a batch of photos; all float32.

    ab           (B, 2, H, W) CIELAB units within -128..128, for the photo's own L
    rgb          (B, 3, H, W) sRGB in 0..1, of models with an RGB head; ``ab`` is that of it
    logits       (B, Q, h, w) of the palette's bins, of models that classify; h, w may be smaller
                 than H, W, and ``ab`` is decoded from them
    residual     (B, 2, h, w) ab units; confidence · residual is added to the decoded ab
    confidence   (B, 1, h, w) 0..1, how sure the model is of its bins
    histograms   (B, 2, 64) softmaxed, of a and of b over -128..128, of the whole photo
    fake_logits, fake_features, real_features  a discriminator's answers, filled in by the
                 training loop: for each scale its logits, and for each scale its layers' features
    """

    ab: Required[Tensor]
    rgb: Tensor
    logits: Tensor
    residual: Tensor
    confidence: Tensor
    histograms: Tensor
    fake_logits: list[Tensor]
    fake_features: list[list[Tensor]]
    real_features: list[list[Tensor]]
