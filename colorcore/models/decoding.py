"""From a model's prediction to colours: two settings that may be changed after training.

The temperature of the annealed mean sets how closely a bin model follows the most likely colour
(Zhang et al. 2016, eq. 5); the chroma scale sets how vivid the colours are. Neither needs
training: they move a model along the front between fidelity and colourfulness. The setting is
chosen on validation photos (:mod:`colorcore.inference.decoding_search`) and stored in the
checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from colorcore.color.bins import TEMPERATURE
from colorcore.color.lab import AB_NORM
from colorcore.decoding import Decoding
from colorcore.models import AnswersInBins

if TYPE_CHECKING:
    from torch import Tensor, nn

    from colorcore.models.prediction import Prediction


def own_decoding(model: nn.Module) -> Decoding:
    """A model's default decoding, with its temperature as a number."""
    return Decoding(TEMPERATURE if isinstance(model, AnswersInBins) else None)


def completed(model: nn.Module, decoding: Decoding) -> Decoding:
    """The same decoding, with the model's own temperature in place of None."""
    if decoding.temperature is None:
        return replace(decoding, temperature=own_decoding(model).temperature)
    return decoding


def decode(model: nn.Module, prediction: Prediction, decoding: Decoding) -> Tensor:
    """The colours of a prediction.

    prediction of a batch (B, …, H, W) with an ``ab`` -> ab (B, 2, H, W) float32, ab units
    within -128..128. A bin model's ab is decoded again from its logits, residual and confidence;
    an RGB head's is the ab of its sRGB, to be shown with the photo's own L.

    Raises:
        ValueError: a temperature is given, but the model does not predict bins.
    """
    ab = prediction["ab"].float()
    if decoding.temperature is not None:
        if not isinstance(model, AnswersInBins):
            raise ValueError(
                f"expected no temperature for {type(model).__name__}, which does not predict bins, "
                f"got {decoding.temperature:g}; only its chroma can be scaled"
            )
        ab = model.decode(
            prediction["logits"],
            prediction["residual"],
            prediction["confidence"],
            size=(ab.shape[-2], ab.shape[-1]),
            temperature=decoding.temperature,
        )
    return scaled(ab, decoding.chroma)


def scaled(ab: Tensor, chroma: float) -> Tensor:
    """Multiply ab (…) by a chroma scale and clamp to -128..128; a scale of 1 returns ab itself."""
    return ab if chroma == 1.0 else (ab * chroma).clamp(-AB_NORM, AB_NORM)
