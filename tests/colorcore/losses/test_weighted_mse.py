import pytest
import torch
from torch.nn import functional as F

from colorcore.losses.weighted_mse import build


def pixels(*ab: tuple[float, float]) -> torch.Tensor:
    """One photo, a pixel for each (a, b): (1, 2, 1, N)."""
    return torch.tensor(ab).T[None, :, None, :]


def lab(*ab: tuple[float, float]) -> torch.Tensor:
    return torch.cat([torch.full((1, 1, 1, len(ab)), 50.0), pixels(*ab)], dim=1)


@pytest.mark.parametrize(
    ("true", "weight"),
    [((0, 0), 0.5), ((0, 10), 0.75), ((-20, 0), 1.0), ((24, 32), 1.5), ((0, -100), 1.5)],
)
def test_the_weight_rises_with_the_true_chroma(true: tuple[float, float], weight: float):
    """Off by 12.8 in a: an error of 0.1² in one of two channels."""
    predicted = (true[0] + 12.8, true[1])
    value = build()({"ab": pixels(predicted)}, lab(true))
    assert value.item() == pytest.approx(weight * 0.01 / 2, rel=1e-5)


def test_the_mean_is_over_pixels_and_not_over_weights():
    true = [(0.0, 0.0), (60.0, 80.0)]
    predicted = [(12.8, 0.0), (60.0, 80.0 + 25.6)]
    value = build()({"ab": pixels(*predicted)}, lab(*true))
    assert value.item() == pytest.approx((0.5 * 0.01 + 1.5 * 0.04) / 4, rel=1e-5)


def test_halves_of_a_batch_average_to_the_batch():
    generator = torch.Generator().manual_seed(0)
    ab, truth = (torch.randn(4, n, 5, 5, generator=generator) * 40 for n in (2, 3))
    term = build()
    halves = [term({"ab": ab[i : i + 2]}, truth[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(sum(halves) / 2, term({"ab": ab}, truth))


def test_equal_weights_are_plain_mse():
    generator = torch.Generator().manual_seed(0)
    ab, truth = (torch.randn(2, n, 5, 5, generator=generator) * 40 for n in (2, 3))
    value = build(grey=1.0, saturated=1.0)({"ab": ab}, truth)
    torch.testing.assert_close(value, F.mse_loss(ab / 128, truth[:, 1:] / 128))


def test_the_gradient_at_a_neutral_truth_is_finite():
    ab = torch.full((1, 2, 2, 2), 3.0, requires_grad=True)
    build()({"ab": ab}, torch.zeros(1, 3, 2, 2)).backward()
    assert ab.grad is not None
    assert ab.grad.isfinite().all()


@pytest.mark.parametrize("options", [{"grey": -1.0}, {"saturated": -0.1}, {"chroma_full": 0.0}])
def test_an_option_out_of_range_is_refused(options: dict[str, float]):
    with pytest.raises(ValueError, match="chroma_full > 0"):
        build(**options)
