import pytest
import torch

from colorcore.losses.adversarial import build, discriminator_loss, generator_loss

LAB = torch.zeros(1, 3, 1, 1)


def scales(*values: list[float]) -> list[torch.Tensor]:
    """Logits of one photo: a scale for each list."""
    return [torch.tensor(v).reshape(1, 1, 1, -1) for v in values]


def test_the_generators_side_by_hand():
    """Scales of different sizes count the same."""
    fake = scales([1.0, 3.0, -1.0, 1.0], [-0.5])
    prediction = {"fake_logits": fake}
    assert build()(prediction, LAB).item() == pytest.approx((-1.0 + 0.5) / 2)
    expected = 0.5 * ((0 + 4 + 4 + 0) / 4 + 2.25) / 2
    assert build(kind="least_squares")(prediction, LAB).item() == pytest.approx(expected)


def test_the_discriminators_side_by_hand():
    real, fake = scales([2.0, 0.0], [0.5]), scales([-3.0, 0.5], [-0.25])
    hinge = ((0 + 1) / 2 + (0 + 1.5) / 2 + 0.5 + 0.75) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(hinge)
    squares = 0.5 * ((1 + 1) / 2 + (9 + 0.25) / 2 + 0.25 + 0.0625) / 2
    assert discriminator_loss(real, fake, "least_squares").item() == pytest.approx(squares)


@pytest.mark.parametrize("kind", ["hinge", "least_squares"])
def test_the_two_sides_pull_apart(kind):
    fake = torch.zeros(1, 1, 2, 2, requires_grad=True)
    real = torch.zeros(1, 1, 2, 2, requires_grad=True)
    generator_loss([fake], kind).backward()
    assert (fake.grad < 0).all()
    fake.grad = None
    discriminator_loss([real - 0.5], [fake + 0.5], kind).backward()
    assert (fake.grad > 0).all()
    assert (real.grad < 0).all()


def test_a_sure_discriminator_learns_nothing_more_from_hinge():
    real = torch.full((1, 1, 2, 2), 1.5, requires_grad=True)
    discriminator_loss([real], [-real.detach()]).backward()
    assert torch.equal(real.grad, torch.zeros_like(real))


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="at least one scale, got none"):
        build()({"fake_logits": []}, LAB)
    with pytest.raises(ValueError, match="as many real as fake scales, got 2 and 1"):
        discriminator_loss(scales([1.0], [1.0]), scales([1.0]))
    with pytest.raises(ValueError, match="'hinge' or 'least_squares', got 'log'"):
        discriminator_loss(scales([1.0]), scales([1.0]), "log")
