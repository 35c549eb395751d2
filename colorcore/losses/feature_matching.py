"""Feature matching: predictions should look like photos to the discriminator's inner layers too.

It is more stable than the adversarial term alone, since it compares a prediction with its own photo
(Wang et al. 2018, "High-resolution image synthesis and semantic manipulation with conditional
GANs", pix2pixHD).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from colorcore.losses.inputs import need, widen

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction


def build() -> Term:
    """Σ over layers of the mean |real − fake feature| (Wang et al. 2018, eq. 4), mean over scales.

    Their eq. 5 sums over the scales with a weight λ of 10; this and ``adversarial`` take the
    mean, which keeps their ratio of 10 between the two. Real features get no gradient. The
    discriminator chooses the layers: 3, 5 and 7, as in the bins guide.

    Raises:
        ValueError: real and fake features differ in scales, layers or shapes.
    """

    def feature_matching(prediction: Prediction, lab: Tensor) -> Tensor:
        real = need(prediction, "real_features", "feature_matching")
        fake = need(prediction, "fake_features", "feature_matching")
        shapes = [[[f.shape for f in scale] for scale in side] for side in (real, fake)]
        if shapes[0] != shapes[1] or not real or not all(real):
            raise ValueError(
                "loss term 'feature_matching' needs real and fake features of the same scales, "
                f"layers and shapes, got {shapes[0]} and {shapes[1]}"
            )
        return torch.stack(
            [
                torch.stack([_distance(*pair) for pair in zip(*scale, strict=True)]).sum()
                for scale in zip(real, fake, strict=True)
            ]
        ).mean()

    return feature_matching


def _distance(real: Tensor, fake: Tensor) -> Tensor:
    """Mean |difference| of one layer's features."""
    return (widen(real).detach() - widen(fake)).abs().mean()
