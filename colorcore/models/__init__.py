"""The models by name: one file per model, one line each in :data:`MODELS`.

A model is an ``nn.Module`` from L_norm (B, 1, H, W) to a
:class:`~colorcore.models.prediction.Prediction`. Its constructor's keyword arguments are what a
recipe's ``[model]`` table may set, so a new option is declared once: types and defaults come from
the signature, and the constructor refuses values out of range with a ValueError whose message
begins with the option. A model that predicts bins has an option ``bins`` and methods
``use_palette`` and ``decode``; one that can start from pretrained weights has a method
``load_pretrained``. Training calls ``use_palette`` and ``load_pretrained`` when it starts; both
fill parameters and buffers, which are saved with the model's weights. A constructor reads no
files, so a checkpoint can build its model anywhere.
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
from colorcore.models.lite_unet import LiteBins, LiteUNet
from colorcore.models.patchgan import MultiScaleDiscriminator, PatchDiscriminator
from colorcore.models.resnet_unet import ResNetUNet
from colorcore.models.unet import UNet
from colorcore.options import options_of, require_known

if TYPE_CHECKING:
    from torch import Tensor

MODELS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "resnet-unet": ResNetUNet,
    "lite-unet": LiteUNet,
    "lite-bins": LiteBins,
}

__all__ = [
    "MODELS",
    "AnswersInBins",
    "MultiScaleDiscriminator",
    "PatchDiscriminator",
    "RepeatsBlocks",
    "StartsPretrained",
    "build_model",
    "check_model",
    "options_model",
]


@runtime_checkable
class AnswersInBins(Protocol):
    """A model that predicts the palette's bins."""

    def use_palette(self, palette: Palette) -> None:
        """Use the palette's centroids as the bins' colours.

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
        """The ab (B, 2, H, W) of a prediction, at any temperature above 0.

        At the default temperature it equals the prediction's ``ab``.
        """


@runtime_checkable
class StartsPretrained(Protocol):
    """A model whose encoder can start from pretrained weights.

    Attributes:
        encoder_lr: the encoder's learning rate as a factor of the model's, unless the recipe sets
            one; 0 freezes it.
    """

    @property
    def encoder_lr(self) -> float: ...  # noqa: D102

    def encoder_parts(self) -> list[nn.Module]:
        """The encoder's parts, from the photo on; ``optim.encoder_stages`` counts from the end."""

    def load_pretrained(self) -> None:
        """Read the weights that an option names, if it names any.

        Raises:
            ValueError: they cannot be read, or do not fit.
        """


@runtime_checkable
class RepeatsBlocks(Protocol):
    """A model that is compiled block by block, because most of its blocks are alike.

    Blocks of the same shape are then compiled once. A model without that is compiled whole.
    """

    def blocks_to_compile(self) -> list[nn.Module]:
        """The blocks, none within another; the rest of the model runs uncompiled."""


def options_model(name: str) -> type[BaseModel]:
    """A model's options as a pydantic model, from its constructor's names, types and defaults."""
    constructor = MODELS[name].__init__
    hints = get_type_hints(constructor)
    fields: dict[str, Any] = {
        option: (hints[option], inspect.signature(constructor).parameters[option].default)
        for option in options_of(MODELS[name])
    }
    config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    return create_model(f"{MODELS[name].__name__}Options", __config__=config, **fields)


def check_model(name: str, options: dict[str, Any]) -> None:
    """Build the model without allocating memory, to check its options' values.

    Raises:
        ValueError: the model refuses a value.
    """
    with torch.device("meta"), _Unfilled():
        build_model(name, **options)


class _Unfilled(TorchFunctionMode):
    """Skips drawing normal weights.

    Tensors on "meta" have no values, and torch's own way of skipping the draw imports its
    compiler, which takes longer than building all models.
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
