"""The Inception-v3 of the FID papers, up to its 2048 pooled features.

Szegedy et al. 2016 ("Rethinking the Inception architecture for computer vision"), with the weights
that Heusel et al. 2017 chose for FID: TensorFlow's of 5 December 2015, which pytorch-fid converted
(``pt_inception-2015-12-05-6726825d.pth``). It differs from torchvision's network in its pooling:
average pools leave padding out of their means, and the last block has a maximum where the paper
has a mean. Names are those of that file, which torchvision, pytorch-fid and torch-fidelity share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from colorcore.blocks.weight_files import load_weights, read_weights

if TYPE_CHECKING:
    from torch import Tensor

FEATURES = 2048
SIDE = 299
"""Pixels per side to which photos are resized."""
FILE = "pt_inception-2015-12-05-6726825d.pth"
"""pytorch-fid's name of the file; its SHA-256 begins with the digits before the suffix."""
_BN_EPSILON = 1e-3
_POOLED = "branch_pool"


class _Step(NamedTuple):
    """A convolution, batch norm and ReLU; ``padding`` keeps the size unless ``stride`` is 2."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


_Branch: TypeAlias = Sequence[_Step | tuple[_Step, _Step]]
"""Steps one after the other; a pair forks, and its two results are joined."""


class _Conv(nn.Module):
    def __init__(
        self,
        before: int,
        width: int,
        kernel: tuple[int, int],
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=_BN_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Branches side by side, and one that pools, whose channels are joined in this order.

    Args:
        before: channels of the input.
        branches: of convolutions.
        pool: how the last branch pools 3 x 3 pixels: their mean or maximum, with a convolution
            after it, or their maximum at stride 2, without one.
        width: channels of the convolution after the pool.
    """

    def __init__(
        self,
        before: int,
        branches: Sequence[_Branch],
        pool: Literal["mean", "max", "stride"],
        width: int = 0,
    ) -> None:
        super().__init__()
        self._branches, self._pool = branches, pool
        self.channels = before if pool == "stride" else width
        for branch in branches:
            channels = before
            for step in branch:
                forks = [step] if isinstance(step, _Step) else step
                for name, wide, kernel, stride in forks:
                    high, across = kernel
                    padding = (high // 2, across // 2) if stride == 1 else (0, 0)
                    self.add_module(name, _Conv(channels, wide, kernel, stride, padding))
                channels = sum(each.width for each in forks)
            self.channels += channels
        if pool != "stride":
            self.add_module(_POOLED, _Conv(before, width, (1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        answers = []
        for branch in self._branches:
            y = x
            for step in branch:
                forks = [step] if isinstance(step, _Step) else step
                y = torch.cat([self.get_submodule(each.name)(y) for each in forks], dim=1)
            answers.append(y)
        if self._pool == "stride":
            return torch.cat([*answers, F.max_pool2d(x, 3, stride=2)], dim=1)
        pooled = (
            F.max_pool2d(x, 3, stride=1, padding=1)
            if self._pool == "max"
            else F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        )
        return torch.cat([*answers, self.get_submodule(_POOLED)(pooled)], dim=1)


_1x7, _7x1, _1x3, _3x1, _3x3, _5x5 = (1, 7), (7, 1), (1, 3), (3, 1), (3, 3), (5, 5)


def _a(before: int, pooled: int) -> _Block:
    return _Block(
        before,
        [
            [_Step("branch1x1", 64)],
            [_Step("branch5x5_1", 48), _Step("branch5x5_2", 64, _5x5)],
            [
                _Step("branch3x3dbl_1", 64),
                _Step("branch3x3dbl_2", 96, _3x3),
                _Step("branch3x3dbl_3", 96, _3x3),
            ],
        ],
        "mean",
        pooled,
    )


def _b(before: int) -> _Block:
    return _Block(
        before,
        [
            [_Step("branch3x3", 384, _3x3, 2)],
            [
                _Step("branch3x3dbl_1", 64),
                _Step("branch3x3dbl_2", 96, _3x3),
                _Step("branch3x3dbl_3", 96, _3x3, 2),
            ],
        ],
        "stride",
    )


def _c(before: int, narrow: int) -> _Block:
    return _Block(
        before,
        [
            [_Step("branch1x1", 192)],
            [
                _Step("branch7x7_1", narrow),
                _Step("branch7x7_2", narrow, _1x7),
                _Step("branch7x7_3", 192, _7x1),
            ],
            [
                _Step("branch7x7dbl_1", narrow),
                _Step("branch7x7dbl_2", narrow, _7x1),
                _Step("branch7x7dbl_3", narrow, _1x7),
                _Step("branch7x7dbl_4", narrow, _7x1),
                _Step("branch7x7dbl_5", 192, _1x7),
            ],
        ],
        "mean",
        192,
    )


def _d(before: int) -> _Block:
    return _Block(
        before,
        [
            [_Step("branch3x3_1", 192), _Step("branch3x3_2", 320, _3x3, 2)],
            [
                _Step("branch7x7x3_1", 192),
                _Step("branch7x7x3_2", 192, _1x7),
                _Step("branch7x7x3_3", 192, _7x1),
                _Step("branch7x7x3_4", 192, _3x3, 2),
            ],
        ],
        "stride",
    )


def _e(before: int, pool: Literal["mean", "max"]) -> _Block:
    return _Block(
        before,
        [
            [_Step("branch1x1", 320)],
            [
                _Step("branch3x3_1", 384),
                (_Step("branch3x3_2a", 384, _1x3), _Step("branch3x3_2b", 384, _3x1)),
            ],
            [
                _Step("branch3x3dbl_1", 448),
                _Step("branch3x3dbl_2", 384, _3x3),
                (_Step("branch3x3dbl_3a", 384, _1x3), _Step("branch3x3dbl_3b", 384, _3x1)),
            ],
        ],
        pool,
        192,
    )


class FidInception(nn.Module):
    """Pooled features of photos; it never learns."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, _3x3, 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, _3x3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, _3x3, 1, (1, 1))
        self.Conv2d_3b_1x1 = _Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Conv(80, 192, _3x3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c = _c(768, 128), _c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _c(768, 160), _c(768, 192)
        self.Mixed_7a = _d(768)
        self.Mixed_7b, self.Mixed_7c = _e(1280, "mean"), _e(2048, "max")
        self.requires_grad_(False)
        self.eval()

    def forward(self, rgb: Tensor) -> Tensor:
        """Features (B, 2048) of rgb (B, 3, H, W) sRGB in 0..1, any size: resized to 299 x 299.

        Resizing is bilinear and without antialiasing, and pixels are scaled to -1..1, both as in
        pytorch-fid.
        """
        x = F.interpolate(rgb, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        x = (2.0 * x - 1.0).contiguous(memory_format=torch.channels_last)
        for name, block in self.named_children():
            x = block(x)
            if name in {"Conv2d_2b_3x3", "Conv2d_4a_3x3"}:
                x = F.max_pool2d(x, 3, stride=2)
        return x.mean(dim=(2, 3))


def load_fid_inception(path: Path) -> FidInception:
    """The network with the weights of a file, on the CPU.

    Raises:
        WeightsError: the file is missing, or belongs to another network.
    """
    state = read_weights(path, f"FID's weights of Inception-v3 ({FILE})")
    network = FidInception()
    # Counts of batches steer nothing here, and some conversions lack them.
    counts = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}
    state |= {name: torch.zeros((), dtype=torch.long) for name in counts}
    load_weights(network, state, path, f"FID's Inception-v3 ({FILE})")
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
