"""Predictions with everything that terms may ask for, and pretrained weights that are made up."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from colorcore.color.palette import Palette, bin_weights
from colorcore.losses.extractors import Extractor

BINS = 6
CENTROIDS = [(0, 0), (40, 20), (-30, 30), (10, -50), (60, 50), (-60, 20)]
PRIORS = [0.5, 0.2, 0.1, 0.1, 0.06, 0.04]


def make_palette() -> Palette:
    return Palette(
        np.array(CENTROIDS, np.float32),
        np.array(PRIORS, np.float32),
        bin_weights(np.array(PRIORS)).astype(np.float32),
    )


@pytest.fixture(scope="session")
def palette() -> Palette:
    """Six bins, the first of them grey and half of all pixels."""
    return make_palette()


def photos(batch: int, height: int, width: int, *, seed: int = 0, dtype=torch.float32):
    """True lab (B, 3, H, W) of random colours that sRGB has."""
    from colorcore.color.lab import rgb_to_lab

    generator = torch.Generator().manual_seed(seed)
    return rgb_to_lab(torch.rand(batch, 3, height, width, generator=generator).to(dtype))


def answer(ab: torch.Tensor, *, shrink: int = 4, seed: int = 1) -> dict:
    """A prediction with these ab and every other key, random; its leaves want gradients."""
    from colorcore.color.lab import lab_to_rgb

    batch, _, height, width = ab.shape
    small = (-(-height // shrink), -(-width // shrink))
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(ab.dtype)

    L = random(batch, 1, height, width).sigmoid() * 100

    def features() -> list[list[torch.Tensor]]:
        return [[random(batch, 4, 3, 3), random(batch, 8, 2, 2)] for _ in range(3)]

    made = {
        "ab": ab.clone(),
        "rgb": lab_to_rgb(torch.cat([L, ab], dim=1)),
        "logits": random(batch, BINS, *small),
        "residual": random(batch, 2, *small) * 5,
        "confidence": random(batch, 1, *small).sigmoid(),
        "histograms": F.softmax(random(batch, 2, 64), dim=2),
        "fake_logits": [random(batch, 1, 3, 3), random(batch, 1, 2, 2), random(batch, 1, 1, 1)],
        "fake_features": features(),
        "real_features": features(),
    }
    for leaf in leaves(made).values():
        leaf.requires_grad_()
    return made


def leaves(prediction: dict) -> dict[str, torch.Tensor]:
    """All tensors of a prediction by a name; those of real features are no answer."""
    found = {}

    def visit(name: str, value) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        else:
            for number, part in enumerate(value):
                visit(f"{name}.{number}", part)

    for key, value in prediction.items():
        if key != "real_features":
            visit(key, value)
    return found


def made_up_weights(net: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights by torchvision's names, of the scale that keeps features alive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in Extractor(net).state_dict().items():
        noise = torch.empty_like(value).normal_(generator=generator)
        spread = (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.01
        state[name] = noise * spread
    return state


@pytest.fixture(scope="session")
def alex(tmp_path_factory) -> str:
    """A file of weights for AlexNet, with a classifier that nobody needs."""
    path = tmp_path_factory.mktemp("weights") / "alex.pth"
    torch.save({**made_up_weights("alex"), "classifier.1.weight": torch.zeros(3, 3)}, path)
    return str(path)
