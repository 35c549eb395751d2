"""The models by name: one file each, one line in :data:`MODELS`.

A model is an ``nn.Module`` from L_norm (B, 1, H, W) to a
:class:`~colorcore.models.prediction.Prediction`. Its constructor's keyword arguments are what a
recipe's ``[model]`` table may set, so a new option needs no second declaration.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from colorcore.models.unet import UNet
from colorcore.names import options_of, require_known

MODELS: dict[str, type[nn.Module]] = {
    "unet": UNet,
}


def build_model(name: str, **options: Any) -> nn.Module:
    """A freshly initialized model of :data:`MODELS`, on torch's default device.

    Weights come from torch's global generator: seed it for a reproducible start.

    Raises:
        ValueError: the name or an option is unknown (the message has the nearest known one), or
            the model refuses an option's value.
    """
    require_known("model", [name], MODELS)
    require_known(f"option of model '{name}'", options, options_of(MODELS[name]))
    return MODELS[name](**options)
