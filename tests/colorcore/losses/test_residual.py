import pytest
import torch
from torch.nn import functional as F

from colorcore.losses.residual import build


def flat(value: float, channels: int, size: int) -> torch.Tensor:
    return torch.full((1, channels, size, size), value)


def test_by_hand():
    """Decoded 20, residual 5: the answer is 25, the truth 30.12. Off by 0.04 in both channels."""
    truth = torch.cat([flat(50.0, 1, 4), flat(30.12, 2, 4)], dim=1)
    value = build()({"ab": flat(25.0, 2, 4), "residual": flat(5.0, 2, 1)}, truth)
    assert value.item() == pytest.approx(0.04, rel=1e-5)


@pytest.mark.parametrize(
    ("confidence", "slope"), [(None, 1.0), (1.0, 1.0), (0.25, 0.25), (0.0, 0.0)]
)
def test_only_the_residual_learns_and_as_far_as_the_bins_are_sure(confidence, slope):
    truth = torch.cat([flat(50.0, 1, 4), flat(30.0, 2, 4)], dim=1)
    prediction = {"ab": flat(25.0, 2, 4), "residual": flat(5.0, 2, 2)}
    if confidence is not None:
        prediction["confidence"] = flat(confidence, 1, 2)
    for value in prediction.values():
        value.requires_grad_()
    build()(prediction, truth).backward()
    expected = -slope / 128 / 8
    torch.testing.assert_close(prediction["residual"].grad, flat(expected, 2, 2))
    assert prediction["ab"].grad is None
    assert confidence is None or prediction["confidence"].grad is None


def test_descent_finds_what_the_bins_leave():
    """A model that decodes to 20 everywhere; the truth has 14, 20, 23 and 30 in its quarters."""
    left = torch.tensor([[-6.0, 0.0], [3.0, 10.0]]).expand(1, 2, 2, 2)
    ab_true = F.interpolate(20.0 + left, scale_factor=4)
    truth = torch.cat([torch.full((1, 1, 8, 8), 50.0), ab_true], dim=1)
    step = torch.zeros(1, 2, 2, 2, requires_grad=True)
    optimizer = torch.optim.Adam([step], lr=0.2)
    for _ in range(120):
        optimizer.zero_grad()
        ab = F.interpolate(20.0 + step, scale_factor=4)
        build()({"ab": ab, "residual": step}, truth).backward()
        optimizer.step()
    torch.testing.assert_close(step.detach(), left, atol=0.5, rtol=0)
