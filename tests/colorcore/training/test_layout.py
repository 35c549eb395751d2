"""Activations stay channels_last, in which half-precision convolutions are fastest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorcore.recipes.recipe import load_recipe, recipe_names
from colorcore.training.fit import train_step
from colorcore.training.state import FitData, Training
from tests.colorcore.losses.conftest import made_up_weights
from tests.colorcore.training.made_up import CPU


def is_last(x: Tensor) -> bool:
    """One channel or one pixel has the same memory in either layout."""
    return x.shape[1] == 1 or x.shape[2] * x.shape[3] == 1 or x.stride(1) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_every_activation_is_channels_last(
    name: str, data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What goes into each layer and comes out, in a step, with GroupNorm as it is on a GPU."""
    normal = F.group_norm
    monkeypatch.setattr(F, "group_norm", lambda x, *rest: normal(x, *rest).contiguous())
    more = []
    recipe = load_recipe(name)
    if recipe.discriminator is not None:
        more.append("discriminator.channels=4")
    if "perceptual" in recipe.loss:
        torch.save(made_up_weights("alex"), tmp_path / "alex.pth")
        options = "loss_options.perceptual"
        more += [f"{options}.net=alex", f"{options}.weights={tmp_path / 'alex.pth'}"]
    training = Training(
        load_recipe(name, ["model.channels=4", "data.batch=4", *more]), data, CPU, None
    )
    seen, wrong = [], []
    networks = [training.model, *([training.adversary.model] if training.adversary else [])]
    for network in networks:
        for path, layer in network.named_modules():

            def look(_: nn.Module, given: Any, answer: Any, path: str = path) -> None:
                tensors = [x for x in (*given, answer) if isinstance(x, Tensor) and x.ndim == 4]
                seen.extend(tensors)
                wrong.extend(path for x in tensors if not is_last(x))

            if not list(layer.children()):
                layer.register_forward_hook(look)
    train_step(training, next(iter(training.loader.epoch(0))))
    assert len(seen) > 8
    assert wrong == []
    # The optimizer's kernels go through weights, gradients and moments together.
    for parameter, values in training.optimizer.state.items():
        assert values["exp_avg"].stride() == parameter.stride()
