"""The ResNet-34 encoder on lightness: He et al. 2016, table 1, with torchvision's names.

With torchvision's names, weights trained on ImageNet can be loaded. ``bn1`` and the other norms
are group norms here, which have the same two parameters per channel. The statistics that batch
norm collected on ImageNet's RGB don't apply to lightness and are left out, as is the classifier.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from colorcore.blocks.layers import group_norm

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (64, 128, 256, 512)
"""Channels of the four layers."""
STRIDE = 32
"""Factor by which the last map is smaller than the photo."""
_BLOCKS = (3, 4, 6, 3)
_UNUSED = ("running_mean", "running_var", "num_batches_tracked")


class ResNet34(nn.Module):
    """From lightness to feature maps at four scales; 21,278,400 parameters.

    Convolutions are initialized as in He et al. 2015 (fan out), norms as the identity.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = group_norm(WIDTHS[0])
        befores = (WIDTHS[0], *WIDTHS[:-1])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _layer(*sizes) for sizes in zip(befores, WIDTHS, _BLOCKS, strict=True)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, L_norm: Tensor) -> list[Tensor]:
        """L_norm (B, 1, H, W) -> maps of 64, 128, 256, 512 channels, H/4, H/8, H/16, H/32 high.

        H and W must be multiples of 32 for these sizes to be exact.
        """
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(L_norm))), 3, stride=2, padding=1)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def load_torchvision(self, path: str | Path) -> None:
        """Load the weights of a torchvision ResNet-34, a .pth or .safetensors state dict.

        The first convolution's filters for R, G and B are summed: on lightness the sum does what
        the three did on a grey photo. ImageNet's scaling of a grey photo is about 2.2 times ours,
        which does not matter because a norm follows.

        Raises:
            ValueError: the file cannot be read, or a tensor is missing, unknown or of another
                shape; the message names it.
        """
        found = _read(Path(path))
        expected = self.state_dict()
        for name in sorted(found.keys() - expected.keys()):
            if not (name.startswith("fc.") or name.rpartition(".")[2] in _UNUSED):
                raise ValueError(_misfit(path, f"'{name}', which is not part of a ResNet-34"))
        for name, ours in expected.items():
            if name not in found:
                raise ValueError(_misfit(path, f"no '{name}'"))
            theirs = found[name]
            if name == "conv1.weight" and theirs.ndim == 4 and theirs.shape[1] == 3:
                theirs = theirs.sum(dim=1, keepdim=True)
            if theirs.shape != ours.shape:
                shapes = f"{tuple(found[name].shape)}, not {tuple(ours.shape)}"
                raise ValueError(_misfit(path, f"'{name}' of shape {shapes}"))
            ours.copy_(theirs)


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, fig. 2)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = group_norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = group_norm(width)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or before != width:
            shortcut = nn.Conv2d(before, width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, group_norm(width))

    def forward(self, x: Tensor) -> Tensor:
        changed = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(changed + self.downsample(x))


def _layer(before: int, width: int, blocks: int) -> nn.Sequential:
    """Blocks of one width; the first one halves the map if it changes the width."""
    first = _Block(before, width, stride=1 if before == width else 2)
    return nn.Sequential(first, *(_Block(width, width, stride=1) for _ in range(blocks - 1)))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"encoder_weights: cannot read {path}: {reason}; expected a state dict of "
            "torchvision's ResNet-34, .pth or .safetensors"
        ) from error
    if not isinstance(weights, dict) or not all(torch.is_tensor(w) for w in weights.values()):
        raise ValueError(_misfit(path, "no state dict (tensors by name)"))
    return weights


def _misfit(path: str | Path, what: str) -> str:
    return (
        f"encoder_weights: expected a state dict of torchvision's ResNet-34, but {path} has {what}"
    )
