"""The models by name: one file each, one line in :data:`MODELS`.

A model is an ``nn.Module`` from L_norm (B, 1, H, W) to a
:class:`~colorcore.models.prediction.Prediction`. Its constructor's keyword arguments are what a
recipe's ``[model]`` table may set, so a new option needs no second declaration: types and
defaults are the signature's, ranges are what the constructor refuses with a ValueError whose
message begins with the option. A model that answers in bins has an option ``bins`` and methods
``use_palette`` and ``decode``; one that can start from weights of elsewhere has a method
``load_pretrained``. Training calls the first and the last when it starts; what
they bring in are parameters and buffers, and so part of the model's weights. A constructor reads
no files: a checkpoint builds its model anywhere.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, create_model
from torch import nn
from torch.overrides import TorchFunctionMode

from colorcore.color.bins import TEMPERATURE
from colorcore.color.palette import Palette
from colorcore.models.patchgan import MultiScaleDiscriminator, PatchDiscriminator
from colorcore.models.resnet_unet import ResNetUNet
from colorcore.models.unet import UNet
from colorcore.options import options_of, require_known

if TYPE_CHECKING:
    from torch import Tensor

MODELS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "resnet-unet": ResNetUNet,
}

__all__ = [
    "MODELS",
    "AnswersInBins",
    "MultiScaleDiscriminator",
    "PatchDiscriminator",
    "StartsPretrained",
    "build_model",
    "check_model",
    "options_model",
]


@runtime_checkable
class AnswersInBins(Protocol):
    """A model whose colours are the palette's bins."""

    def use_palette(self, palette: Palette) -> None:
        """Take the centroids of the palette.

        Raises:
            ValueError: the palette has another number of bins than the model.
        """

    def decode(
        self,
        logits: Tensor,
        residual: Tensor,
        confidence: Tensor,
        *,
        size: tuple[int, int] | None = None,
        temperature: float = TEMPERATURE,
    ) -> Tensor:
        """The ab (B, 2, H, W) of an answer, at any temperature above 0.

        At the default temperature it is the ``ab`` that the model answered.
        """


@runtime_checkable
class StartsPretrained(Protocol):
    """A model that can start from weights that something else was trained to."""

    def load_pretrained(self) -> None:
        """Read the weights that an option names; do nothing where it names none.

        Raises:
            ValueError: they cannot be read, or do not fit.
        """


def options_model(name: str) -> type[BaseModel]:
    """A model's options as a pydantic model: names, types and defaults of its constructor."""
    constructor = MODELS[name].__init__
    hints = get_type_hints(constructor)
    fields: dict[str, Any] = {
        option: (hints[option], inspect.signature(constructor).parameters[option].default)
        for option in options_of(MODELS[name])
    }
    config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    return create_model(f"{MODELS[name].__name__}Options", __config__=config, **fields)


def check_model(name: str, options: dict[str, Any]) -> None:
    """Build the model without memory, to see whether it takes its options' values.

    Raises:
        ValueError: it does not.
    """
    with torch.device("meta"), _Unfilled():
        build_model(name, **options)


class _Unfilled(TorchFunctionMode):
    """Draws no normal weights.

    On "meta" nothing has values, and torch's way of drawing none imports its compiler, which takes
    longer than to build all models.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, torch.Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


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
