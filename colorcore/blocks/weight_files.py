"""Files of other projects' weights: tensors by name, read without running code, and checked."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn


class WeightsError(ValueError):
    """A file of weights is missing, unreadable, or of another network; the message names it."""


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file, on the CPU.

    ``what`` is what the file should hold, for messages ("torchvision's weights of vgg16").

    Raises:
        WeightsError: there is no such file, or it does not hold tensors by name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"expected {what} in {path}, found no such file") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        line = str(error).partition("\n")[0]
        raise WeightsError(
            f"cannot read {path}: {line}; expected {what} as .pth or .safetensors"
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(f"expected tensors by name in {path}, found {type(state).__name__}")
    return state


def load_weights(network: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Load tensors into a network; those that it does not have, such as a classifier, are ignored.

    ``what`` is the network's name, for messages ("torchvision's vgg16").

    Raises:
        WeightsError: a tensor is missing, or has another shape.
    """
    wanted = network.state_dict()
    for name, value in wanted.items():
        found = state.get(name)
        if not isinstance(found, torch.Tensor) or found.shape != value.shape:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else "none"
            raise WeightsError(
                f"{path} is not {what}: expected {name} of shape "
                f"{tuple(value.shape)}, found {shape}"
            )
    network.load_state_dict({name: state[name] for name in wanted})
