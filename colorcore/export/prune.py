"""Structured pruning: whole channels go, so that tensors become smaller.

The channels whose filters have the smallest L1 norm go first (Li et al. 2017, "Pruning filters for
efficient ConvNets", section 3.1). A channel can go where all that reads it is known: in a UNet that
is every channel but the output's, through skip connections, concatenations and gates; in the other
networks it is those inside a block, while the maps that shortcuts add up keep theirs. Layers less
than a quarter as wide as the widest keep all: they hold few of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from colorcore.blocks.efficientnet_lite import EfficientNetLite
from colorcore.blocks.layers import GROUPS
from colorcore.blocks.resnet34 import ResNet34
from colorcore.models.resnet_unet import ResidualBlock
from colorcore.models.unet import UNet

if TYPE_CHECKING:
    from torch import Tensor

NARROWEST = 0.25
"""Width of a layer, as a share of the widest, from which it is pruned."""
MULTIPLE = 8
"""Widths stay multiples of this: what vector instructions take at once."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A convolution that reads channels; ``after`` makes those before them among its inputs."""

    layer: Any
    after: Any = None


@dataclass(frozen=True, slots=True)
class Channels:
    """Channels that can go: who makes them, and who reads them.

    makers   convolutions with these output channels; the first one's filters are judged
    norms    with these channels
    """

    makers: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    readers: tuple[Reader, ...]

    @property
    def width(self) -> int:
        """How many there are."""
        return int(self.makers[0].out_channels)  # type: ignore[arg-type]


def prune(model: nn.Module, share: float) -> dict[str, int]:
    """Remove ``share`` of the channels of a model's widest layers, in place.

    Returns the parameters ``before`` and ``after``, and the number of ``layers`` that were pruned.

    Raises:
        ValueError: the share is not between 0 and 1, or no layer is wide enough to lose channels.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"expected a share between 0 and 1, got {share:g}")
    before = _size(model)
    groups = channels_of(model)
    widest = max(group.width for group in groups)
    wide = [group for group in groups if group.width >= NARROWEST * widest]
    pruned = sum(_prune(group, share) for group in wide)
    if not pruned:
        raise ValueError(
            f"no layer can lose {share:.0%} of its channels: widths stay multiples of {MULTIPLE}, "
            f"and the widest layer has {widest}"
        )
    return {"before": before, "after": _size(model), "layers": pruned}


def channels_of(model: nn.Module) -> list[Channels]:
    """The groups of channels of a model that can lose some."""
    if isinstance(model, UNet):
        return list(_of_unet(model))
    return [group for module in model.modules() for group in _inside(module)]


def _inside(module: nn.Module) -> Iterator[Channels]:
    """The channels inside the blocks of a module."""
    if isinstance(module, ResidualBlock):
        yield _between(module.first, module.first_norm, module.second)
    elif isinstance(module, ResNet34):
        layers: list[Any] = [module.layer1, module.layer2, module.layer3, module.layer4]
        for layer in layers:
            yield from (_between(each.conv1, each.bn1, each.conv2) for each in layer)
    elif isinstance(module, EfficientNetLite):
        stages: list[Any] = list(module.stages)
        for block in (block for stage in stages for block in stage):
            if block.expand is not None:
                # A depthwise convolution makes one channel of each that it reads.
                makers = (block.expand, block.depthwise)
                norms = (block.expand_norm, block.depthwise_norm)
                yield Channels(makers, norms, (Reader(block.project),))


def _between(maker: Any, norm: Any, reader: Any) -> Channels:
    return Channels((maker,), (norm,), (Reader(reader),))


def _of_unet(unet: UNet) -> Iterator[Channels]:
    """All channels but those of the output."""
    encoder, decoder, gates = list(unet.encoder), list(unet.decoder), list(unet.gates)
    blocks: list[Any] = [*encoder, unet.bottleneck, *decoder]
    depth = len(encoder)
    for number, block in enumerate(blocks):
        yield _between(block[0], block[1], block[3])
        if number < depth:  # a skip connection, whose channels come first in the decoder
            level = depth - 1 - number
            readers = [Reader(blocks[number + 1][0]), Reader(blocks[depth + 1 + level][0])]
            readers += [Reader(gates[level].of_skip)] if gates else []
        elif number < 2 * depth:
            readers = [Reader(unet.up[number - depth])]
            readers += [Reader(gates[number - depth].of_gate)] if gates else []
        else:
            readers = [Reader(unet.head)]
        yield Channels((block[3],), (block[4],), tuple(readers))
    for number, up in enumerate(unet.up):
        skip = blocks[depth - 1 - number][3]
        yield Channels((up,), (), (Reader(blocks[depth + 1 + number][0], after=skip),))


@torch.no_grad()
def _prune(group: Channels, share: float) -> bool:
    """Remove a share of the channels of one group; False if rounding leaves all of them."""
    width = group.width
    count = max(MULTIPLE, MULTIPLE * round(width * (1.0 - share) / MULTIPLE))
    if count >= width:
        return False
    kept = _norms_of_filters(group.makers[0]).topk(count).indices.sort().values
    for reader in group.readers:
        _keep_inputs(reader, kept, width)
    for maker in group.makers:
        _keep_outputs(maker, kept)
    for norm in group.norms:
        _keep_norm(norm, kept)
    return True


def _norms_of_filters(layer: Any) -> Tensor:
    """The L1 norm of the filter of each output channel."""
    weight: Tensor = layer.weight.transpose(0, 1) if _is_transposed(layer) else layer.weight
    return weight.abs().sum(dim=(1, 2, 3))


def _keep_outputs(layer: Any, kept: Tensor) -> None:
    if _is_transposed(layer):
        layer.weight = nn.Parameter(layer.weight[:, kept].clone())
    else:
        layer.weight = nn.Parameter(layer.weight[kept].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[kept].clone())
    layer.out_channels = len(kept)
    if layer.groups > 1:  # depthwise
        layer.in_channels = layer.groups = len(kept)


def _keep_inputs(reader: Reader, kept: Tensor, width: int) -> None:
    layer = reader.layer
    first = 0 if reader.after is None else int(reader.after.out_channels)
    all_of_them = torch.arange(layer.in_channels, device=kept.device)
    kept = torch.cat([all_of_them[:first], first + kept, all_of_them[first + width :]])
    if _is_transposed(layer):
        layer.weight = nn.Parameter(layer.weight[kept].clone())
    else:
        layer.weight = nn.Parameter(layer.weight[:, kept].clone())
    layer.in_channels = len(kept)


def _keep_norm(norm: Any, kept: Tensor) -> None:
    norm.weight = nn.Parameter(norm.weight[kept].clone())
    norm.bias = nn.Parameter(norm.bias[kept].clone())
    if isinstance(norm, nn.GroupNorm):
        norm.num_channels, norm.num_groups = len(kept), gcd(GROUPS, len(kept))
        return
    norm.running_mean, norm.running_var = norm.running_mean[kept], norm.running_var[kept]
    norm.num_features = len(kept)


def _is_transposed(layer: nn.Module) -> bool:
    return isinstance(layer, nn.ConvTranspose2d)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
