"""The discriminator's side: who gets a gradient of what, and when it is listened to."""

import pytest
import torch

from colorcore.losses.adversarial import generator_loss
from colorcore.recipes.recipe import DiscriminatorPart
from colorcore.training.adversary import Adversary, influence

CPU = torch.device("cpu")


@pytest.fixture
def adversary() -> Adversary:
    torch.manual_seed(0)
    return Adversary(DiscriminatorPart(channels=4, scales=2), "hinge", 32, CPU)


def photos(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, 3, 32, 32, generator=generator) * 100


def test_a_judge_learns_and_the_answer_does_not(adversary: Adversary):
    ab = photos(1)[:, 1:].requires_grad_()
    adversary.loss({"ab": ab}, photos(0)).backward()
    assert ab.grad is None
    assert all(p.grad is not None and p.grad.any() for p in adversary.model.parameters())


def test_an_answer_learns_and_the_judge_stands_still(adversary: Adversary):
    adversary.loss({"ab": photos(1)[:, 1:]}, photos(0))
    before = {name: value.clone() for name, value in adversary.model.state_dict().items()}
    prediction = {"ab": photos(1)[:, 1:].requires_grad_()}
    adversary.judge(prediction, photos(0))
    generator_loss(prediction["fake_logits"]).backward()
    assert prediction["ab"].grad is not None
    assert prediction["ab"].grad.abs().amax((1, 2, 3)).min() > 0
    assert all(p.grad is None and p.requires_grad for p in adversary.model.parameters())
    for name, value in adversary.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_features_of_photos_get_no_gradient_and_those_of_answers_do(adversary: Adversary):
    prediction = {"ab": photos(1)[:, 1:].requires_grad_()}
    adversary.judge(prediction, photos(0))
    for real, fake in zip(prediction["real_features"], prediction["fake_features"], strict=True):
        assert len(real) == len(fake) == 3
        assert [f.shape for f in real] == [f.shape for f in fake]
        assert not any(f.requires_grad for f in real)
        assert all(f.requires_grad for f in fake)


def test_a_judge_learns_to_tell_photos_from_grey(adversary: Adversary):
    """Sixty steps on a handful of photos: the hinge loss starts at 2 and falls below 1."""
    losses = []
    adversary.optimizer.param_groups[0]["lr"] = 1e-2
    for step in range(60):
        lab = photos(step % 4) - torch.tensor([0.0, 50.0, 50.0])[:, None, None]
        loss = adversary.loss({"ab": torch.zeros(3, 2, 32, 32)}, lab)
        loss.backward()
        adversary.optimizer.step()
        adversary.optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2.0, abs=0.2)
    assert losses[-1] < 1.0


def test_influence_by_hand():
    """Of 20 steps 4 alone, then 1/4, 2/4, 3/4, 4/4, and so it stays."""
    shares = [influence(0.2, step, 20) for step in range(20)]
    assert shares == pytest.approx([0, 0, 0, 0, 0.25, 0.5, 0.75, *[1.0] * 13])
    assert [influence(0.0, step, 3) for step in range(3)] == [1.0] * 3
