"""Channels go from everything that makes or reads them, and the least go first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from colorcore.export.prune import MULTIPLE, NARROWEST, channels_of, prune
from colorcore.models import build_model

UNETS: dict[str, dict[str, Any]] = {
    "plain": {"channels": 16},
    "gates": {"channels": 16, "attention": True},
    "rgb": {"channels": 32, "head": "rgb", "depth": 2, "dropout": 0.1},
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lite": ("lite-unet", {"channels": 16}),
    "lite-bins": ("lite-bins", {"channels": 16, "bins": 8}),
}
NORMED: dict[str, tuple[str, dict[str, Any]]] = {
    "group": ("unet", {"channels": 16, "norm": "group"}),
    "resnet": ("resnet-unet", {"channels": 16, "bins": 8}),
}
CASES = {**{name: ("unet", options) for name, options in UNETS.items()}, **OTHERS}


def network(name: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    made = build_model(name, **options).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return made


def kill(made: nn.Module, share: float) -> None:
    """Let as many channels as will go say nothing: filters, scale and shift are zero."""
    groups = channels_of(made)
    widest = max(group.width for group in groups)
    with torch.no_grad():
        for group in groups:
            if group.width < NARROWEST * widest:
                continue
            kept = max(MULTIPLE, MULTIPLE * round(group.width * (1 - share) / MULTIPLE))
            dead = torch.randperm(group.width)[: group.width - kept]
            for layer in (*group.makers, *group.norms):
                turned = isinstance(layer, nn.ConvTranspose2d)
                weight: Any = layer.weight
                (weight.transpose(0, 1) if turned else weight)[dead] = 0
                if layer.bias is not None:
                    layer.bias[dead] = 0  # type: ignore[index]


@pytest.mark.parametrize("case", CASES)
def test_channels_that_say_nothing_go_and_nothing_changes(case: str) -> None:
    """So every reader has lost the channels that its maker lost: any other would change colours."""
    made = network(*CASES[case])
    kill(made, 0.25)
    L_norm = torch.rand(2, 1, 70, 33) * 2 - 1
    with torch.inference_mode():
        before = made(L_norm)["ab"]
        counts = prune(made, 0.25)
        after = made(L_norm)["ab"]
    assert before.std() > 1e-3
    assert torch.allclose(before, after, atol=1e-4)
    assert counts["after"] < 0.8 * counts["before"]
    assert counts["after"] == sum(each.numel() for each in made.parameters())


@pytest.mark.parametrize("case", NORMED)
def test_networks_with_group_norm_run_at_any_size(case: str) -> None:
    made = network(*NORMED[case])
    counts = prune(made, 0.4)
    assert counts["after"] < 0.8 * counts["before"]
    for shape in ((1, 1, 64, 64), (2, 1, 70, 33)):
        with torch.inference_mode():
            assert made(torch.rand(shape))["ab"].isfinite().all()


def test_the_filters_with_the_smallest_l1_norm_go() -> None:
    made: Any = network("unet", {"channels": 16, "depth": 1})
    first = made.bottleneck[0]  # 32 filters
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.weight[[3, 5, 30]] = 0.1
        first.weight[7] = 0.0
        first.weight[7, 0, 0, 0] = 50.0  # large in one place, but smallest in all
        first.weight[[9, 11, 13, 15]] = -0.2  # small by their size, not by their sign
    marks = first.weight.abs().sum((1, 2, 3))
    prune(made, 0.25)
    assert first.out_channels == 24
    assert first.weight.shape == (24, *first.weight.shape[1:])
    kept = first.weight.abs().sum((1, 2, 3))
    assert kept.sum() > marks.topk(24).values.sum() * 0.74  # its inputs were pruned, too
    assert not (first.weight == 0.1).any()
    assert not (first.weight == -0.2).any()
    assert not (first.weight == 50).any()


def test_the_narrow_layers_and_the_output_keep_theirs() -> None:
    made: Any = network("unet", {"channels": 16})  # widths 16 to 256
    prune(made, 0.5)
    widths = [block[3].out_channels for block in (*made.encoder, made.bottleneck)]
    assert widths == [16, 32, 32, 64, 128]
    assert made.head.out_channels == 2


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_other_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="expected a share between 0 and 1"):
        prune(network("unet", {"channels": 16}), share)


def test_a_network_too_narrow_to_prune_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer can lose 30% of its channels"):
        prune(network("unet", {"channels": 2, "depth": 1}), 0.3)
