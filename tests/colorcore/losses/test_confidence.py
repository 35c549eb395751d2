import math

import pytest
import torch

from colorcore.losses.confidence import EDGE, build


def case(confidence, distances, within=10.0):
    """The term for pixels that are so sure and lie so far off."""
    c = torch.tensor(confidence, requires_grad=True)
    ab = torch.tensor(distances)[None, None, None] * torch.tensor([0.6, 0.8]).reshape(1, 2, 1, 1)
    prediction = {"ab": ab, "confidence": c[None, None, None]}
    return build(within=within)(prediction, torch.zeros(1, 3, 1, len(distances))), c


def test_by_hand():
    """Right at a distance of 9.9, wrong at 10.1; a perfect guess costs (almost) nothing."""
    value, _ = case([0.75, 0.75], [9.9, 10.1])
    assert value.item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2, rel=1e-3)
    assert case([1.0, 0.0], [0.0, 50.0])[0].item() == pytest.approx(EDGE, rel=1e-2)


def test_a_wrong_certainty_is_dear_and_its_gradient_finite():
    value, c = case([1.0, 0.0], [50.0, 0.0])
    value.backward()
    assert value.item() == pytest.approx(-math.log(EDGE), rel=1e-3)
    assert c.grad.isfinite().all()
    assert c.grad[0] > 0 > c.grad[1]


def test_the_smallest_loss_is_at_the_share_of_right_pixels():
    distances = [0.0] * 7 + [40.0] * 3
    values = {c: case([c] * 10, distances)[0].item() for c in (0.5, 0.65, 0.7, 0.75, 0.9)}
    assert min(values, key=values.get) == 0.7


def test_within_is_an_option():
    assert case([1.0], [20.0], within=30.0)[0] < 0.01 < case([1.0], [20.0])[0]


def test_colours_are_compared_at_the_confidences_size():
    """Two pixels, off by 14 each, but to opposite sides: their mean is right."""
    ab = torch.tensor([[14.0, -14.0], [0.0, 0.0]])[None, :, None, :]
    prediction = {"ab": ab, "confidence": torch.ones(1, 1, 1, 1)}
    assert build()(prediction, torch.zeros(1, 3, 1, 2)).item() == pytest.approx(EDGE, rel=1e-2)
