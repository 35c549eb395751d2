import pytest
import torch
from skimage.color import rgb2lab

from colorcore.losses.luminance import build
from tests.colorcore.losses.conftest import photos


def test_white_and_black_by_hand():
    """White is L 100, black 0: off by 60 and 40 units from L 40."""
    rgb = torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2)
    lab = torch.tensor([40.0, 0.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 1, 2)
    value = build()({"ab": torch.zeros(1, 2, 1, 2), "rgb": rgb}, lab)
    assert value.item() == pytest.approx((0.6 + 0.4) / 2, abs=1e-4)


def test_against_scikit_image():
    lab, rgb = photos(1, 6, 6, dtype=torch.float64), torch.rand(1, 3, 6, 6).double()
    value = build()({"ab": lab[:, 1:], "rgb": rgb}, lab)
    L = rgb2lab(rgb[0].permute(1, 2, 0).numpy())[..., 0]
    assert value.item() == pytest.approx(abs(L - lab[0, 0].numpy()).mean() / 100, abs=1e-5)
