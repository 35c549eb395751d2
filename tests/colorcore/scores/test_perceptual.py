"""Perceptual scores of real photos, against the loss term and the classifier's own features."""

import numpy as np
import pytest
import torch
from skimage import data
from sklearn.datasets import load_sample_images
from sklearn.metrics.pairwise import polynomial_kernel
from torch import Tensor
from torch.nn import functional as F

from colorcore.blocks.efficientnet_lite import EfficientNetLite
from colorcore.color.lab import lab_to_rgb, rgb_to_lab
from colorcore.losses.perceptual import build
from colorcore.scores.metrics import grey_baseline
from colorcore.scores.perceptual import PerceptualScores


def real_photos(side: int = 64) -> Tensor:
    """True LAB (24, 3, side, side): quarters of six photographs."""
    whole = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    whole += load_sample_images().images
    quarters = []
    for photo in whole:
        rgb = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() / 255
        height, width = (length // 2 for length in rgb.shape[-2:])
        for top in (0, height):
            for left in (0, width):
                quarter = rgb[:, :, top : top + height, left : left + width]
                quarters.append(F.interpolate(quarter, (side, side), mode="area"))
    return rgb_to_lab(torch.cat(quarters))


def half_turn(lab: Tensor) -> Tensor:
    return torch.cat([lab[:, :1], -lab[:, 1:]], dim=1)


def paler(lab: Tensor) -> Tensor:
    return torch.cat([lab[:, :1], 0.8 * lab[:, 1:]], dim=1)


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return real_photos()


@pytest.fixture(scope="module")
def scores(photos: Tensor) -> dict[str, dict[str, float]]:
    """Of grey and of changed photos; the "model" is the truth itself."""
    made = PerceptualScores({"grey": grey_baseline, "turned": half_turn, "paler": paler})
    for batch in photos.split(7):
        made.update(batch, batch)
    return made.compute()


def test_the_truth_is_0_away(scores):
    assert list(scores) == ["grey", "turned", "paler", "model"]
    assert scores["model"] == pytest.approx(
        {"kid_lite0": 0, "kid_lite0_error": 0, "perceptual_lite0": 0}, abs=1e-6
    )


def test_grey_and_turned_hues_are_told_from_real_photos_and_less_chroma_is_not(scores):
    for name in ("grey", "turned"):
        assert scores[name]["kid_lite0"] > 3 * scores[name]["kid_lite0_error"] > 0
        assert scores[name]["kid_lite0"] > 5 * abs(scores["paler"]["kid_lite0"])
        assert scores[name]["perceptual_lite0"] > 0.15
    assert scores["paler"]["perceptual_lite0"] < 0.03


@pytest.mark.slow
def test_kid_is_that_of_the_classifiers_own_features(scores, photos):
    """What its last layer multiplies, at 224 px, with scikit-learn's kernel."""
    network, seen = EfficientNetLite("lite0", classifier=True).eval(), []
    network.load_imagenet()
    network.answer.register_forward_pre_hook(lambda _, given: seen.append(given[0].numpy()))
    rgb = torch.cat([lab_to_rgb(grey_baseline(photos)), lab_to_rgb(photos)])
    with torch.no_grad():
        for some in F.interpolate(rgb, (224, 224), mode="bilinear").split(4):
            network.classify(some)
    x, y = np.split(np.concatenate(seen).astype(np.float64), 2)
    assert x.shape == (24, 1280)

    def mean(one: np.ndarray, other: np.ndarray) -> float:
        kernel = polynomial_kernel(one, other, degree=3, gamma=1 / 1280, coef0=1)
        return float(kernel[~np.eye(24, dtype=bool)].mean())

    expected = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    assert scores["grey"]["kid_lite0"] == pytest.approx(1000 * expected, rel=1e-3)


def test_the_distance_is_the_value_of_the_loss_term(scores, photos):
    """At the photos' own size."""
    term = build(net="lite0")
    with torch.no_grad():
        expected = term({"ab": torch.zeros_like(photos[:, 1:])}, photos)
    assert scores["grey"]["perceptual_lite0"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.slow
def test_the_batches_do_not_matter_and_the_model_is_what_was_predicted(scores, photos):
    made = PerceptualScores({})
    made.update(half_turn(photos[:1]), photos[:1])
    made.update(half_turn(photos[1:]), photos[1:])
    assert made.compute()["model"] == pytest.approx(scores["turned"], rel=1e-3)


def test_photos_of_imagenets_size_pass_the_network_once_and_smaller_ones_twice():
    made, calls = PerceptualScores({}), []
    made._network.network.stem.register_forward_hook(lambda *call: calls.append(call[1][0].shape))
    small, large = torch.full((1, 3, 40, 50), 50.0), torch.full((1, 3, 224, 230), 50.0)
    made.update(small, small)
    assert [tuple(each[2:]) for each in calls] == 2 * [(40, 50), (224, 224)]
    made.update(large, large)
    assert [tuple(each[2:]) for each in calls[4:]] == 2 * [(224, 230)]


@pytest.mark.slow
def test_of_more_photos_than_the_limit_kid_takes_a_sample_the_distance_all(photos):
    made, whole = PerceptualScores({}, limit=5), PerceptualScores({})
    for scores in (made, whole):
        scores.update(half_turn(photos[:9]), photos[:9])
    assert len(made._kept.items) == 5
    few, all_of_them = made.compute()["model"], whole.compute()["model"]
    assert few["perceptual_lite0"] == all_of_them["perceptual_lite0"]
    assert few["kid_lite0"] != all_of_them["kid_lite0"]


def test_kept_features_are_not_views_of_their_batch(photos):
    made = PerceptualScores({})
    made.update(photos[:4], photos[:4])
    assert [item.untyped_storage().nbytes() for item in made._kept.items] == 4 * [2 * 1280 * 4]


def test_few_photos_have_no_kid(photos):
    made = PerceptualScores({})
    with pytest.raises(ValueError, match="no photo was added"):
        made.compute()
    for number, expected in enumerate((1, 2, 3)):
        made.update(photos[number : number + 1], photos[number : number + 1])
        assert len(made.compute()["model"]) == expected
