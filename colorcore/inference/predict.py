"""Predict colours from lightness, with a model's own or another decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from colorcore.color.lab import normalize_L
from colorcore.decoding import Decoding
from colorcore.models.decoding import decode
from colorcore.step.precision import autocast

if TYPE_CHECKING:
    from torch import Tensor, nn

    from colorcore.models.prediction import Prediction


OWN = Decoding()
"""The model's own decoding."""


@torch.inference_mode()
def predict_lab(model: nn.Module, lab: Tensor, decoding: Decoding = OWN) -> Tensor:
    """The photos with predicted colours. lab (B, 3, H, W) CIELAB; only its L is used.

    Raises:
        ValueError: a temperature is given, but the model does not predict bins.
    """
    return predict_with_logits(model, lab, decoding)[0]


@torch.inference_mode()
def predict_with_logits(
    model: nn.Module, lab: Tensor, decoding: Decoding, precision: str = "fp32"
) -> tuple[Tensor, Tensor | None]:
    """Like :func:`predict_lab`, with the output of an RGB head, which has its own L.

    ``precision`` is that of the network, as a recipe's; colours are float32 in any case.
    """
    with autocast(lab.device, precision):
        prediction: Prediction = model(normalize_L(lab[:, :1]))
    ab = decode(model, prediction, decoding)
    return torch.cat([lab[:, :1], ab], dim=1), prediction.get("rgb")
