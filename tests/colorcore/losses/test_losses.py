import math

import pytest
import torch

from colorcore.losses import TERMS, Loss, build_terms
from colorcore.models.prediction import Prediction

TRUE = torch.tensor([50.0, 30.0, -40.0]).reshape(1, 3, 1, 1).expand(2, 3, 4, 4)


def grey() -> Prediction:
    return {"ab": torch.zeros(2, 2, 4, 4, requires_grad=True)}


@pytest.mark.parametrize("name", TERMS)
def test_every_term_is_a_scalar_zero_at_truth_and_teaches(name: str):
    term, prediction = TERMS[name](), grey()
    value = term(prediction, TRUE)
    value.backward()
    assert value.shape == ()
    assert value > 0
    assert prediction["ab"].grad is not None
    assert prediction["ab"].grad.abs().min() > 0
    assert term({"ab": TRUE[:, 1:]}, TRUE) == 0


@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_of_every_term_is_right(name: str):
    generator = torch.Generator().manual_seed(0)
    ab = torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64) * 40
    lab = torch.randn(2, 3, 3, 3, generator=generator, dtype=torch.float64) * 40
    term = TERMS[name]()
    assert torch.autograd.gradcheck(lambda x: term({"ab": x}, lab), ab.requires_grad_())


@pytest.mark.parametrize("name", TERMS)
def test_every_term_is_float32_for_a_half_precision_prediction(name: str):
    assert TERMS[name]()({"ab": torch.zeros(2, 2, 4, 4).bfloat16()}, TRUE).dtype == torch.float32


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
