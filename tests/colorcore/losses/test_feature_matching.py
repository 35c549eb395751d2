import pytest
import torch

from colorcore.losses.feature_matching import build

LAB = torch.zeros(1, 3, 1, 1)


def features(*scales: tuple[float, ...]) -> list[list[torch.Tensor]]:
    """For each scale its layers: one number fills a layer, the i-th of i + 1 pixels a side."""
    return [
        [torch.full((1, 4, i + 1, i + 1), value) for i, value in enumerate(scale)]
        for scale in scales
    ]


def test_by_hand():
    """Sum over layers of mean differences, whatever a layer's size; mean over scales."""
    real, fake = features((1.0, 2.0), (0.0, 0.0)), features((1.5, -1.0), (0.25, 0.0))
    value = build()({"real_features": real, "fake_features": fake}, LAB)
    assert value.item() == pytest.approx(((0.5 + 3.0) + 0.25) / 2)


def test_real_features_are_what_is_aimed_at():
    real, fake = features((1.0,)), features((3.0,))
    real[0][0].requires_grad_()
    fake[0][0].requires_grad_()
    build()({"real_features": real, "fake_features": fake}, LAB).backward()
    assert real[0][0].grad is None
    assert (fake[0][0].grad > 0).all()


@pytest.mark.parametrize(
    ("real", "fake"),
    [
        (features((1.0,)), features((1.0,), (1.0,))),
        (features((1.0, 1.0)), features((1.0,))),
        ([[torch.zeros(1, 4, 2, 2)]], [[torch.zeros(1, 4, 1, 1)]]),
        ([], []),
        ([[]], [[]]),
    ],
)
def test_features_that_do_not_match_are_refused(real, fake):
    with pytest.raises(ValueError, match="same scales, layers and shapes"):
        build()({"real_features": real, "fake_features": fake}, LAB)
