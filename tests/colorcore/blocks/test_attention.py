import math

import pytest
import torch
from torch import nn

from colorcore.blocks.attention import AttentionGate, SelfAttention


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Gates on skips


def test_a_gate_by_hand():
    """One place, two skip channels (so one in between), one gate channel."""
    gate = AttentionGate(2, 1)
    with torch.no_grad():
        gate.of_skip.weight.copy_(torch.tensor([0.5, -1.0]).reshape(1, 2, 1, 1))
        gate.of_gate.weight.fill_(2.0)
        gate.of_gate.bias.fill_(0.25)
        gate.psi.weight.fill_(-1.5)
        gate.psi.bias.fill_(0.5)
        skip = torch.tensor([4.0, 1.0]).reshape(1, 2, 1, 1)
        # relu(0.5·4 - 1·1 + 2·3 + 0.25) = 7.25; relu(1 - 2·3 + 0.25) = 0
        for led, between in ((3.0, 7.25), (-3.0, 0.0)):
            weight = 1 / (1 + math.exp(1.5 * between - 0.5))
            answer = gate(skip, torch.full((1, 1, 1, 1), led))
            assert answer.flatten().tolist() == pytest.approx([4 * weight, weight])


def test_a_gate_is_as_fine_as_its_skip():
    """The coarse map only says roughly where; the skip's own edge stays an edge."""
    torch.manual_seed(0)
    gate, skip = AttentionGate(6, 4), torch.zeros(1, 6, 8, 8)
    skip[..., 3:] = 1.0
    with torch.no_grad():
        answer = gate(skip, torch.randn(1, 4, 1, 1))
    assert answer.shape == skip.shape
    assert answer[..., 3:].std(dim=(2, 3)).max() < 1e-6
    # One weight for all channels.
    assert answer[..., 3:].std(dim=1).max() < 1e-6
    assert 0 < answer[..., 3:].min() <= answer.max() < 1


def test_a_gate_enlarges_its_leader_bilinearly():
    """Along a ramp of two coarse values the weights are those of 0.25 and 0.75 between them."""
    gate = AttentionGate(2, 1)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.fill_(1.0)
        answer = gate(torch.ones(1, 2, 1, 4), torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2))
    scores = torch.tensor([0.0, 0.25, 0.75, 1.0]) + 4.0
    torch.testing.assert_close(answer[0, 0, 0], scores.sigmoid())


@pytest.mark.parametrize(("skip", "gate"), [(64, 128), (2, 7)])
def test_a_gate_has_the_parameters_of_its_docstring(skip: int, gate: int):
    assert parameters(AttentionGate(skip, gate)) == (skip + gate + 2) * (skip // 2) + 1


# Self-attention


def by_loops(layer: SelfAttention, x: torch.Tensor) -> torch.Tensor:
    """Each place's answer one after the other, in plain sums."""
    batch, _, height, width = x.shape
    places = [(row, column) for row in range(height) for column in range(width)]
    weight = {
        name: getattr(layer, name).weight[:, :, 0, 0].double() for name in ("query", "key", "value")
    }
    answer = x.double().clone()
    for photo in range(batch):
        at = {place: x[photo, :, place[0], place[1]].double() for place in places}
        for here in places:
            query = weight["query"] @ at[here]
            scores = [float(query @ (weight["key"] @ at[there])) for there in places]
            raised = [math.exp(score / math.sqrt(len(query))) for score in scores]
            for share, there in zip(raised, places, strict=True):
                seen = share / sum(raised) * (weight["value"] @ at[there])
                answer[photo, :, here[0], here[1]] += layer.gamma.double() * seen
    return answer


def test_self_attention_is_that_of_plain_loops():
    torch.manual_seed(0)
    layer, x = SelfAttention(32), 3 * torch.randn(2, 32, 3, 4)
    with torch.no_grad():
        layer.gamma.fill_(0.7)
        answer = layer(x)
        expected = by_loops(layer, x)
    assert (answer - x).abs().max() > 0.5
    torch.testing.assert_close(answer.double(), expected, atol=1e-5, rtol=1e-5)


def test_self_attention_starts_as_the_identity_and_can_leave_it():
    layer, x = SelfAttention(32), torch.randn(1, 32, 4, 4)
    answer = layer(x)
    assert torch.equal(answer, x)
    answer.square().sum().backward()
    assert layer.gamma.grad.abs() > 0


def test_the_reduction_is_that_of_queries_and_keys():
    layer = SelfAttention(512)
    assert layer.query.out_channels == layer.key.out_channels == 32
    assert layer.value.out_channels == 512
    assert parameters(layer) == 512**2 + 2 * 512**2 // 16 + 1
    assert SelfAttention(8).query.out_channels == 1
