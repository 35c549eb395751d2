"""LPIPS, the learned perceptual image patch similarity, version 0.1 (Zhang et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from colorcore.blocks.weight_files import WeightsError, load_weights, read_weights
from colorcore.losses.extractors import NETWORKS, Extractor

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-10
"""Added to the length of a pixel's features, as in the package lpips."""
_CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg16": (64, 128, 256, 512, 512)}
LINEAR = {"alex": "alex.pth", "vgg16": "vgg.pth"}
"""The files of the learned weights, in the folder ``weights/v0.1`` of the package lpips."""

_NETWORK, _LINEAR = "weights", "linear weights"


class Lpips(nn.Module):
    """The distance of pictures in features of AlexNet or VGG16, with learned weights per channel.

    Zhang et al. 2018 ("The unreasonable effectiveness of deep features as a perceptual metric"),
    eq. 1: features of each pixel are scaled to length 1, their squared differences weighted by
    channel, averaged over pixels and summed over five layers. ``net`` is a name in ``NETWORKS``.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        self.extractor = Extractor(net)
        for layer, channels in enumerate(_CHANNELS[net]):
            self.register_buffer(f"weights_{layer}", torch.zeros(channels))

    def features(self, rgb: Tensor) -> list[Tensor]:
        """Five maps of directions, (B, C_i, h_i, w_i), of rgb (B, 3, H, W) sRGB in 0..1.

        lpips scales pixels by constants that are ImageNet's mean and standard deviation.
        """
        return [
            x / (x.square().sum(dim=1, keepdim=True).sqrt() + _TINY) for x in self.extractor(rgb)
        ]

    def distance(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """LPIPS per photo (B,), from what :meth:`features` returns; 0 for equal pictures."""
        layers = [
            torch.einsum("bchw,c->bhw", (one - other).square(), self.get_buffer(f"weights_{i}"))
            for i, (one, other) in enumerate(zip(features, others, strict=True))
        ]
        return torch.stack([layer.mean(dim=(1, 2)) for layer in layers]).sum(dim=0)


def open_lpips(files: Sequence[Path]) -> dict[str, Lpips]:
    """LPIPS of each network that ``files`` hold, by its name: "alex" or "vgg16".

    Each network needs two files, in any order, known by their tensors: torchvision's weights of the
    network, and the linear weights of the package lpips.

    Raises:
        WeightsError: a file is missing, unreadable or something else, or one of two is not given.
    """
    found: dict[tuple[str, str], Path] = {}
    for path in files:
        kind = _kind_of(path, read_weights(path, "weights for LPIPS"))
        if (other := found.setdefault(kind, path)) is not path:
            what, net = kind
            raise WeightsError(f"expected one file of {net}'s {what}, got {other} and {path}")
    opened = {}
    for net in sorted({net for _, net in found}):
        network, linear = found.get((_NETWORK, net)), found.get((_LINEAR, net))
        if network is None or linear is None:
            missing = (
                f"torchvision's {NETWORKS[net].file}"
                if network is None
                else f"{LINEAR[net]} from the folder weights/v0.1 of the Python package lpips"
            )
            raise WeightsError(
                f"LPIPS of {net} needs two files: next to {network or linear}, name {missing}"
            )
        opened[net] = _load(net, network, linear)
    return opened


def _kind_of(path: Path, state: dict[str, Tensor]) -> tuple[str, str]:
    """What a file holds, and of which network.

    Raises:
        WeightsError: something else.
    """
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
    for net, channels in _CHANNELS.items():
        if all(shapes.get(_linear(i)) == (1, c, 1, 1) for i, c in enumerate(channels)):
            return _LINEAR, net
        first = NETWORKS[net].layers[0]
        if shapes.get("features.0.weight") == (channels[0], 3, first.kernel, first.kernel):
            return _NETWORK, net
    raise WeightsError(
        f"expected torchvision's AlexNet or VGG16, or the linear weights of the package lpips "
        f"(weights/v0.1), found other tensors in {path}"
    )


def _linear(layer: int) -> str:
    return f"lin{layer}.model.1.weight"


def _load(net: str, network: Path, linear: Path) -> Lpips:
    lpips = Lpips(net)
    state = read_weights(network, f"torchvision's weights of {net}")
    load_weights(lpips.extractor, state, network, f"torchvision's {net}")
    learned = read_weights(linear, f"LPIPS's weights of {net}")
    for layer in range(len(_CHANNELS[net])):
        lpips.get_buffer(f"weights_{layer}").copy_(learned[_linear(layer)].reshape(-1))
    return lpips.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
