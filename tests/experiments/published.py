"""What other programs say of LPIPS and FID: the values in tests/colorcore/comparison.

    pip download --no-deps lpips torch-fidelity pytorch-fid -d FOLDER, and unzip the wheels there
    python -m tests.experiments.published --packages FOLDER

The networks have weights that are made up, so nothing else is needed. lpips 0.1.4 and pytorch-fid
0.3.0 import torchvision for the layers of AlexNet and VGG16 alone, which are written out here; the
Inception-v3 is torch-fidelity's (0.4.0), resized and scaled as pytorch-fid does.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import types
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.colorcore.comparison.made_up import pictures, weights

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Channels of the convolutions; 0 is a pool."""


def main() -> None:
    """Print the values."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--packages", type=Path, required=True)
    sys.path.insert(0, str(parser.parse_args().packages))
    _pretend_torchvision()
    for net in ("alex", "vgg"):
        print(f"lpips {net}:", _lpips(net))
    features = _features(pictures(2, 256, 0))
    print("features:", [round(float(x), 5) for x in features[0, ::256]])
    print("means:", [round(float(x), 5) for x in features.mean(1)])
    print("distances:", [round(x, 6) for x in _distances()])


def _pretend_torchvision() -> None:
    def alexnet(**_: Any) -> Any:
        layers = [
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        ]  # fmt: skip
        return _made_up(layers)

    def vgg16(**_: Any) -> Any:
        layers: list[nn.Module] = []
        before = 3
        for channels in VGG16:
            if channels:
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
                before = channels
            else:
                layers.append(nn.MaxPool2d(2, 2))
        return _made_up(layers)

    for name in ("", ".models", ".models.inception", ".datasets", ".transforms",
                 ".transforms.functional"):  # fmt: skip
        sys.modules[f"torchvision{name}"] = made = _Pretended(f"torchvision{name}")
        if name:
            outer, _, own = made.__name__.rpartition(".")
            setattr(sys.modules[outer], own, made)
    models: Any = sys.modules["torchvision.models"]
    models.alexnet, models.vgg16 = alexnet, vgg16


class _Pretended(types.ModuleType):
    """A module in which every name is a class that nobody makes anything of."""

    __path__: ClassVar[list[str]] = []  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return nn.Module


def _made_up(layers: list[nn.Module]) -> Any:
    features = nn.Sequential(*layers)
    names = {f"features.{name}": tuple(x.shape) for name, x in features.state_dict().items()}
    state = weights(names)
    features.load_state_dict({name.removeprefix("features."): x for name, x in state.items()})
    return types.SimpleNamespace(features=features)


def _lpips(net: str) -> list[float]:
    network = importlib.import_module("lpips").LPIPS(net=net, pretrained=False, verbose=False)
    state = network.state_dict()
    # It has each layer twice: as lin0 and so on, as in its files, and in a list.
    linear = {name: tuple(x.shape) for name, x in state.items() if re.match(r"lin\d", name)}
    network.load_state_dict(weights(linear), strict=False)
    with torch.no_grad():
        found = network(pictures(2, 256, 0), pictures(2, 256, 1), normalize=True)
    return [round(float(x), 6) for x in found.reshape(-1)]


def _features(rgb: torch.Tensor) -> torch.Tensor:
    module: Any = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")

    def resized(x: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
        small = F.interpolate(x / 255, size, mode="bilinear", align_corners=align_corners)
        return (2 * small - 1) * 128 + 128

    module.interpolate_bilinear_2d_like_tensorflow1x = resized
    plain = module.load_state_dict_from_url
    module.load_state_dict_from_url = lambda *_, **__: {}
    with patch.object(nn.Module, "load_state_dict"):
        network = module.FeatureExtractorInceptionV3("made up", ["2048"])
    module.load_state_dict_from_url = plain
    shapes = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    network.load_state_dict(weights(shapes))
    with torch.no_grad():
        (found,) = network((rgb * 255).round().to(torch.uint8))
    return found


def _distances() -> list[float]:
    """Of Gaussians with random covariances, by pytorch-fid's own function."""
    module: Any = importlib.import_module("pytorch_fid.fid_score")
    rng = np.random.default_rng(0)
    found = []
    for width in (3, 20, 100):
        one, other = (rng.normal(size=(300, width)) @ rng.normal(size=(width, width)) for _ in "12")
        found.append(
            float(
                module.calculate_frechet_distance(
                    one.mean(0), np.cov(one, rowvar=False), other.mean(0) + 1,
                    np.cov(other, rowvar=False),
                )
            )
        )  # fmt: skip
    return found


if __name__ == "__main__":
    main()
