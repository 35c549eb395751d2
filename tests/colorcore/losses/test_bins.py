import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from colorcore.color.bins import SoftEncoder
from colorcore.color.palette import Palette, bin_weights
from colorcore.losses import bins_ce, bins_focal
from colorcore.losses.bins import log_probability
from colorcore.losses.inputs import stored_ab
from tests.colorcore.losses.conftest import BINS, photos


def truth(a: float, b: float) -> torch.Tensor:
    return torch.tensor([50.0, a, b]).reshape(1, 3, 1, 1)


def two_bins() -> Palette:
    """Grey, nine pixels of ten, and red, 10 ab units off."""
    priors = np.array([0.9, 0.1])
    return Palette(
        np.array([[0, 0], [10, 0]], np.float32),
        priors.astype(np.float32),
        bin_weights(priors).astype(np.float32),
    )


def dense(lab, logits, palette):
    """Targets (B, Q, h, w) and weights (B, h, w), the long way."""
    encoder = SoftEncoder(palette.centroids)
    indices, shares = encoder.encode(stored_ab(lab, tuple(logits.shape[-2:])))
    target = torch.zeros_like(logits).scatter_(1, indices, shares.to(logits))
    weights = torch.from_numpy(palette.weights).to(logits)[target.argmax(dim=1)]
    return target, weights


def test_cross_entropy_by_hand():
    """At a = 4 the bins' distances are 4 and 6: shares ∝ exp(−16/50) and exp(−36/50)."""
    share = 1 / (1 + math.exp((16 - 36) / 50))
    logits = torch.tensor([math.log(3.0), 0.0]).reshape(1, 2, 1, 1)  # p = 3/4, 1/4
    expected = -share * math.log(0.75) - (1 - share) * math.log(0.25)
    # w ∝ 1/(0.45 + 0.25) and 1/(0.05 + 0.25), scaled to a mean of 1: grey's is 0.8108.
    grey = (1 / 0.7) / (0.9 / 0.7 + 0.1 / 0.3)
    prediction = {"ab": torch.zeros(1, 2, 1, 1), "logits": logits}
    for rebalance, weight in ((0.0, 1.0), (1.0, grey), (0.5, (1 + grey) / 2)):
        term = bins_ce.build(rebalance=rebalance, palette=two_bins())
        assert term(prediction, truth(4, 0)).item() == pytest.approx(weight * expected, rel=1e-5)


def test_focal_by_hand():
    share = 1 / (1 + math.exp((16 - 36) / 50))
    logits = torch.tensor([math.log(3.0), 0.0]).reshape(1, 2, 1, 1)
    prediction = {"ab": torch.zeros(1, 2, 1, 1), "logits": logits}
    expected = -share * 0.25**2 * math.log(0.75) - (1 - share) * 0.75**2 * math.log(0.25)
    value = bins_focal.build(palette=two_bins())(prediction, truth(4, 0))
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (2, 3)])
def test_sparse_is_dense(palette, size):
    """The 5 nearest bins give what the target of all bins gives, and its gradient."""
    lab = photos(2, 8, 8, dtype=torch.float64)
    logits = (3 * torch.randn(2, BINS, *size)).double().requires_grad_()
    target, weights = dense(lab, logits, palette)
    log_p = F.log_softmax(logits, dim=1)
    for build, expected in (
        (bins_ce.build(palette=palette), -(target * log_p).sum(1)),
        (
            bins_focal.build(gamma=1.5, rebalance=1.0, palette=palette),
            -(target * (1 - log_p.exp()) ** 1.5 * log_p).sum(1),
        ),
    ):
        value, other = build({"logits": logits}, lab), (weights * expected).mean()
        torch.testing.assert_close(value, other)
        mine, theirs = (
            torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (value, other)
        )
        torch.testing.assert_close(mine, theirs)


def test_plain_cross_entropy_is_torchs(palette):
    lab, logits = photos(2, 4, 4), torch.randn(2, BINS, 4, 4)
    target, _ = dense(lab, logits, palette)
    value = bins_ce.build(rebalance=0.0, palette=palette)({"logits": logits}, lab)
    torch.testing.assert_close(value, F.cross_entropy(logits, target))


def test_the_best_answer_is_the_soft_encoding(palette):
    lab = photos(1, 4, 4)
    target, _ = dense(lab, torch.zeros(1, BINS, 4, 4), palette)
    best = target.clamp(min=1e-30).log()
    term = bins_ce.build(palette=palette)
    at_best = term({"logits": best}, lab)
    for seed in range(5):
        other = best + 0.3 * torch.randn(best.shape, generator=torch.Generator().manual_seed(seed))
        assert term({"logits": other}, lab) > at_best


def test_rare_colours_weigh_more():
    wrong = {"logits": torch.zeros(1, 2, 1, 1)}
    term = bins_ce.build(palette=two_bins())
    assert term(wrong, truth(10, 0)) > 2 * term(wrong, truth(0, 0))


def test_gamma_zero_is_cross_entropy(palette):
    lab, logits = photos(2, 4, 4), torch.randn(2, BINS, 4, 4)
    focal = bins_focal.build(gamma=0.0, rebalance=0.7, palette=palette)
    plain = bins_ce.build(rebalance=0.7, palette=palette)
    torch.testing.assert_close(focal({"logits": logits}, lab), plain({"logits": logits}, lab))


@pytest.mark.parametrize("gamma", [0.0, 0.2, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("logit", [0.0, 20.0, 1e4, -1e4])
def test_certainty_has_a_finite_gradient(gamma, logit):
    logits = torch.tensor([logit, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
    value = bins_focal.build(gamma=gamma, palette=two_bins())({"logits": logits}, truth(0, 0))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_log_probability_is_never_above_zero():
    logits = torch.randn(4, 3, 50, 50, generator=torch.Generator().manual_seed(0)) * 40
    indices = logits.argmax(dim=1, keepdim=True)
    found = log_probability(logits, indices)
    assert found.max() <= 0
    torch.testing.assert_close(found, F.log_softmax(logits, dim=1).gather(1, indices))


def test_halves_of_a_batch_average_to_the_batch(palette):
    lab, logits = photos(4, 8, 8), torch.randn(4, BINS, 2, 2)
    term = bins_ce.build(palette=palette)
    halves = [term({"logits": logits[i : i + 2]}, lab[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(sum(halves) / 2, term({"logits": logits}, lab))


def test_another_palette_is_refused(palette):
    with pytest.raises(ValueError, match="palette of 6 bins, but the model predicts 313"):
        bins_ce.build(palette=palette)({"logits": torch.zeros(1, 313, 1, 1)}, truth(0, 0))


def test_a_palettes_tables_are_made_once(palette, monkeypatch):
    made = []
    other = two_bins()
    monkeypatch.setattr(
        "colorcore.losses.bins.SoftEncoder", lambda c: made.append(c) or SoftEncoder(c)
    )
    for build in (bins_ce.build, bins_focal.build):
        build(palette=other).prepare(torch.device("cpu"))
    assert len(made) == 1
