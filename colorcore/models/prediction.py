"""What a colorizer predicts: the one type shared by models, losses, metrics and inference.

A model gets normalized lightness and returns a :class:`Prediction`. Every model fills ``ab``, so
code that only needs colours (metrics, colorizing a photo, most loss terms) works with any model.
A loss term that needs more names the key, and an error names the models that provide it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Required, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


class Prediction(TypedDict, total=False):
    """The tensors that a model returns for a batch of photos; all float32.

    ab           (B, 2, H, W) CIELAB units within -128..128, for the photo's own L
    rgb          (B, 3, H, W) sRGB in 0..1, from models with an RGB head; ``ab`` is computed from it
    logits       (B, Q, h, w) of the palette's bins, from models that classify; h, w may be smaller
                 than H, W, and ``ab`` is decoded from them
    residual     (B, 2, h, w) ab units; confidence · residual is added to the decoded ab
    confidence   (B, 1, h, w) 0..1, how sure the model is of its bins
    shares       (B,) in 0..1, in training with mixup: share of the next photo of the batch in what
                 was predicted, so the target is that blend, too (colorcore.blocks.mixup)
    histograms   (B, 2, 64) of a and of b over -128..128 in the whole photo, each summing to 1
    fake_logits, fake_features, real_features  a discriminator's outputs, filled in by the
                 training loop: logits for each scale, and its layers' features for each scale
    """

    ab: Required[Tensor]
    rgb: Tensor
    logits: Tensor
    residual: Tensor
    confidence: Tensor
    shares: Tensor
    histograms: Tensor
    fake_logits: list[Tensor]
    fake_features: list[list[Tensor]]
    real_features: list[list[Tensor]]
