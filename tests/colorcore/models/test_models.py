import pytest
import torch
from torch import nn

from colorcore.models import MODELS, build_model


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
    with pytest.raises(ValueError, match=r"'xyzzy'; known: channels, depth, dropout, norm$"):
        build_model("unet", xyzzy=1)
