"""Decoding: the model's own answer, other temperatures, chroma scales; in photos too."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from colorcore.color.lab import normalize_L
from colorcore.color.palette import Palette
from colorcore.colorizing.network import NetworkColorizer
from colorcore.decoding import Decoding
from colorcore.inference.predict import predict_lab
from colorcore.models import build_model
from colorcore.models.decoding import completed, decode, own_decoding, scaled

BINS = 5


@pytest.fixture(scope="module")
def palette() -> Palette:
    centroids = np.array([[0, 0], [60, 40], [-50, 30], [10, -60], [-20, -20]], np.float32)
    priors = np.full(BINS, 1 / BINS, np.float32)
    return Palette(centroids, priors, np.ones(BINS, np.float32), about={})


@pytest.fixture(scope="module")
def bins_model(palette: Palette) -> nn.Module:
    """Sure of something else in each place, with residuals and confidences that are not nothing."""
    torch.manual_seed(0)
    model = build_model("resnet-unet", channels=4, bins=BINS)
    model.use_palette(palette)
    for head in (model.bins, model.residual, model.confidence):
        nn.init.normal_(head.weight, std=0.8)
    return model.eval()


def unet(head: str = "ab") -> nn.Module:
    torch.manual_seed(0)
    model = build_model("unet", channels=4, depth=2, head=head)
    nn.init.normal_(model.head.weight, std=0.3)
    return model.eval()


def photo(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    lab = torch.rand(2, 3, 40, 52, generator=generator) * 100
    lab[:, 1:] -= 50
    return lab


@torch.no_grad()
def answer(model: nn.Module):
    return model(normalize_L(photo()[:, :1]))


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(0.38), Decoding(0.38, 1.0)])
def test_the_models_own_decoding_is_its_answer_bit_for_bit(bins_model, decoding):
    prediction = answer(bins_model)
    assert prediction["ab"].abs().max() > 20
    assert torch.equal(decode(bins_model, prediction, decoding), prediction["ab"])
    assert own_decoding(bins_model) == Decoding(0.38, 1.0)


def test_a_temperature_is_the_annealed_mean_of_the_paper(bins_model, palette: Palette):
    """Eq. 5 of Zhang et al. in numpy at a pixel in whose surroundings all answers are alike."""
    prediction = answer(bins_model)
    for name in ("logits", "residual", "confidence"):
        prediction[name] = prediction[name][..., :1, :1].expand(-1, -1, 10, 13)
    logits, residual, c = (
        prediction[name][0, :, 0, 0].double().numpy()
        for name in ("logits", "residual", "confidence")
    )
    for temperature in (0.1, 1.0, 3.0):
        shares = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        expected = shares @ palette.centroids + c * residual
        ab = decode(bins_model, prediction, Decoding(temperature, 1.3))
        assert ab.shape == (2, 2, 40, 52)
        np.testing.assert_allclose(ab[0, :, 17, 23].numpy(), 1.3 * expected, rtol=1e-4)


def test_a_regression_has_no_temperature():
    model = unet()
    assert own_decoding(model) == Decoding(None, 1.0)
    assert torch.equal(decode(model, answer(model), Decoding()), answer(model)["ab"])
    with pytest.raises(ValueError, match=r"UNet, which does not predict bins, got 0\.5"):
        decode(model, answer(model), Decoding(0.5))


def test_an_rgb_head_keeps_the_photos_lightness():
    model, lab = unet("rgb"), photo()
    plain, vivid = (predict_lab(model, lab, Decoding(chroma=c)) for c in (1.0, 1.5))
    for predicted in (plain, vivid):
        assert torch.equal(predicted[:, :1], lab[:, :1])
    assert plain[:, 1:].abs().max() > 1
    torch.testing.assert_close(vivid[:, 1:], 1.5 * plain[:, 1:])


@given(st.floats(0.01, 10), st.floats(-128, 128), st.floats(-128, 128))
def test_scaled_colours_keep_hue_and_stay_in_range(chroma: float, a: float, b: float):
    ab = torch.tensor([a, b], dtype=torch.float64)
    made = scaled(ab, chroma)
    assert made.abs().max() <= 128
    if (ab * chroma).abs().max() < 128:
        torch.testing.assert_close(made, ab * chroma)


def test_a_scale_of_one_makes_no_copy():
    ab = torch.ones(1, 2, 3, 3)
    assert scaled(ab, 1.0) is ab


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("knob", ["temperature", "chroma"])
def test_knobs_out_of_range(knob: str, value: float):
    with pytest.raises(ValueError, match=f"{knob} must be above 0 and finite"):
        Decoding(**{knob: value})


def test_what_is_not_said_is_the_models(bins_model):
    assert completed(bins_model, Decoding(chroma=1.2)) == Decoding(0.38, 1.2)
    assert completed(bins_model, Decoding(1.0, 1.2)) == Decoding(1.0, 1.2)
    assert completed(unet(), Decoding(chroma=1.2)) == Decoding(None, 1.2)
    assert str(Decoding(0.38, 1.2)) == "T 0.38, chroma ×1.2"
    assert str(Decoding(None, 1.0)) == "chroma ×1"


def test_a_colorized_photo_is_as_vivid_as_asked(bins_model):
    rgb = np.random.default_rng(0).integers(40, 200, (32, 48, 3), np.uint8)
    own = NetworkColorizer(bins_model, 32).colorize(rgb)
    assert np.array_equal(own, NetworkColorizer(bins_model, 32, Decoding(0.38)).colorize(rgb))
    pale = NetworkColorizer(bins_model, 32, Decoding(0.38, 0.01)).colorize(rgb)
    assert np.ptp(own, axis=2).max() > 40
    assert np.ptp(pale, axis=2).max() < 4
    hot = NetworkColorizer(bins_model, 32, Decoding(1.0)).colorize(rgb)
    assert not np.array_equal(own, hot)
