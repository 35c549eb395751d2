import pytest
import torch
from torch import nn

from colorcore.models import MODELS, build_model, options_of, require_known


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
    with pytest.raises(ValueError, match="unknown model: 'unett'; did you mean 'unet'"):
        build_model("unett")


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'chanels'; did you mean 'channels'"):
        build_model("unet", chanels=8)


def test_what_resembles_nothing_gets_the_list():
    with pytest.raises(ValueError, match=r"'xyzzy' Known: channels, depth, norm, dropout\."):
        build_model("unet", xyzzy=1)


def test_require_known_says_so_when_there_is_nothing_to_choose():
    require_known("option", [], [])
    with pytest.raises(ValueError, match="Known: none"):
        require_known("option", ["a"], [])


def test_options_are_read_off_the_constructor():
    assert options_of(MODELS["unet"]) == ["channels", "depth", "norm", "dropout"]
