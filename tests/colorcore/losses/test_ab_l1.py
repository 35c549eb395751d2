import pytest
import torch

from colorcore.losses.ab_l1 import build


def test_it_is_the_mean_over_pixels_and_channels():
    ab = torch.tensor([[[[10.0, 0.0]], [[0.0, -6.0]]]])
    truth = torch.tensor([[[[50.0, 90.0]], [[14.0, 0.0]], [[0.0, 6.0]]]])
    assert build()({"ab": ab}, truth).item() == pytest.approx((4 + 0 + 0 + 12) / 4 / 128)


def test_lightness_does_not_matter():
    ab, truth = torch.zeros(1, 2, 2, 2), torch.ones(1, 3, 2, 2)
    brighter = truth.clone()
    brighter[:, 0] = 90
    assert torch.equal(build()({"ab": ab}, truth), build()({"ab": ab}, brighter))
