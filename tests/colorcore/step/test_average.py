"""The moving average of a network's tensors."""

from __future__ import annotations

import torch
from torch import nn

from colorcore.step.average import Average


def test_the_average_follows_each_kind_of_tensor():
    def network() -> nn.Module:
        layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        layers.register_buffer("small", torch.rand(3).half())
        return layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    model, average = network(), network()
    expected = {
        name: 0.75 * value.double() + 0.25 * model.state_dict()[name].double()
        for name, value in average.state_dict().items()
    }
    model[1].num_batches_tracked.fill_(7)  # type: ignore[index, union-attr]
    expected["1.num_batches_tracked"] = torch.tensor(7.0, dtype=torch.float64)
    Average(average, model).update(0.75)
    for name, value in average.state_dict().items():
        atol = 1e-3 if value.dtype == torch.float16 else 1e-6
        torch.testing.assert_close(value.double(), expected[name], atol=atol, rtol=0)
