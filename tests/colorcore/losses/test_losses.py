import copy
import inspect
import math

import pytest
import torch

from colorcore.losses import TERMS, Loss, build_terms
from colorcore.losses.inputs import WHO_HAS
from colorcore.models.prediction import Prediction
from tests.colorcore.losses.conftest import answer, leaves, photos

TRUE = torch.tensor([50.0, 30.0, -40.0]).reshape(1, 3, 1, 1).expand(2, 3, 4, 4)

USES = {
    "weighted_mse": {"ab"},
    "ab_l1": {"ab"},
    "ab_huber": {"ab"},
    "ab": {"ab"},
    "rgb_l1": {"rgb"},
    "luminance": {"rgb"},
    "saturation": {"ab"},
    "diversity": {"ab"},
    "perceptual": {"rgb"},
    "bins_ce": {"logits"},
    "bins_focal": {"logits"},
    "residual": {"residual"},
    "confidence": {"confidence"},
    "histogram": {"histograms"},
    "adversarial": {"fake_logits"},
    "feature_matching": {"fake_features"},
}
"""What each term teaches."""

ZERO_AT_TRUTH = ["weighted_mse", "ab_l1", "ab_huber", "ab", "rgb_l1", "saturation", "residual"]
SIZES = [(2, 8, 8), (1, 8, 8), (2, 7, 13), (1, 1, 1), (3, 1, 6)]


def grey() -> Prediction:
    return {"ab": torch.zeros(2, 2, 4, 4, requires_grad=True)}


@pytest.fixture(scope="module")
def terms(palette, alex):
    """Every term, built."""
    given = {"palette": palette}
    options = {"perceptual": {"net": "alex", "weights": alex}}
    return {
        name: build(
            **options.get(name, {}),
            **{key: given[key] for key in inspect.signature(build).parameters if key in given},
        )
        for name, build in TERMS.items()
    }


def predictions(lab: torch.Tensor) -> dict[str, dict]:
    """Answers that a term must live with."""
    ab = lab[:, 1:]
    made = {
        "random": answer(torch.randn_like(ab) * 30),
        "grey": answer(torch.zeros_like(ab)),
        "the truth": answer(ab),
        "beyond all gamuts": answer(128 * torch.randn_like(ab).sign()),
    }
    sure = answer(ab)
    for key, value in (("logits", 1e4), ("residual", 10.0), ("confidence", 1.0), ("rgb", 1.0)):
        sure[key] = torch.zeros_like(sure[key])
        sure[key][:, 0] = value
    sure["histograms"] = torch.zeros_like(sure["histograms"])
    sure["histograms"][..., 63] = 1.0
    made["sure"] = sure
    black = answer(ab)
    black["rgb"] = torch.zeros_like(black["rgb"])
    for key in ("confidence", "residual"):
        black[key] = torch.zeros_like(black[key])
    black["logits"] = torch.full_like(black["logits"], -1e4)
    made["black and unsure"] = black
    for prediction in made.values():
        for leaf in leaves(prediction).values():
            leaf.requires_grad_()
    return made


def test_every_term_is_tested():
    assert set(USES) == set(TERMS)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("truth", ["random", "grey", "saturated"])
def test_every_term_and_gradient_is_finite(terms, name, size, truth):
    lab = photos(*size)
    if truth == "grey":
        lab = lab * torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    if truth == "saturated":
        lab[:, 1:] = 127 * lab[:, 1:].sign()
    for what, prediction in predictions(lab).items():
        for kept in (prediction, {k: v for k, v in prediction.items() if k != "rgb"}):
            if name == "luminance" and "rgb" not in kept:
                continue
            found = leaves(kept)
            value = terms[name](kept, lab)
            assert value.shape == ()
            assert value.dtype == torch.float32
            assert value.isfinite(), what
            gradients = torch.autograd.grad(value, list(found.values()), allow_unused=True)
            assert any(gradient is not None for gradient in gradients)
            for key, gradient in zip(found, gradients, strict=True):
                assert gradient is None or gradient.isfinite().all(), (what, key)


@pytest.mark.parametrize("name", TERMS)
def test_every_term_teaches_what_it_is_about_and_nothing_else(terms, name):
    lab = photos(2, 8, 8)
    prediction = answer(lab[:, 1:].flip(0) * 0.5)
    terms[name](prediction, lab).backward()
    taught = {
        key.partition(".")[0]
        for key, leaf in leaves(prediction).items()
        if leaf.grad is not None and leaf.grad.abs().max() > 0
    }
    assert taught == USES[name]
    assert all(f.grad is None for scale in prediction["real_features"] for f in scale)


@pytest.mark.parametrize("name", ZERO_AT_TRUTH)
def test_a_regression_is_zero_at_the_truth(terms, name):
    lab = photos(2, 8, 8)
    prediction = answer(lab[:, 1:], shrink=1)
    del prediction["rgb"]
    assert terms[name](prediction, lab) == 0
    assert terms[name](answer(torch.zeros(2, 2, 8, 8)), lab) > 0


@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_of_every_term_is_right(terms, name, monkeypatch):
    """In float64, against finite differences. Odd sizes; heads are smaller than the photo."""
    lab = photos(2, 5, 7, dtype=torch.float64)
    prediction = answer(lab[:, 1:].flip(0) * 0.5, shrink=2)
    if name == "perceptual":
        terms[name].prepare(torch.device("cpu"))
        double = copy.deepcopy(terms[name].extractor).double()
        monkeypatch.setattr(terms[name], "extractor", double)
    (key,) = USES[name]
    given = prediction[key]
    if name == "residual":  # whose ab, as a model's, has the residual in it
        base = prediction["ab"].detach()

        def value_of(*tensors):
            larger = torch.nn.functional.interpolate(
                prediction["confidence"].detach() * tensors[0], scale_factor=2
            )
            ab = base + larger[..., :5, :7]
            return terms[name]({**prediction, key: tensors[0], "ab": ab}, lab)

        assert torch.autograd.gradcheck(value_of, given, fast_mode=True)
        return
    if isinstance(given, list):
        nested = isinstance(given[0], list)
        flat = [t for scale in given for t in scale] if nested else given

        def value_of_list(*tensors):
            rebuilt = [list(tensors[i : i + 2]) for i in (0, 2, 4)] if nested else list(tensors)
            return terms[name]({**prediction, key: rebuilt}, lab)

        assert torch.autograd.gradcheck(value_of_list, tuple(flat))
        return
    assert torch.autograd.gradcheck(
        lambda x: terms[name]({**prediction, key: x}, lab), given, fast_mode=name == "perceptual"
    )


@pytest.mark.parametrize("name", TERMS)
def test_every_term_is_float32_for_half_precision(terms, name):
    lab, prediction = photos(2, 8, 8), answer(photos(2, 8, 8, seed=1)[:, 1:] * 0.5)

    def halved(value):
        return [halved(v) for v in value] if isinstance(value, list) else value.bfloat16()

    value = terms[name]({key: halved(part) for key, part in prediction.items()}, lab)
    assert value.dtype == torch.float32
    expected = terms[name](prediction, lab)
    torch.testing.assert_close(value, expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("luminance", "rgb"),
        ("bins_ce", "logits"),
        ("bins_focal", "logits"),
        ("residual", "residual"),
        ("confidence", "confidence"),
        ("histogram", "histograms"),
        ("adversarial", "fake_logits"),
        ("feature_matching", "real_features"),
        ("feature_matching", "fake_features"),
    ],
)
def test_a_model_without_what_a_term_needs_is_refused(terms, name, missing):
    lab, prediction = photos(2, 8, 8), answer(torch.zeros(2, 2, 8, 8))
    del prediction[missing]
    with pytest.raises(ValueError, match=missing) as caught:
        terms[name](prediction, lab)
    message = str(caught.value)
    assert f"loss term '{name}' needs {WHO_HAS[missing]}" in message
    assert "\n" not in message


def test_terms_run_outside_autocast(palette):
    """Colour conversions in half precision would be off by whole ab units."""
    lab, prediction = photos(2, 8, 8), answer(photos(2, 8, 8, seed=1)[:, 1:] * 0.5)
    loss = build_terms({"luminance": 1.0, "rgb_l1": 1.0, "bins_ce": 1.0}, palette=palette)
    plain, _ = loss(prediction, lab)
    with torch.autocast("cpu", torch.bfloat16):
        within, _ = loss(prediction, lab)
    assert torch.equal(plain, within)


def test_prepare_reaches_the_terms_that_have_something_to_load():
    class Heavy:
        device = None

        def prepare(self, device):
            self.device = device

    heavy = Heavy()
    Loss({"a": 1.0, "b": 1.0}, {"a": heavy, "b": lambda p, t: t.sum()}).prepare(torch.device("cpu"))
    assert heavy.device == torch.device("cpu")


def test_the_palette_is_given_and_no_option(palette):
    build_terms({"bins_ce": 1.0})
    build_terms({"bins_ce": 1.0}, palette=palette).prepare(torch.device("cpu"))
    with pytest.raises(ValueError, match="unknown option of loss term 'bins_ce': 'palette'"):
        build_terms({"bins_ce": 1.0}, {"bins_ce": {"palette": "x"}})
    with pytest.raises(ValueError, match="'bins_ce' needs the dataset's palette"):
        build_terms({"bins_ce": 1.0}).prepare(torch.device("cpu"))


def test_the_total_is_the_weighted_sum():
    loss, prediction = build_terms({"weighted_mse": 2.0, "ab_l1": 0.5}), grey()
    total, values = loss(prediction, TRUE)
    # Chroma 50 is saturated: weight 1.5. Squared errors 30² and 40², absolute ones 30 and 40.
    assert values["weighted_mse"].item() == pytest.approx(1.5 * (900 + 1600) / 2 / 128**2)
    assert values["ab_l1"].item() == pytest.approx(35 / 128)
    assert total.item() == pytest.approx(
        2.0 * values["weighted_mse"].item() + 0.5 * values["ab_l1"].item()
    )
    assert list(values) == ["weighted_mse", "ab_l1"]
    assert not any(value.requires_grad for value in values.values())
    total.backward()
    assert prediction["ab"].grad is not None


def test_weight_zero_leaves_a_term_out():
    loss = build_terms({"weighted_mse": 0.0, "ab_l1": 1.0}, {"weighted_mse": {"grey": 0.1}})
    assert loss.weights == {"ab_l1": 1.0}
    assert list(loss(grey(), TRUE)[1]) == ["ab_l1"]


def test_options_reach_their_term():
    plain = build_terms({"weighted_mse": 1}, {"weighted_mse": {"grey": 1, "saturated": 1}})
    total, _ = plain(grey(), TRUE)
    assert total.item() == pytest.approx((900 + 1600) / 2 / 128**2)


def test_a_left_out_term_is_never_called():
    def refuse(prediction: Prediction, lab: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    total, values = Loss({"a": 3.0}, {"a": lambda p, t: t.sum(), "b": refuse})(grey(), TRUE)
    assert total == 3 * TRUE.sum()
    assert list(values) == ["a"]


@pytest.mark.parametrize("weights", [{}, {"ab_l1": 0.0}])
def test_a_loss_without_terms_is_refused(weights: dict[str, float]):
    with pytest.raises(ValueError, match=r"weight above 0.*weighted_mse, ab_l1"):
        build_terms(weights)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(weight: float):
    with pytest.raises(ValueError, match=r"'ab_l1' must be 0 or more, got"):
        build_terms({"ab_l1": weight, "weighted_mse": 1.0})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ab_huber", {"beta": 0.0}, "ab_huber needs beta > 0, got 0.0"),
        ("ab_huber", {"beta": math.nan}, "ab_huber needs beta > 0, got nan"),
        ("ab", {"a": -1.0}, "ab needs weights a and b of 0 or more, not both 0, got -1.0 and 1.0"),
        ("ab", {"a": 0.0, "b": 0.0}, "not both 0, got 0.0 and 0.0"),
        ("diversity", {"limit": 0.0}, "diversity needs limit > 0, got 0.0"),
        ("perceptual", {"net": "vgg"}, "needs net 'vgg16', 'alex' or 'lite0', got 'vgg'"),
        (
            "perceptual",
            {"net": "lite0", "weights": "lite0.pth"},
            "net 'lite0' from their Python package; leave weights empty, got 'lite0.pth'",
        ),
        ("bins_ce", {"rebalance": 1.5}, "bins_ce needs rebalance in 0..1, got 1.5"),
        ("bins_focal", {"rebalance": -0.5}, "bins_focal needs rebalance in 0..1, got -0.5"),
        ("bins_focal", {"gamma": -1.0}, "bins_focal needs gamma >= 0, got -1.0"),
        ("confidence", {"within": 0.0}, "confidence needs within > 0, got 0.0"),
        ("adversarial", {"kind": "wgan"}, "kind 'hinge' or 'least_squares', got 'wgan'"),
    ],
)
def test_an_option_out_of_range_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_terms({name: 1.0}, {name: options})


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({"weigthed_mse": 1.0}, {}, "'weigthed_mse'; did you mean weighted_mse"),
        ({"ab_l1": 1.0}, {"ab_l": {}}, "unknown loss term: 'ab_l'; did you mean ab_l1"),
        (
            {"weighted_mse": 1.0},
            {"weighted_mse": {"saturation": 2.0}},
            "option of loss term 'weighted_mse': 'saturation'; did you mean saturated",
        ),
        ({"ab_l1": 1.0}, {"ab_l1": {"beta": 1.0}}, "'beta'; known: none"),
        ({"ab_l1": 1.0}, {"weighted_mse": {"gray": 1.0}}, "did you mean grey"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(weights, options, message):
    with pytest.raises(ValueError, match=message):
        build_terms(weights, options)
