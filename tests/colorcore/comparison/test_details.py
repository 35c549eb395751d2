"""Error by hue, reliability, size stability and equal chroma, on cases worked out by hand."""

import math

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000
from torch import Tensor, nn

from colorcore.color.colorfulness import colorfulness_u8
from colorcore.color.lab import decode_lab, encode_lab, lab_to_rgb
from colorcore.comparison.equal_chroma import ChromaCurves, with_chroma
from colorcore.comparison.hue_errors import NAMES, HueErrors
from colorcore.comparison.reliability import Reliability
from colorcore.comparison.size_stability import size_differences
from colorcore.inference.predict import OWN
from tests.conftest import scene


def lab_of(hues: list[float], chroma: float, L: float = 60.0) -> Tensor:
    """One photo with one pixel per hue in degrees: (1, 3, 1, N)."""
    angles = [math.radians(hue) for hue in hues]
    pixels = [[L, chroma * math.cos(each), chroma * math.sin(each)] for each in angles]
    return torch.tensor(pixels).T.reshape(1, 3, 1, -1)


def test_each_hue_has_the_mean_error_of_its_pixels() -> None:
    truth = lab_of([10, 20, 45, 359], 30.0)
    grey = torch.cat([truth[:, :1], torch.zeros_like(truth[:, 1:])], dim=1)
    hues = HueErrors()
    hues.update(grey, truth)
    hues.update(lab_of([200], 5.0), lab_of([20], 5.0))  # true chroma 5: neutral, whatever its hue
    found = hues.compute()
    assert list(found) == list(NAMES)
    assert len(NAMES) == 13
    pixels = truth[0, :, 0].T.numpy()
    neutral = np.array([60.0, 0.0, 0.0])
    errors = [float(deltaE_ciede2000(pixel, neutral)) for pixel in pixels]
    assert found["0-30"] == pytest.approx(
        {"share": 2 / 5, "delta_e2000": (errors[0] + errors[1]) / 2}, rel=1e-4
    )
    assert found["30-60"] == pytest.approx({"share": 1 / 5, "delta_e2000": errors[2]}, rel=1e-4)
    assert found["330-360"]["share"] == pytest.approx(1 / 5)
    assert found["neutral"]["share"] == pytest.approx(1 / 5)
    assert found["90-120"] == {"share": 0.0, "delta_e2000": None}


def test_the_ends_of_sectors() -> None:
    hues = HueErrors()
    hues.update(lab_of([90.0], 20.0), lab_of([90.0001], 20.0))
    hues.update(lab_of([0.0], 20.0), lab_of([-1e-9], 20.0))  # rounds to 360 in float32
    found = hues.compute()
    assert found["90-120"]["share"] == 0.5
    assert found["0-30"]["share"] + found["330-360"]["share"] == 0.5


def test_reliability_counts_right_pixels_per_tenth_of_confidence() -> None:
    truth = torch.zeros(1, 3, 2, 2)
    answer = truth.clone()
    answer[0, 1] = torch.tensor([[0.0, 10.0], [10.1, 0.0]])  # a; two right, one on the edge
    confidence = torch.tensor([[[[0.05, 0.75], [0.79, 1.0]]]])
    reliability = Reliability()
    reliability.update(confidence, answer, truth)
    found = reliability.compute()
    assert [row["from"] for row in found] == [i / 10 for i in range(10)]
    assert found[0] == {"from": 0.0, "to": 0.1, "share": 0.25, "right": 1.0}
    assert found[7] == {"from": 0.7, "to": 0.8, "share": 0.5, "right": 0.5}
    assert found[9] == {"from": 0.9, "to": 1.0, "share": 0.25, "right": 1.0}
    assert found[4]["right"] is None


def test_a_smaller_map_of_confidence_is_enlarged() -> None:
    reliability = Reliability()
    reliability.update(
        torch.full((1, 1, 2, 2), 0.55), torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    )
    assert reliability.compute()[5] == {"from": 0.5, "to": 0.6, "share": 1.0, "right": 1.0}


class _BySize(nn.Module):
    """Answers a = ``factor`` times the photo's side in pixels, b = 0."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, L_norm: Tensor) -> dict[str, Tensor]:
        ab = torch.zeros(len(L_norm), 2, *L_norm.shape[-2:])
        ab[:, 0] = self.factor * L_norm.shape[-1]
        return {"ab": ab}


def test_size_differences_are_distances_from_the_colours_at_the_models_own_size() -> None:
    photo = scene(1, 96, 96)
    assert size_differences(_BySize(0.0), photo, 32, OWN) == {0.5: 0.0, 2.0: 0.0}
    found = size_differences(_BySize(0.25), photo, 32, OWN)
    assert found == pytest.approx({0.5: 4.0, 2.0: 8.0})  # 16, 32 and 64 px


def test_a_chroma_for_a_colourfulness() -> None:
    """Scaled as it says, pictures have the CF that was asked for, by the exact integer formula."""
    truth = decode_lab(torch.from_numpy(np.stack([encode_lab(scene(i)) for i in range(4)])))
    pale = with_chroma(truth, 0.5)
    curves = ChromaCurves(torch.ones(256, 256), [None])
    curves.update([pale[:3]], truth[:3])
    curves.update([pale[3:]], truth[3:])

    def cf_of(lab: Tensor) -> float:
        rgb = (lab_to_rgb(lab) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        return float(np.mean([colorfulness_u8(each) for each in rgb]))

    target = 0.75 * cf_of(truth)
    reading = curves.read(target)
    assert reading is not None
    assert 1.2 < reading.decoding.chroma < 1.8
    assert cf_of(with_chroma(pale, reading.decoding.chroma)) == pytest.approx(target, rel=0.01)
    assert curves.read(10 * target) is None
    assert curves.read(0.01 * target) is None
