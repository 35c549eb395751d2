"""The models by name: one file each, one line in :data:`MODELS`.

A model is an ``nn.Module`` from L_norm (B, 1, H, W) to a
:class:`~colorcore.models.prediction.Prediction`. Its constructor's keyword arguments are what a
recipe's ``[model]`` table may set, so a new option needs no second declaration.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from colorcore.models.unet import UNet

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


def options_of(builder: Callable[..., object]) -> list[str]:
    """The keyword arguments that a model's or loss term's builder takes."""
    return list(inspect.signature(builder).parameters)


def require_known(what: str, names: Collection[str], known: Collection[str]) -> None:
    """Pass if all names are known.

    Raises:
        ValueError: naming ``what`` was asked for, the nearest known name and all known ones.
    """
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        guess = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"unknown {what}: '{name}'{guess} Known: {', '.join(known) or 'none'}.")
