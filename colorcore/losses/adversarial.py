"""Adversarial losses: the generator's is a loss term, the discriminator's a function.

A discriminator outputs a map of logits for each scale, with one logit per patch: above 0 it takes
the patch for a real photo's (Isola et al. 2017, PatchGAN; Wang et al. 2018, several scales).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from colorcore.losses.inputs import need, widen

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.losses.term import Term
    from colorcore.models.prediction import Prediction

KINDS = ("hinge", "least_squares")


def build(*, kind: str = "hinge") -> Term:
    """How well the discriminator recognizes predictions: the mean over scales and patches.

    ``hinge``: −E D(G), unbounded below (Lim and Ye 2017, "Geometric GAN"; Miyato et al. 2018,
    "Spectral normalization", eq. 17). ``least_squares``: ½ E (D(G) − 1)² (Mao et al. 2017, eq. 2
    with c = 1). Wang et al. 2018, eq. 3, sum over scales; with the mean a weight keeps its
    meaning when scales are added. The bins guide has three scales and does not name a kind.

    Args:
        kind: ``hinge`` or ``least_squares``; the discriminator must be trained with the same.

    Raises:
        ValueError: the kind is unknown.
    """
    _check(kind)

    def adversarial(prediction: Prediction, lab: Tensor) -> Tensor:
        return generator_loss(need(prediction, "fake_logits", "adversarial"), kind)

    return adversarial


def generator_loss(fake_logits: Sequence[Tensor], kind: str = "hinge") -> Tensor:
    """The loss that the generator minimizes; see :func:`build`.

    fake_logits, (B, 1, h, w) for each scale, of the generator's predictions -> scalar.

    Raises:
        ValueError: the kind is unknown, or there is no scale.
    """
    _check(kind)
    logits = _scales(fake_logits)
    if kind == "hinge":
        return _mean([-fake.mean() for fake in logits])
    return _mean([0.5 * (fake - 1.0).square().mean() for fake in logits])


def discriminator_loss(
    real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor], kind: str = "hinge"
) -> Tensor:
    """The loss that the discriminator minimizes: the mean over scales and patches.

    ``hinge``: E max(0, 1 − D(real)) + E max(0, 1 + D(fake)) (Miyato et al. 2018, eq. 16).
    ``least_squares``: ½ E (D(real) − 1)² + ½ E D(fake)² (Mao et al. 2017, eq. 2, a = 0, b = 1).
    Fake logits should come from detached predictions.

    real_logits, fake_logits, (B, 1, h, w) for each scale -> scalar.

    Raises:
        ValueError: the kind is unknown, there is no scale, or the lists differ in length.
    """
    _check(kind)
    real, fake = _scales(real_logits), _scales(fake_logits)
    if len(real) != len(fake):
        raise ValueError(f"expected as many real as fake scales, got {len(real)} and {len(fake)}")
    pairs = zip(real, fake, strict=True)
    if kind == "hinge":
        return _mean([F.relu(1.0 - r).mean() + F.relu(1.0 + f).mean() for r, f in pairs])
    return _mean([0.5 * ((r - 1.0).square().mean() + f.square().mean()) for r, f in pairs])


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"adversarial needs kind 'hinge' or 'least_squares', got {kind!r}")


def _scales(logits: Sequence[Tensor]) -> list[Tensor]:
    """The logits of each scale in float32 at least.

    Raises:
        ValueError: there is no scale.
    """
    if not logits:
        raise ValueError("expected a discriminator's logits for at least one scale, got none")
    return [widen(scale) for scale in logits]


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
