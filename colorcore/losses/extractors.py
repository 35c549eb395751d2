"""The convolutions of VGG16 and AlexNet, for perceptual losses, with torchvision's names.

Simonyan and Zisserman 2015 ("Very deep convolutional networks"), table 1, D; Krizhevsky 2014
("One weird trick"), the one-column AlexNet. They are written out here because
torchvision would pull in another torch. Weights trained on ImageNet come from a file or from
torchvision's own address.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from colorcore.blocks.features import enlarged
from colorcore.blocks.weight_files import WeightsError, load_weights, read_weights
from colorcore.losses.term import LossError

if TYPE_CHECKING:
    from torch import Tensor

ADDRESS = "https://download.pytorch.org/models/"
"""Base URL of torchvision's weights."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation, like the mean of sRGB in 0..1 over ImageNet: inputs of both networks."""
_TIMEOUT = 30.0
"""Seconds without an answer after which a download fails."""
_CHUNK = 1 << 20


class _Conv(NamedTuple):
    """A convolution and its ReLU; ``place`` is its index in torchvision's ``features``."""

    place: int
    channels: int
    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class _Pool(NamedTuple):
    """Max pooling with stride 2."""

    kernel: int


@dataclass(frozen=True)
class _Plan:
    """A network: its layers, where features are taken, and the file of its weights.

    layers    in order
    taken     indices of the convolutions whose ReLU is a feature
    smallest  side in pixels of the smallest input whose features all have a pixel
    file      torchvision's name, which contains the first 8 hex digits of the SHA-256
    megabytes size of that file
    """

    layers: tuple[_Conv | _Pool, ...]
    taken: frozenset[int]
    smallest: int
    file: str
    megabytes: int

    @property
    def prefix(self) -> str:
        """The first hex digits of the file's SHA-256."""
        return self.file.removesuffix(".pth").rpartition("-")[2]


def _vgg16_layers() -> tuple[_Conv | _Pool, ...]:
    layers: list[_Conv | _Pool] = []
    index, before = 0, 3
    for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        if layers:
            layers.append(_Pool(2))
            index += 1
        for _ in range(count):
            layers.append(_Conv(index, before, width))
            index, before = index + 2, width
    return tuple(layers)


NETWORKS: dict[str, _Plan] = {
    # Features: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3, as in Zhang et al. 2018, section 3.
    "vgg16": _Plan(
        layers=_vgg16_layers(),
        taken=frozenset({2, 7, 14, 21, 28}),
        smallest=16,
        file="vgg16-397923af.pth",
        megabytes=528,
    ),
    # Features: the ReLUs of all five convolutions, as in the same paper.
    "alex": _Plan(
        layers=(
            _Conv(0, 3, 64, kernel=11, stride=4, padding=2),
            _Pool(3),
            _Conv(3, 64, 192, kernel=5, padding=2),
            _Pool(3),
            _Conv(6, 192, 384),
            _Conv(8, 384, 256),
            _Conv(10, 256, 256),
        ),
        taken=frozenset({0, 3, 6, 8, 10}),
        smallest=31,
        file="alexnet-owt-7be5be79.pth",
        megabytes=233,
    ),
}


class Extractor(nn.Module):
    """A frozen network, up to its last feature: features of a picture from fine to coarse.

    Args:
        net: name in :data:`NETWORKS`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: str) -> None:
        super().__init__()
        self._plan = NETWORKS[net]
        self.features = nn.ModuleDict(
            {
                str(layer.place): nn.Conv2d(
                    layer.channels, layer.width, layer.kernel, layer.stride, layer.padding
                )
                for layer in self._plan.layers
                if isinstance(layer, _Conv)
            }
        )
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, rgb: Tensor) -> list[Tensor]:
        """Five maps of features, (B, C_i, h_i, w_i), of rgb (B, 3, H, W) sRGB in 0..1, any size.

        A side too short for the network is upsampled to its minimum (bilinear).
        """
        x = enlarged((rgb - self.mean) / self.std, self._plan.smallest)
        x = x.contiguous(memory_format=torch.channels_last)
        taken = []
        for layer in self._plan.layers:
            if isinstance(layer, _Pool):
                x = F.max_pool2d(x, layer.kernel, stride=2)
                continue
            x = F.relu(self.features[str(layer.place)](x))
            if layer.place in self._plan.taken:
                taken.append(x)
        return taken


def load_extractor(net: str, weights: str = "") -> Extractor:
    """A network with its pretrained weights, on the CPU and channels last.

    Args:
        net: name in :data:`NETWORKS`.
        weights: path of a .pth or .safetensors file with torchvision's names; "" takes
            torchvision's own file, see :func:`official_weights`. Tensors that the network does
            not need, such as the classifier, are ignored.

    Raises:
        LossError: the weights are missing, or belong to another network.
    """
    extractor = Extractor(net)
    path = Path(weights).expanduser() if weights else official_weights(net)
    try:
        state = read_weights(path, f"torchvision's weights of {net}")
        load_weights(extractor, state, path, f"torchvision's {net}")
    except WeightsError as error:
        raise LossError(str(error)) from error
    return extractor.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def official_weights(net: str) -> Path:
    """The path of torchvision's file in torch's cache folder, downloaded if it is missing.

    The folder is ``checkpoints`` in ``torch.hub.get_dir()``, which torchvision uses too. The
    file's SHA-256 must begin with the digits in its name.

    Raises:
        LossError: it could not be downloaded, or is another file; the message has a remedy.
    """
    plan = NETWORKS[net]
    path = Path(torch.hub.get_dir()) / "checkpoints" / plan.file
    advice = (
        f"download {ADDRESS}{plan.file} there, name a file with loss_options.perceptual.weights, "
        "or set loss_options.perceptual.net=lite0, which needs no download"
    )
    if path.exists():
        digest = _sha256(path)
        if not digest.startswith(plan.prefix):
            raise LossError(
                f"{path} is damaged: expected a SHA-256 that begins with {plan.prefix}, "
                f"found {digest[:8]}; delete it, or {advice}"
            )
        return path
    logging.getLogger(__name__).warning(
        "downloading %s%s (%d MB) to %s", ADDRESS, plan.file, plan.megabytes, path
    )
    try:
        fetch(ADDRESS + plan.file, path, plan.prefix)
    except (OSError, ValueError) as error:
        raise LossError(
            f"the pretrained weights of {net} are not at {path} and their download failed "
            f"({error}); {advice}"
        ) from error
    return path


def fetch(address: str, path: Path, prefix: str) -> None:
    """Download a file; it gets its name only when it is complete and verified.

    Args:
        address: https.
        path: of the file; its folder is created.
        prefix: first hex digits of its SHA-256.

    Raises:
        OSError: it could not be read or written.
        ValueError: its SHA-256 is another one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as part:
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer:  # noqa: S310
                while chunk := answer.read(_CHUNK):
                    digest.update(chunk)
                    part.write(chunk)
            part.close()
            if not digest.hexdigest().startswith(prefix):
                raise ValueError(
                    f"expected a SHA-256 that begins with {prefix}, got {digest.hexdigest()[:8]}"
                )
            Path(part.name).replace(path)
        finally:
            Path(part.name).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
