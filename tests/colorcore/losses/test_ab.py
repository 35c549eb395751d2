import pytest
import torch

from colorcore.losses import ab_l1
from colorcore.losses.ab import build
from tests.colorcore.losses.conftest import photos


def test_weights_by_hand():
    ab = torch.tensor([12.8, -25.6]).reshape(1, 2, 1, 1)
    value = build(a=2.0, b=0.5)({"ab": ab}, torch.zeros(1, 3, 1, 1))
    assert value.item() == pytest.approx((2.0 * 0.1 + 0.5 * 0.2) / 2)


def test_without_weights_it_is_the_l1():
    lab = photos(2, 5, 3)
    prediction = {"ab": lab[:, 1:].flip(0)}
    torch.testing.assert_close(build()(prediction, lab), ab_l1.build()(prediction, lab))


def test_a_channel_can_be_left_out():
    ab = torch.tensor([12.8, -25.6]).reshape(1, 2, 1, 1)
    value = build(a=0.0, b=1.0)({"ab": ab}, torch.zeros(1, 3, 1, 1))
    assert value.item() == pytest.approx(0.1)
