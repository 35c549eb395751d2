import pytest
import torch

from colorcore.losses.ab_huber import build


def test_both_parts_by_hand():
    """Off by 6.4 (0.05, below β = 0.1) in a and by 38.4 (0.3, above) in b."""
    ab = torch.tensor([6.4, 38.4]).reshape(1, 2, 1, 1)
    value = build()({"ab": ab}, torch.zeros(1, 3, 1, 1))
    assert value.item() == pytest.approx((0.05**2 / 0.2 + (0.3 - 0.05)) / 2)


def test_the_guides_beta_is_12_8_ab_units():
    """There the slope reaches 1 (per ab_norm unit, over two channels)."""
    for error, slope in ((6.4, 0.5), (12.8, 1.0), (100.0, 1.0)):
        ab = torch.tensor([error, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
        build()({"ab": ab}, torch.zeros(1, 3, 1, 1)).backward()
        assert ab.grad[0, 0].item() == pytest.approx(slope / 2 / 128)


def test_beta_is_an_option():
    ab = torch.tensor([12.8, 12.8]).reshape(1, 2, 1, 1)
    value = build(beta=0.2)({"ab": ab}, torch.zeros(1, 3, 1, 1))
    assert value.item() == pytest.approx(0.01 / 0.4)
