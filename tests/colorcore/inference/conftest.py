"""The palette of the made-up photos."""

import pytest
import torch

from colorcore.color.fit_palette import fit_palette
from colorcore.color.palette import Palette
from tests.colorcore.inference.made_up import stored_photos


@pytest.fixture(scope="module")
def palette() -> Palette:
    ab = stored_photos()[:, 1:].transpose(0, 1).reshape(2, -1).long()
    histogram = torch.bincount(ab[0] * 256 + ab[1], minlength=65_536).reshape(256, 256).numpy()
    return fit_palette(histogram, bins=6)
