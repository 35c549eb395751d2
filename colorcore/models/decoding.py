"""From a model's answer to colours: two knobs that may be turned after training.

The temperature of the annealed mean says how far a model of bins keeps to the likeliest colour
(Zhang et al. 2016, eq. 5), the chroma scale how vivid the colours are made. Both cost no
training, and move a model along the front between fidelity and colourfulness; what a model is
decoded with is chosen on validation photos (:mod:`colorcore.inference.decoding_search`) and part
of its checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from colorcore.color.bins import TEMPERATURE
from colorcore.color.lab import AB_NORM
from colorcore.models import AnswersInBins

if TYPE_CHECKING:
    from torch import Tensor, nn

    from colorcore.models.prediction import Prediction


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers become colours; as built, what the model itself answers.

    temperature  of the annealed mean over bins, above 0; None leaves it to the model, and is all
                 there is for a model that answers in no bins
    chroma       what a and b are multiplied with, above 0

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float | None = None
    chroma: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "chroma"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0 and finite, got {value}")

    def __str__(self) -> str:
        """Such as "T 0.38, chroma ×1.2", and "chroma ×1" without bins."""
        chroma = f"chroma ×{self.chroma:g}"
        return chroma if self.temperature is None else f"T {self.temperature:g}, {chroma}"


def own_decoding(model: nn.Module) -> Decoding:
    """What a model decodes with if nobody says otherwise, in numbers."""
    return Decoding(TEMPERATURE if isinstance(model, AnswersInBins) else None)


def completed(model: nn.Module, decoding: Decoding) -> Decoding:
    """The same decoding with the model's own temperature where it says none."""
    if decoding.temperature is None:
        return replace(decoding, temperature=own_decoding(model).temperature)
    return decoding


def decode(model: nn.Module, prediction: Prediction, decoding: Decoding) -> Tensor:
    """The colours of an answer.

    prediction of a batch (B, …, H, W), with an ``ab`` -> ab (B, 2, H, W) float32, ab units
    within -128..128. For a model of bins they are decoded anew from its logits, with what else it
    adds to them; of an RGB head they are the ab of its sRGB, to be shown with the photo's own L.

    Raises:
        ValueError: a temperature for a model that answers in no bins.
    """
    ab = prediction["ab"].float()
    if decoding.temperature is not None:
        if not isinstance(model, AnswersInBins):
            raise ValueError(
                f"expected no temperature for {type(model).__name__}, which answers in no bins, "
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
    """Ab (…) times a chroma scale, kept within -128..128; the same tensor for a scale of 1."""
    return ab if chroma == 1.0 else (ab * chroma).clamp(-AB_NORM, AB_NORM)
