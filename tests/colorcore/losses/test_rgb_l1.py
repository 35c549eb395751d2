import pytest
import torch
from skimage.color import lab2rgb

from colorcore.losses.rgb_l1 import build
from tests.colorcore.losses.conftest import photos


def test_an_rgb_head_by_hand():
    """White, black and grey against black: 1, 0 and 0.5 in each channel."""
    rgb = torch.tensor([1.0, 0.0, 0.5]).expand(1, 3, 1, 3)
    value = build()({"ab": torch.zeros(1, 2, 1, 3), "rgb": rgb}, torch.zeros(1, 3, 1, 3))
    assert value.item() == pytest.approx(0.5, abs=1e-6)


def test_ab_is_seen_with_the_true_lightness_as_scikit_image_shows_it():
    lab = photos(2, 6, 6, dtype=torch.float64)
    ab = lab[:, 1:] * 1.5
    value = build()({"ab": ab}, lab)

    def shown(batch):
        return lab2rgb(batch.permute(0, 2, 3, 1).numpy())

    expected = abs(shown(torch.cat([lab[:, :1], ab], dim=1)) - shown(lab)).mean()
    assert value.item() == pytest.approx(expected, abs=1e-5)
