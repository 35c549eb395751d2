"""The loss: a weighted sum of named terms, each in its own file and on its own line here.

Every guide's loss is a combination of these terms, so a recipe describes it by a few numbers, and
a search can vary those. Each term is also reported separately and without its weight, so runs
with different weights can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from colorcore.losses import (
    ab,
    ab_huber,
    ab_l1,
    adversarial,
    bins_ce,
    bins_focal,
    confidence,
    diversity,
    feature_matching,
    histogram,
    luminance,
    perceptual,
    residual,
    rgb_l1,
    saturation,
    weighted_mse,
)
from colorcore.losses.term import Term
from colorcore.models.prediction import Prediction
from colorcore.options import Option, options_of, require_known, takes

if TYPE_CHECKING:
    from colorcore.color.palette import Palette

TERMS: dict[str, Callable[..., Term]] = {
    "weighted_mse": weighted_mse.build,
    "ab_l1": ab_l1.build,
    "ab_huber": ab_huber.build,
    "ab": ab.build,
    "rgb_l1": rgb_l1.build,
    "luminance": luminance.build,
    "saturation": saturation.build,
    "diversity": diversity.build,
    "perceptual": perceptual.build,
    "bins_ce": bins_ce.build,
    "bins_focal": bins_focal.build,
    "residual": residual.build,
    "confidence": confidence.build,
    "histogram": histogram.build,
    "adversarial": adversarial.build,
    "feature_matching": feature_matching.build,
}

ADVERSARIAL = ("adversarial", "feature_matching")
"""The terms that need a discriminator; their level depends on it as much as on the model."""


class Loss:
    """A weighted sum of terms. Made by :func:`build_terms`.

    Attributes:
        weights: term name -> weight above 0, in the order in which they are summed.
    """

    def __init__(self, weights: Mapping[str, float], terms: Mapping[str, Term]) -> None:
        self.weights = dict(weights)
        self._terms = {name: terms[name] for name in self.weights}

    @property
    def needs_discriminator(self) -> bool:
        """Whether a term is one of :data:`ADVERSARIAL`."""
        return any(name in ADVERSARIAL for name in self.weights)

    def require(self) -> None:
        """Check that what the terms need is installed, without loading it.

        What a term would download is not checked.

        Raises:
            LossError: something is missing.
        """
        for term in self._terms.values():
            if (require := getattr(term, "require", None)) is not None:
                require()

    def prepare(self, device: torch.device) -> None:
        """Load what the terms need onto the device that they run on.

        Raises:
            LossError: something is missing, such as the pretrained weights of a perceptual term.
        """
        for term in self._terms.values():
            if (prepare := getattr(term, "prepare", None)) is not None:
                prepare(device)

    def __call__(
        self, prediction: Prediction, lab: Tensor, *, influence: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total to minimize, and each term's own value: unweighted and detached.

        ``influence``, 0..1, multiplies the weights of the terms in :data:`ADVERSARIAL`.

        prediction of a model; lab (B, 3, H, W) true CIELAB float, of the same B, H, W. Autocast
        is off here: in bfloat16, a = 500 (f(X) − f(Y)) would be rounded to steps of 2 ab units.

        Raises:
            ValueError: the prediction lacks what a term needs; the message names models that
                have it.
        """
        with torch.autocast(lab.device.type, enabled=False):
            values = {name: term(prediction, lab) for name, term in self._terms.items()}
        shares = {name: influence if name in ADVERSARIAL else 1.0 for name in values}
        total = sum(
            (shares[name] * self.weights[name] * value for name, value in values.items()),
            start=lab.new_zeros(()),
        )
        return total, {name: value.detach() for name, value in values.items()}


def build_terms(
    weights: Mapping[str, float],
    options: Mapping[str, Mapping[str, Option]] | None = None,
    palette: Palette | None = None,
) -> Loss:
    """The loss of a recipe.

    Args:
        weights: term name -> weight, 0 or more. A term of weight 0 is left out: neither
            computed nor reported.
        options: term name -> keyword options of its builder; other terms keep their defaults.
            Options of a term that is left out are checked but not used.
        palette: of the dataset; None if a recipe is only checked.

    Raises:
        ValueError: no term has a weight above 0; a weight is negative or not finite; a term or
            an option is unknown (the message has the nearest known one); or a term refuses an
            option's value.
    """
    options = options or {}
    require_known("loss term", [*weights, *options], TERMS)
    for name, values in options.items():
        require_known(f"option of loss term '{name}'", values, options_of(TERMS[name]))
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of loss term '{name}' must be 0 or more, got {weight}")
    used = {name: weight for name, weight in weights.items() if weight > 0}
    if not used:
        raise ValueError(
            f"the loss needs a term with a weight above 0, got {dict(weights)}. "
            f"Terms: {', '.join(TERMS)}."
        )
    given = {name: {"palette": palette} if takes(TERMS[name], "palette") else {} for name in used}
    return Loss(used, {name: TERMS[name](**options.get(name, {}), **given[name]) for name in used})


def steady_loss(terms: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted sum of terms without :data:`ADVERSARIAL` ones, which oscillate by nature.

    The signs ``oscillating``, ``plateaued`` and ``diverged`` are found in this loss.
    """
    return math.fsum(
        weights[name] * value
        for name, value in terms.items()
        if name in weights and name not in ADVERSARIAL
    )
