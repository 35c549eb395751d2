import pytest
import torch
from pydantic import ValidationError
from torch import nn

from colorcore.models import (
    MODELS,
    AnswersInBins,
    StartsPretrained,
    build_model,
    check_model,
    options_model,
)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_answers_with_ab_of_the_size_it_was_given(name: str):
    model = build_model(name, channels=4).eval()
    with torch.no_grad():
        ab = model(torch.zeros(1, 1, 32, 48))["ab"]
    assert isinstance(model, nn.Module)
    assert ab.shape == (1, 2, 32, 48)
    assert ab.dtype == torch.float32


def test_options_reach_the_model():
    small, large = build_model("unet", channels=4), build_model("unet", channels=8)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in large.parameters())


def test_an_unknown_model_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown model: 'unett'; did you mean unet"):
        build_model("unett")


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'chanels'; did you mean channels"):
        build_model("unet", chanels=8)


def test_what_resembles_nothing_gets_the_list():
    with pytest.raises(ValueError, match=r"'xyzzy'; known: attention, channels, .*, norm$"):
        build_model("unet", xyzzy=1)


# Options as recipes see them


@pytest.mark.parametrize("name", MODELS)
def test_the_options_are_those_of_the_constructor_with_its_defaults(name: str):
    options = options_model(name)().model_dump()
    assert list(options) == list(MODELS[name].__init__.__kwdefaults__)
    assert options == MODELS[name].__init__.__kwdefaults__


@pytest.mark.parametrize("name", MODELS)
def test_only_what_answers_in_bins_has_that_option(name: str):
    with torch.device("meta"):
        model = build_model(name)
    assert isinstance(model, AnswersInBins) == ("bins" in options_model(name).model_fields)
    assert isinstance(model, StartsPretrained) == (
        "encoder_weights" in options_model(name).model_fields
    )


@pytest.mark.parametrize(
    "values",
    [
        {"channels": 1.5},
        {"channels": "many"},
        {"dropout": float("nan")},
        {"norm": "layer"},
        {"attention": "perhaps"},
        {"layers": 3},
    ],
)
def test_values_of_another_type_are_refused(values: dict[str, object]):
    with pytest.raises(ValidationError) as refusal:
        options_model("unet").model_validate(values)
    assert refusal.value.errors()[0]["loc"] == tuple(values)


def test_a_model_is_checked_without_memory():
    check_model("unet", {"channels": 1024, "depth": 7})  # 508 billion parameters
    with pytest.raises(ValueError, match=r"^depth must be in"):
        check_model("unet", {"depth": 8})
