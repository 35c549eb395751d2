"""What of an encoder learns: never, from an epoch on, or its last stages, at its own rate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from colorcore.checkpoints.checkpoint import load_checkpoint
from colorcore.models import build_model
from colorcore.recipes.recipe import OptimPart, Recipe, load_recipe
from colorcore.training.encoder import parameter_groups, set_learning
from colorcore.training.events import TrainingStoppedError
from colorcore.training.fit import fit
from colorcore.training.state import FitData
from tests.colorcore.training.made_up import bytes_of


def recipe_of(*sets: str) -> Recipe:
    small = ("model.channels=4", "data.batch=4", "train.epochs=2", "train.ema=0", "optim.clip=none")
    return load_recipe("lite0", [*small, *sets])


def stages_of(folder: Path) -> list[dict[str, torch.Tensor]]:
    """The encoder's weights by part: the stem, then six stages."""
    weights = load_checkpoint(folder).weights
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(7)]
    for name, value in weights.items():
        if name.startswith("encoder.stem"):
            parts[0][name] = value
        elif name.startswith("encoder.stages."):
            parts[1 + int(name.split(".")[2])][name] = value
    return parts


def imagenet() -> list[dict[str, torch.Tensor]]:
    model = build_model("lite-unet", channels=4)
    model.load_pretrained()
    state = {f"encoder.{name}": value for name, value in model.encoder.state_dict().items()}
    return [
        {name: state[name] for name in names}
        for names in (
            [name for name in state if name.startswith("encoder.stem")],
            *([n for n in state if n.startswith(f"encoder.stages.{i}.")] for i in range(6)),
        )
    ]


def changed(folder: Path) -> list[bool]:
    """Which parts differ from ImageNet's."""
    return [
        any(not torch.equal(value, before[name]) for name, value in part.items())
        for part, before in zip(stages_of(folder), imagenet(), strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ((), [False] * 7),
        (("optim.encoder_lr=0.1",), [True] * 7),
        (("optim.encoder_lr=1.0", "optim.encoder_stages=2"), [False] * 5 + [True] * 2),
        (("optim.encoder_lr=0.1", "optim.freeze_epochs=2"), [False] * 7),
    ],
)
def test_only_what_the_recipe_says_learns(sets, expected, data: FitData, tmp_path: Path) -> None:
    fit(recipe_of(*sets), data, tmp_path)
    assert changed(tmp_path / "last") == expected


@pytest.mark.slow
def test_it_learns_from_the_epoch_on_that_the_recipe_names(data: FitData, tmp_path: Path) -> None:
    recipe = recipe_of("optim.encoder_lr=0.1", "optim.freeze_epochs=1")
    frozen = recipe_of("train.epochs=1", "optim.encoder_lr=0.1", "optim.freeze_epochs=1")
    fit(frozen, data, tmp_path / "one")
    fit(recipe, data, tmp_path / "two")
    assert not any(changed(tmp_path / "one" / "last"))
    assert all(changed(tmp_path / "two" / "last"))


@pytest.mark.slow
def test_a_training_resumed_before_or_after_that_epoch_is_the_same(
    data: FitData, tmp_path: Path
) -> None:
    recipe = recipe_of("optim.encoder_lr=0.1", "optim.freeze_epochs=1", "train.epochs=3")
    fit(recipe, data, tmp_path / "whole")
    for steps in (3, 8):  # of five per epoch
        left, out = iter(range(steps)), tmp_path / f"parts-{steps}"
        with pytest.raises(TrainingStoppedError):
            fit(recipe, data, out, stop=lambda left=left: next(left, None) is None)
        fit(recipe, data, out, resume=load_checkpoint(out / "last", training=True))
        assert bytes_of(out / "last") == bytes_of(tmp_path / "whole" / "last")


def test_the_encoders_rate_is_a_factor_of_the_others() -> None:
    model = build_model("lite-unet", channels=4)
    groups = parameter_groups(model, OptimPart(encoder_lr=0.1))
    assert [group.get("factor") for group in groups] == [None, 0.1]
    counted = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
    assert counted[1] == sum(parameter.numel() for parameter in model.encoder.parameters())
    assert sum(counted) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["unet", "resnet-unet"])
def test_other_models_learn_whole_in_one_group(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, channels=4)
    (group,) = parameter_groups(model, OptimPart())
    # Also in the same order: the optimizer's state in checkpoints goes by it.
    assert [id(each) for each in group["params"]] == [id(each) for each in model.parameters()]
    assert not set_learning(model, OptimPart(), 0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_encoder_without_weights_learns_like_the_rest() -> None:
    model = build_model("lite-unet", channels=4, encoder_weights="none")
    assert len(parameter_groups(model, OptimPart())) == 1
    set_learning(model, OptimPart(), 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
