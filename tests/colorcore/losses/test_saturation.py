import pytest
import torch

from colorcore.losses.saturation import build


def one(a: float, b: float) -> torch.Tensor:
    return torch.tensor([a, b]).reshape(1, 2, 1, 1)


def truth(a: float, b: float) -> torch.Tensor:
    return torch.tensor([50.0, a, b]).reshape(1, 3, 1, 1)


def test_chroma_by_hand():
    """√(a² + b² + 1): √8 and √3 of ab are chroma 3 and 2 as rounded here."""
    value = build()({"ab": one(2.0, 2.0)}, truth(3**0.5, 0.0))
    assert value.item() == pytest.approx(((3.0 - 2.0) / 128) ** 2, rel=1e-4)


def test_far_from_grey_it_is_the_mse_of_chroma():
    value = build()({"ab": one(30.0, 40.0)}, truth(0.0, -90.0))
    assert value.item() == pytest.approx((40 / 128) ** 2, rel=1e-3)


def test_the_hue_does_not_matter():
    assert build()({"ab": one(30.0, 40.0)}, truth(-40.0, 30.0)) == 0


def test_a_pale_colour_is_pushed_away_from_grey_and_grey_itself_stays():
    pale, grey = one(0.5, 0.0).requires_grad_(), one(0.0, 0.0).requires_grad_()
    for ab in (pale, grey):
        build()({"ab": ab}, truth(60.0, 0.0)).backward()
    assert pale.grad[0, 0] < 0
    assert torch.equal(grey.grad, torch.zeros(1, 2, 1, 1))
