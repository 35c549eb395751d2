import math

import pytest
import torch

from colorcore.losses.diversity import build


def two_pixels(*spreads: tuple[float, float]) -> torch.Tensor:
    """A photo for each (a, b): its two pixels are that far to both sides of neutral."""
    spread = torch.tensor(spreads)
    return torch.stack([spread, -spread], dim=2)[:, :, None, :]


def photo_of(ab: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full_like(ab[:, :1], 50.0), ab], dim=1)


def test_the_guides_formula_by_hand():
    """Pixels at ±x have an unbiased variance of 2x²; in ab_norm x is 0.1, 0.2, 0.3 and 0."""
    ab = two_pixels((12.8, 25.6), (38.4, 0.0))
    variance = 2 * (0.01 + 0.04 + 0.09 + 0.0) / 4
    value = build()({"ab": ab}, photo_of(10 * ab))
    assert value.item() == pytest.approx(-math.log(variance + 1e-6), rel=1e-6)


def test_it_is_torchs_own_variance_below_the_truths():
    generator = torch.Generator().manual_seed(0)
    ab = torch.randn(3, 2, 4, 5, generator=generator) * 10
    expected = -torch.log(torch.var((ab / 128).flatten(2), dim=2).mean() + 1e-6)
    torch.testing.assert_close(build()({"ab": ab}, photo_of(3 * ab)), expected)


def test_a_flat_answer_costs_most():
    flat = torch.full((1, 2, 4, 4), 20.0)
    value = build()({"ab": flat}, photo_of(torch.randn(1, 2, 4, 4) * 30))
    assert value.item() == pytest.approx(-math.log(1e-6), rel=1e-6)


def test_there_is_nothing_to_gain_beyond_the_photos_variance():
    truth = photo_of(two_pixels((12.8, 12.8)))
    as_varied = build()({"ab": two_pixels((12.8, 12.8))}, truth)
    wild = two_pixels((60.0, 100.0)).requires_grad_()
    value = build()({"ab": wild}, truth)
    value.backward()
    assert value.item() == pytest.approx(as_varied.item())
    assert torch.equal(wild.grad, torch.zeros_like(wild))


def test_descent_on_it_alone_settles_at_the_photos_variance():
    """The guide's formula would run to ±128."""
    generator = torch.Generator().manual_seed(0)
    truth = photo_of(torch.randn(2, 2, 8, 8, generator=generator) * 15)
    ab = (0.1 * torch.randn(2, 2, 8, 8, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([ab], lr=0.5)
    for _ in range(150):
        optimizer.zero_grad()
        build()({"ab": ab}, truth).backward()
        optimizer.step()
    assert ab.var().item() == pytest.approx(15**2, rel=0.15)


def test_limit_moves_the_end():
    truth = photo_of(two_pixels((12.8, 12.8)))
    value = build(limit=4.0)({"ab": two_pixels((100.0, 100.0))}, truth)
    assert value.item() == pytest.approx(-math.log(4 * 0.02 + 1e-6), rel=1e-6)


def test_photos_without_colour_teach_nothing():
    ab = two_pixels((5.0, 5.0)).requires_grad_()
    build()({"ab": ab}, photo_of(torch.zeros(1, 2, 1, 2))).backward()
    assert torch.equal(ab.grad, torch.zeros_like(ab))
